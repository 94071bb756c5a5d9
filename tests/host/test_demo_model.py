"""The demo model's file against the networks it was trained as, and its three outputs in the host's stock nodes."""

import json
import subprocess
import sys
import types
from pathlib import Path

import comfy.model_patcher
import folder_paths
import pytest
import torch
from comfyui_perfusion.nodes.demo import PerfusionDemoModel
from comfyui_perfusion.nodes.host import trainee
from comfyui_perfusion.nodes.host.demo_model import FILE, load_demo_model
from comfyui_perfusion.nodes.host.encoder_covariance import (
    CAPTIONS,
    SHIPPED,
    cached_covariance,
    fingerprint,
    measure_covariance,
)
from comfyui_perfusion.nodes.host.model import base_model
from comfyui_perfusion.nodes.load import PerfusionLoader
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import Covariance, save_concept
from comfyui_perfusion.perfusion_core.captions import captions
from safetensors.torch import save_file

import nodes as host_nodes
from conftest import REPO
from makers import make_concept, random_covariance, train_node

PROMPTS = (
    "a photo of a cat in the meadow", "", "A red car, and a house in the snow", "a zeppelin above Manhattan",
    " ".join(["pixel art of a blue mug on the beach"] * 8) + " and a bear",  # fills all 77 tokens
)  # fmt: skip
TRIGGER = "<my-toy>"

# In a process of its own, because networks.py changes the host's attention: the networks as they were trained, with the
# file's weights. Prints the words of the world.
REFERENCE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import load_file
from benchmarks.world.export import as_it_was_trained, read
from benchmarks.world.individuals import ACCESSORIES, CLASSES, COLOURS, PATTERNS, SHAPES
from benchmarks.world.networks import LATENT, TextEncoder, Vocabulary, make_unet
from benchmarks.world.places import PLACES

kept = load_file(sys.argv[2])
models, vocabulary = read(kept), Vocabulary()
text, unet = TextEncoder(vocabulary), make_unet()
text.load_state_dict(as_it_was_trained(models, kept["tokens"].tolist(), vocabulary.ids))
unet.load_state_dict(models["unet"])
for parameter in (*text.parameters(), *unet.parameters()):
    parameter.data = parameter.half().float()  # as the host has them
with torch.no_grad():
    rows = vocabulary.rows(json.loads(sys.argv[4]))
    encodings = text.encode(text.table(rows), (rows != 1).sum(1))
    noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0))
    predicted = unet(noise, torch.tensor([20, 800]), encodings[:2], transformer_options={})
torch.save({"encodings": encodings, "noise": noise, "predicted": predicted}, sys.argv[3])
parts = (*SHAPES.values(), *ACCESSORIES.values(), CLASSES, COLOURS, PATTERNS, PLACES.values())
print(json.dumps(sorted({word for part in parts for word in part} - {"", "plain"})))
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "reference.pt"
    arguments = [str(REPO), str(FILE), str(out), json.dumps(PROMPTS)]
    command = [sys.executable, "-c", REFERENCE, *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {**torch.load(out), "words": json.loads(printed.splitlines()[-1])}


@pytest.fixture(scope="module")
def demo():
    with torch.inference_mode():
        return PerfusionDemoModel.execute().args


@pytest.fixture
def lora_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def encode(clip, prompt: str):
    return host_nodes.CLIPTextEncode().encode(clip, prompt)[0]


def sample(model, clip, prompt: str = PROMPTS[0], batch: int = 1):
    """LATENT after three steps."""
    empty = host_nodes.EmptyLatentImage().generate(96, 96, batch)[0]
    positive, negative = encode(clip, prompt), encode(clip, "")
    return host_nodes.common_ksampler(model, 7, 3, 5.0, "euler", "normal", positive, negative, empty)[0]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the order of additions in another attention."""
    return torch.allclose(a, b, rtol=0, atol=1e-4 * b.abs().max().item())


def test_prompts_are_encoded_as_in_training(demo, reference):
    encodings = [encode(demo[1], prompt)[0][0] for prompt in PROMPTS]
    assert {tuple(encoding.shape) for encoding in encodings} == {(1, 77, 192)}
    assert close(torch.cat(encodings), reference["encodings"])
    words = encodings[0][0].abs().sum(-1)
    assert words[:9].all() and not words[9:].any()  # the end of the text and the padding


def test_padding_is_not_encoded(demo):
    clip, read = demo[1], []
    encoder = clip.cond_stage_model.clip_l.transformer
    listening = encoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["embeds"].shape[1]), with_kwargs=True
    )
    encoding = clip.encode_from_tokens(clip.tokenize("a red car"))
    listening.remove()
    assert read == [5] and encoding.shape[1] == 77  # with start and end
    assert encoder.text_model.embeddings.position_embedding.weight.shape[0] == 77


def test_the_unet_predicts_as_in_training(demo, reference):
    unet = demo[0].model.diffusion_model
    context = reference["encodings"][:2]
    predicted = unet(reference["noise"], torch.tensor([20, 800]), context=context, transformer_options={})
    assert close(predicted, reference["predicted"])


def test_stock_nodes_make_pictures_of_96_pixels_from_a_96_pixel_latent(demo):
    model, clip, vae = demo
    latent = sample(model, clip, batch=2)
    assert latent["samples"].shape == (2, 16, 12, 12)
    (pictures,) = host_nodes.VAEDecode().decode(vae, latent)
    assert pictures.shape == (2, 96, 96, 3)
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert not torch.equal(pictures[0], pictures[1])
    assert host_nodes.VAEEncode().encode(vae, pictures)[0]["samples"].shape == (2, 16, 12, 12)


def test_clip_skip_works(demo):
    skipped = host_nodes.CLIPSetLastLayer().set_last_layer(demo[1], -2)[0]
    assert not torch.allclose(encode(skipped, PROMPTS[0])[0][0], encode(demo[1], PROMPTS[0])[0][0])


def test_its_covariance_comes_with_the_pack_and_is_of_no_other_encoder(demo, model_folder, monkeypatch):
    (path,) = SHIPPED.iterdir()
    shipped, some = Covariance.load(path), list(captions(CAPTIONS))[::50]
    measured = measure_covariance(demo[1], some, None).matrix()
    assert (shipped.matrix() - measured).norm() < 0.05 * measured.norm()
    assert shipped.count == CAPTIONS * 77
    skipped = host_nodes.CLIPSetLastLayer().set_last_layer(demo[1], -2)[0]
    assert fingerprint(skipped) not in path.name

    monkeypatch.setattr("comfyui_perfusion.nodes.host.encoder_covariance.measure_covariance", lambda *_: pytest.fail())
    assert torch.equal(cached_covariance(demo[1], CAPTIONS, None).matrix(), shipped.matrix())
    assert list(model_folder.iterdir()) == []


def test_a_lora_under_any_of_its_usual_names_applies_and_goes_again(demo, lora_folder):
    model, clip, _ = demo
    block = "diffusion_model.{}.1.transformer_blocks.0.attn2"
    names = {
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k": block.format("input_blocks.3") + ".to_k.weight",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v":
            block.format("middle_block") + ".to_v.weight",
        block.format("output_blocks.0") + ".to_v": block.format("output_blocks.0") + ".to_v.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1": "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    }  # fmt: skip
    weights = {**model.model.state_dict(), **clip.cond_stage_model.state_dict()}
    lora = {}
    for name, key in names.items():
        rows, columns = weights[key].shape
        lora |= {f"{name}.lora_up.weight": torch.randn(rows, 2), f"{name}.lora_down.weight": torch.randn(2, columns)}
    save_file(lora, lora_folder / "demo.safetensors")
    plain = sample(model, clip)["samples"]
    with_lora = host_nodes.LoraLoader().load_lora(model, clip, "demo.safetensors", 0.1, 0.1)
    assert {*with_lora[0].patches, *with_lora[1].patcher.patches} == set(names.values())
    assert not torch.allclose(sample(*with_lora)["samples"], plain)
    assert torch.equal(sample(model, clip)["samples"], plain)


def test_a_concept_changes_the_picture_and_strength_zero_nothing(demo, model_folder):
    model, clip, _ = demo
    save_concept(make_concept(model, clip, TRIGGER, "bear"), model_folder / "toy.safetensors")
    prompt = f"a photo of a {TRIGGER} in the meadow"

    def with_strength(strength: float):
        loaded = PerfusionLoader.execute(
            model, clip, "toy.safetensors", beta=0.6, temperature=0.15, key_lock=1.0, strength=strength
        ).args
        return sample(*loaded, prompt)["samples"]

    plain = sample(model, clip, prompt)["samples"]
    assert not torch.allclose(with_strength(1.0), plain, atol=1e-2)
    assert torch.equal(with_strength(0.0), plain)


def test_a_concept_trains_at_96_pixels_with_masks(demo, model_folder, monkeypatch):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None))
    monkeypatch.setattr(trainee, "_SAMPLING_STEPS", 2)
    before = sample(*demo[:2])["samples"]
    masks = torch.zeros(2, 110, 110)
    masks[:, 20:60, 20:60] = 1
    best, last, sheet, *_ = train_node(
        lambda _: demo, images=[torch.rand(2, 110, 110, 3)], masks=[masks], superclass=["bear"], resolution=[0],
        covariance=[random_covariance(192)], previews=["a photo of {}"],
    ).args  # fmt: skip
    concept = last[0].concept
    assert concept.base_model == base_model(demo[0]) == "demo"
    assert json.loads(concept.metadata["training"])["resolution"] == 96
    assert all(delta.any() for delta in concept.value_deltas.values())
    assert best[0].concept.dim == 192
    assert sheet.ndim == 4
    assert torch.equal(sample(*demo[:2])["samples"], before)


def test_the_host_can_make_the_model_again_by_itself(demo):
    """As it does for training where weights are streamed to the GPU, and for several GPUs."""
    model, clip, vae = demo
    for patcher in (model, clip.patcher, vae.patcher):
        make, arguments = patcher.cached_patcher_init
        another = make(*arguments, disable_dynamic=True)
        assert isinstance(another, comfy.model_patcher.ModelPatcher)
        assert another.model is not patcher.model
        theirs = dict(another.model.named_parameters())
        for name, parameter in patcher.model.named_parameters():
            assert "text_projection" in name or torch.equal(theirs[name], parameter)  # which the host leaves unset


def test_a_missing_or_damaged_file_says_what_to_do(tmp_path):
    cut, other = tmp_path / "cut.safetensors", tmp_path / "other.safetensors"
    cut.write_bytes(FILE.read_bytes()[: FILE.stat().st_size // 2])
    save_file({"a": torch.zeros(1)}, other)
    for path in (tmp_path / "none.safetensors", cut, other):
        with pytest.raises(RuntimeError, match=rf"{path.name} is missing or damaged.*install that again"):
            load_demo_model(path)


def test_the_file_is_small_and_the_help_page_names_its_words(reference):
    assert FILE.stat().st_size <= 16 * 2**20
    page = (REPO / "web" / "docs" / "PerfusionDemoModel.md").read_text("utf-8")
    assert [word for word in reference["words"] if word not in page] == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_the_models_file_is_not_mapped_once_loaded(demo):
    """An update of the pack could not replace it on Windows."""
    assert FILE.name not in Path("/proc/self/maps").read_text(), demo
