"""Scores and encodings are open_clip's own, from local files alone; what cannot be used is refused with a reason."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip import factory
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import Compose, ToPILImage

from perfusion_core.openclip import (
    ImageTextModel,
    ImageTextModelError,
    encode_tokens,
    image_similarity,
    load_image_text_model,
    text_similarity,
)

END = 49407
VIT = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"model_cfg": VIT},
    "quick gelu": {"model_cfg": {**VIT, "quick_gelu": True}},
    "text tower of its own": {"model_cfg": {**VIT, "custom_text": True, "init_logit_bias": -10}},
    "resnet": {
        "model_cfg": {**VIT, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
    },
    "image tower of timm": {
        "model_cfg": {**VIT, "vision_cfg": {"timm_model_name": "test_resnet.r160_in1k", "image_size": 32}}
    },
    "padded": {"model_cfg": VIT, "preprocess_cfg": {"resize_mode": "longest", "fill_color": 9}},
    "squashed, with numbers of its own": {
        "model_cfg": VIT,
        "preprocess_cfg": {
            "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "resize_mode": "squash", "interpolation": "bilinear",
            "size": 224, "fill_color": 0,
        },
    },
}  # fmt: skip
TEXTS = ["a photo of a red teddy", "a cat, sitting on the beach!", "", "very long " * 90]
SIZES = [(40, 40), (48, 97), (97, 48), (32, 33), (20, 11), (3, 5)]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test that reaches for the network, also when its error is swallowed."""
    asked = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise OSError("no network in tests")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not asked


@pytest.fixture
def architectures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """architectures({name: config}): what open_clip lists, in place of the real and large ones."""

    def register(configs: dict[str, dict]) -> None:
        monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", [])
        monkeypatch.setattr(factory, "_MODEL_CONFIGS", {})
        folder = tmp_path / "configs"
        folder.mkdir()
        for name, config in configs.items():
            (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)

    return register


def random_model(config: dict[str, Any], seed: int = 0) -> nn.Module:
    config = deepcopy(config)
    torch.manual_seed(seed)
    model = (open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP)(**config)
    return model.eval()


def weights(config: dict[str, Any] = VIT, seed: int = 0) -> dict[str, Tensor]:
    return random_model(config, seed).state_dict()


def write_folder(
    folder: Path, content: dict[str, Any], file: str = "open_clip_model.safetensors", seed: int = 0
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    tensors = weights(content["model_cfg"], seed)
    save_file(tensors, folder / file) if file.endswith(".safetensors") else torch.save(tensors, folder / file)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return load_image_text_model(write_folder(tmp_path_factory.mktemp("models") / "tiny", MODELS["vit"]))


def pictures(count: int = 3, height: int = 40, width: int = 52, seed: int = 0) -> Tensor:
    """Soft blobs: what resizing overshoots stays inside 0..1."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (0.1 + 0.8 * F.interpolate(coarse, (height, width), mode="bilinear")).movedim(1, -1)


# --- the same numbers as open_clip's own ---


@pytest.mark.parametrize("content", MODELS.values(), ids=MODELS.keys())
def test_a_folder_gives_what_open_clip_gives_for_it(tmp_path: Path, content: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "tiny", content)
    model = load_image_text_model(folder)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    assert model.name == "tiny"
    for height, width in SIZES:
        picture = pictures(1, height, width)
        photo = Image.fromarray((picture[0] * 255).round().byte().numpy())
        expected = F.normalize(theirs.encode_image(transform(photo)[None]), dim=-1)
        torch.testing.assert_close(model.embed_images(picture), expected)
    expected = F.normalize(theirs.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)), dim=-1)
    torch.testing.assert_close(model.embed_texts(TEXTS), expected)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 40),
    resize_mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@settings(max_examples=60)
def test_pictures_of_all_sizes_are_prepared_as_open_clip_does(
    height: int, width: int, size: int, resize_mode: str, interpolation: str
) -> None:
    """As it prepares the same pictures from files: bytes, resized with Pillow, so nothing overshoots at edges."""
    assume(resize_mode != "longest" or size * min(height, width) >= max(height, width))  # open_clip leaves no pixel
    shown = pictures(2, height, width)
    config = PreprocessCfg(size=size, mean=(0.1, 0.2, 0.3), resize_mode=resize_mode, interpolation=interpolation)
    transform = image_transform_v2(config, is_train=False)
    seen = nn.Module()
    seen.encode_image = lambda images: images.flatten(1)
    model = ImageTextModel("shown", seen, None, Compose([ToPILImage(), transform]), torch.device("cpu"))
    expected = torch.stack([transform(Image.fromarray((one * 255).round().byte().numpy())) for one in shown])
    torch.testing.assert_close(model.embed_images(shown), F.normalize(expected.flatten(1), dim=-1), atol=0, rtol=0)


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch(model: ImageTextModel) -> None:
    many, texts = pictures(35), [f"a photo of {number} cats" for number in range(70)]
    images, words = model.embed_images(many), model.embed_texts(texts)
    for vectors in (images, words):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    torch.testing.assert_close(images, torch.cat([model.embed_images(picture[None]) for picture in many]))
    torch.testing.assert_close(words, torch.cat([model.embed_texts([text]) for text in texts]))


def test_nothing_is_trained_or_traced(model: ImageTextModel) -> None:
    assert not model.clip.training
    assert not any(parameter.requires_grad for parameter in model.clip.parameters())
    shown = pictures().requires_grad_()
    assert not text_similarity(model, shown, TEXTS[:3]).requires_grad
    assert not image_similarity(model, shown, shown).requires_grad
    assert not encode_tokens(model, TEXTS).requires_grad


# --- scores ---


def test_image_similarity_is_the_mean_cosine_to_all_photos(model: ImageTextModel) -> None:
    ours, photos = pictures(3), pictures(4, 60, 33, seed=1)
    expected = [
        sum(float(F.cosine_similarity(a, b, dim=0)) for b in model.embed_images(photos)) / 4
        for a in model.embed_images(ours)
    ]
    torch.testing.assert_close(image_similarity(model, ours, photos), torch.tensor(expected))


def test_text_similarity_compares_each_picture_with_its_own_text(model: ImageTextModel) -> None:
    ours, texts = pictures(3), TEXTS[:3]
    pairs = zip(model.embed_images(ours), model.embed_texts(texts), strict=True)
    expected = [float(F.cosine_similarity(a, b, dim=0)) for a, b in pairs]
    torch.testing.assert_close(text_similarity(model, ours, texts), torch.tensor(expected))


def test_a_picture_is_most_like_itself(model: ImageTextModel) -> None:
    first, second = pictures(1), pictures(1, seed=1)
    assert image_similarity(model, first, first).item() == pytest.approx(1, abs=1e-5)
    assert image_similarity(model, second, first).item() < 0.9999


BAD_PICTURES = {
    "no batch": (torch.zeros(8, 8, 3), "of shape"),
    "channels first": (torch.zeros(1, 3, 8, 8), "of shape"),
    "alpha": (torch.zeros(1, 8, 8, 4), "of shape"),
    "none": (torch.zeros(0, 8, 8, 3), "of shape"),
    "no rows": (torch.zeros(1, 0, 8, 3), "of shape"),
    "bytes": (torch.full((1, 8, 8, 3), 200, dtype=torch.uint8), "beyond 0..1"),
    "minus one to one": (torch.full((1, 8, 8, 3), -1.0), "beyond 0..1"),
    "NaN": (torch.full((1, 8, 8, 3), float("nan")), "NaN"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
def test_other_tensors_than_pictures_are_refused(model: ImageTextModel, bad: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        image_similarity(model, bad, pictures())
    with pytest.raises(ValueError, match=reason):
        image_similarity(model, pictures(), bad)


def test_texts_that_are_none_or_not_one_per_picture_are_refused(model: ImageTextModel) -> None:
    with pytest.raises(ValueError, match="2 texts for 3 pictures"):
        text_similarity(model, pictures(3), TEXTS[:2])
    for bad in ([], "a photo of a cat"):
        with pytest.raises(ValueError, match="in a list"):
            model.embed_texts(bad)


# --- the text tower's encodings ---


def test_the_last_layer_at_the_end_token_is_what_the_embedding_comes_from(model: ImageTextModel) -> None:
    tokens = model.tokenize(TEXTS)
    at_end = encode_tokens(model, TEXTS)[torch.arange(len(TEXTS)), tokens.argmax(1)]
    torch.testing.assert_close(F.normalize(at_end @ model.clip.text_projection, dim=-1), model.embed_texts(TEXTS))


@pytest.mark.parametrize("name", ["vit", "text tower of its own"])
@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_a_layer_is_the_tower_run_that_far(tmp_path: Path, name: str, layer: int, final_norm: bool) -> None:
    model = load_image_text_model(write_folder(tmp_path / "tiny", MODELS[name]))
    tower = getattr(model.clip, "text", model.clip)
    x = tower.token_embedding(model.tokenize(TEXTS)) + tower.positional_embedding
    for block in tower.transformer.resblocks[: 4 + layer]:
        x = block(x, attn_mask=torch.full((77, 77), float("-inf")).triu(1))
    expected = tower.ln_final(x) if final_norm else x
    torch.testing.assert_close(encode_tokens(model, TEXTS, layer, final_norm), expected.detach())


def test_padding_changes_what_comes_after_the_end_token_only(model: ImageTextModel) -> None:
    zeros, ends = encode_tokens(model, TEXTS), encode_tokens(model, TEXTS, padding=END)
    assert zeros.shape == (len(TEXTS), 77, 16)
    for text, a, b in zip(model.tokenize(TEXTS), zeros, ends, strict=True):
        kept = int(text.argmax()) + 1
        assert torch.equal(a[:kept], b[:kept])
        assert kept == 77 or not torch.isclose(a[kept:], b[kept:]).all(1).any()


def test_many_texts_are_encoded_as_one_by_one(model: ImageTextModel) -> None:
    texts = [f"a photo of {number} cats" for number in range(70)]
    one_by_one = torch.cat([encode_tokens(model, [text], padding=END) for text in texts])
    torch.testing.assert_close(encode_tokens(model, texts, padding=END), one_by_one)


@pytest.mark.parametrize("layer", [0, 1, -4])
def test_a_layer_that_is_not_there_is_refused(model: ImageTextModel, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"-3 to -1; {layer}"):
        encode_tokens(model, TEXTS, layer)


def test_a_tower_that_looks_ahead_gives_scores_but_no_encodings(tmp_path: Path) -> None:
    config = {**VIT, "custom_text": True, "text_cfg": {**VIT["text_cfg"], "no_causal_mask": True}}
    model = load_image_text_model(write_folder(tmp_path / "tiny", {"model_cfg": config}))
    assert model.embed_texts(TEXTS).isfinite().all()
    with pytest.raises(ImageTextModelError, match="in another way than Stable Diffusion"):
        encode_tokens(model, TEXTS)


# --- bare files ---


def plain(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return tensors


def training_checkpoint(tensors: dict[str, Tensor]) -> dict[str, Any]:
    wrapped = {f"module.{name}": part for name, part in tensors.items()}
    wrapped["module.logit_scale"] = torch.ones(1)  # as some trainings keep it
    return {"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}, "param_groups": []}}


def half(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: part.half() if part.is_floating_point() else part for name, part in tensors.items()}


@pytest.mark.parametrize(
    ("layout", "ending"),
    [*itertools.product((plain, half), ("safetensors", "pt", "pth", "bin")), (training_checkpoint, "pt")],
)
def test_a_bare_file_is_read_in_each_of_its_layouts(
    architectures: Callable[..., None], tmp_path: Path, model: ImageTextModel, layout: Callable, ending: str
) -> None:
    architectures({"Tiny": VIT})
    file = tmp_path / f"tiny.{ending}"
    content = layout(weights())
    save_file(content, file) if ending == "safetensors" else torch.save(content, file)
    read = load_image_text_model(file)
    assert read.name == file.name
    torch.testing.assert_close(read.embed_images(pictures()), model.embed_images(pictures()), atol=2e-3, rtol=0)
    torch.testing.assert_close(read.embed_texts(TEXTS), model.embed_texts(TEXTS), atol=2e-3, rtol=0)


LISTED = {
    **{name: VIT for name in ("ViT-B-32", "ViT-L-14", "ViT-L-14-336", "ViT-H-14")},
    "ViT-B-32-quickgelu": {**VIT, "quick_gelu": True},
    "ViT-L-14-text": {**VIT, "custom_text": True},
}
CLIP_MEAN = open_clip.OPENAI_DATASET_MEAN
NAMES = {  # of files -> (quick gelu, text tower apart, mean, how pictures are resized)
    "ViT-B-32": (False, False, CLIP_MEAN, "shortest"),
    "vit-b-32-LAION2B-s34b_b79k": (False, False, CLIP_MEAN, "shortest"),
    "ViT-B-32.openai": (True, False, CLIP_MEAN, "shortest"),
    "ViT-B-32 my finetune": (False, False, CLIP_MEAN, "shortest"),
    "ViT-B-32-quickgelu": (True, False, CLIP_MEAN, "shortest"),
    "ViT-B-32-quickgelu-mine": (True, False, CLIP_MEAN, "shortest"),
    "ViT-B-32-laion400m_e32": (True, False, CLIP_MEAN, "shortest"),  # trained so, as open_clip notes
    "ViT-L-14-laion2B-s32B-b82K": (False, False, (0.5, 0.5, 0.5), "shortest"),
    "ViT-L-14-text-mine": (False, True, CLIP_MEAN, "shortest"),
    "ViT-L-14-336px-mine": (False, False, CLIP_MEAN, "shortest"),
    "ViT-H-14-dfn5b": (True, False, CLIP_MEAN, "squash"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_bare_file_tells_architecture_activation_and_preprocessing(
    architectures: Callable[..., None], tmp_path: Path, name: str
) -> None:
    architectures(LISTED)
    quick, apart, mean, resize_mode = NAMES[name]
    config = {**VIT, "quick_gelu": quick, "custom_text": apart}
    save_file(weights(config), tmp_path / f"{name}.safetensors")
    preprocess = {"mean": mean, "resize_mode": resize_mode}
    if mean != CLIP_MEAN:
        preprocess["std"] = (0.5, 0.5, 0.5)
    expected = load_image_text_model(
        write_folder(tmp_path / "folder", {"model_cfg": config, "preprocess_cfg": preprocess})
    )
    read = load_image_text_model(tmp_path / f"{name}.safetensors")
    torch.testing.assert_close(read.embed_images(pictures()), expected.embed_images(pictures()))
    torch.testing.assert_close(read.embed_texts(TEXTS), expected.embed_texts(TEXTS))


@pytest.mark.parametrize("name", ["model", "my ViT-B-32", "ViT-B-321"])
def test_a_name_that_does_not_say_the_architecture_is_refused(tmp_path: Path, name: str) -> None:
    save_file(weights(), tmp_path / f"{name}.safetensors")
    refused(tmp_path / f"{name}.safetensors", r"does not say what.*ViT-B-32-quickgelu\.safetensors")


# --- what cannot be used ---


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageTextModelError, match=reason) as caught:
        load_image_text_model(path)
    assert path.name in str(caught.value)


def test_a_missing_package_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImageTextModelError, match="pip install open_clip_torch"):
        load_image_text_model(tmp_path)


def test_a_path_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.ckpt").touch()
    refused(tmp_path / "model.safetensors", "no model")
    with pytest.raises(ImageTextModelError, match="no model"):
        load_image_text_model("a null\0")
    refused(tmp_path / "model.ckpt", "neither .safetensors nor .pt")
    refused(tmp_path / "folder", "holds no open_clip_model.safetensors or.*Take .* and open_clip_config.json")
    write_folder(tmp_path / "folder", MODELS["vit"])
    config = (tmp_path / "folder" / "open_clip_config.json").rename(tmp_path / "config.json")
    refused(tmp_path / "folder", "no usable open_clip_config.json")
    config.rename(tmp_path / "folder" / "open_clip_config.json")
    (tmp_path / "folder" / "open_clip_model.safetensors").unlink()
    refused(tmp_path / "folder", "holds no open_clip_model.safetensors or")
    (tmp_path / "folder" / "model.safetensors").touch()  # as transformers calls its own
    refused(tmp_path / "folder", "holds no open_clip_model.safetensors or")


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pth"])
def test_the_other_names_of_a_folders_weights_are_found(tmp_path: Path, model: ImageTextModel, ending: str) -> None:
    folder = write_folder(tmp_path / "tiny", MODELS["vit"], f"open_clip_pytorch_model.{ending}")
    for name in ("pytorch_model.bin", "model.safetensors", "optimizer.pt"):  # what else whole repositories hold
        (folder / name).write_bytes(b"of transformers")
    assert torch.equal(load_image_text_model(folder).embed_texts(TEXTS), model.embed_texts(TEXTS))


WORDS = "token_embedding.weight"
FOREIGN = {
    "a LoRA": ["lora_unet_down_blocks_0.lora_up.weight", "lora_te_text_model_encoder.alpha"],
    "a LoRA of a text encoder": ["text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"],
    "a checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", f"cond_stage_model.model.{WORDS}"],
    "a text encoder alone": [f"text_model.embeddings.{WORDS}", "text_model.final_layer_norm.weight"],
    "a text encoder alone, as open_clip has it": [WORDS, "positional_embedding"],
    "an image encoder alone": ["vision_model.embeddings.class_embedding", "visual_projection.weight"],
    "an image encoder alone, as open_clip has it": ["visual.proj", "visual.class_embedding"],
    "a CLIP in the layout of transformers": [f"text_model.embeddings.{WORDS}", "vision_model.post_layernorm.bias"],
    "another kind of file": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "another kind of file, empty": [],
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_called_what_it_is(tmp_path: Path, kind: str) -> None:
    tensors = {name: torch.ones(1) for name in FOREIGN[kind]}
    save_file(tensors, tmp_path / "clip_l.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "clip_l.pt")
    for ending in ("safetensors", "pt"):
        refused(tmp_path / f"clip_l.{ending}", f"is {kind.partition(' of')[0].partition(',')[0]}.* not an image-text")


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {"state_dict": 3}, {1: 2}, "text", None])
def test_a_file_of_something_else_than_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "another kind of file")


@pytest.mark.parametrize("ending", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, ending: str, kept: int) -> None:
    file = tmp_path / f"model.{ending}"
    tensors = half(weights())
    save_file(tensors, file) if ending == "safetensors" else torch.save(tensors, file)
    file.write_bytes(file.read_bytes()[:kept])
    refused(file, "is damaged or holds more than tensors")


class Malicious:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (os.mkdir, (str(self.mark),))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, content in {"whole.pt": Malicious(mark), "in.bin": {"state_dict": {"x": Malicious(mark)}}}.items():
        torch.save(content, tmp_path / name)
        refused(tmp_path / name, "code in a file is never run")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    refused(tmp_path / "old.pt", "code in a file is never run")
    folder = write_folder(tmp_path / "folder", MODELS["vit"], "open_clip_pytorch_model.bin")
    torch.save(Malicious(mark), folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ImageTextModelError, match="never run"):
        load_image_text_model(folder)
    assert not mark.exists()
    pickle.loads((tmp_path / "old.pt").read_bytes())
    assert mark.exists()  # it would have


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "ViT-B-32.pt")
    refused(tmp_path / "ViT-B-32.pt", "TorchScript program")


DAMAGED_CONFIGS = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "no model": "{}",
    "no towers": json.dumps({"model_cfg": {"embed_dim": 8}}),
    "a tower that is a text": json.dumps({"model_cfg": {**VIT, "text_cfg": "x"}}),
    "deep": "[" * 100_000,
    "bytes": "\udcff",
}


@pytest.mark.parametrize("content", DAMAGED_CONFIGS.values(), ids=DAMAGED_CONFIGS.keys())
def test_a_damaged_config_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path / "tiny", MODELS["vit"])
    (folder / "open_clip_config.json").write_bytes(content.encode(errors="surrogateescape"))
    refused(folder, "no usable open_clip_config.json")


TEXT, VISION = VIT["text_cfg"], VIT["vision_cfg"]
BAD_CONFIGS = {
    "of other shapes": ({**VIT, "embed_dim": 9}, {}, r"cannot make.*size mismatch.*\[32, 8\].*\[32, 9\]"),
    "unknown setting": ({**VIT, "depth": 3}, {}, "cannot make"),
    "no width": ({**VIT, "vision_cfg": {**VISION, "width": None}}, {}, "cannot make"),
    "heads that do not divide": ({**VIT, "text_cfg": {**TEXT, "heads": 3}}, {}, "cannot make"),
    "layers in words": ({**VIT, "text_cfg": {**TEXT, "layers": "three"}}, {}, "cannot make"),
    "preprocessing that is a list": (VIT, [1], "cannot make"),
    "two means": (VIT, {"mean": [0.5, 0.5]}, "cannot make"),
    "mean in words": (VIT, {"mean": "half"}, "cannot make"),
    "resized in another way": (VIT, {"resize_mode": "tallest"}, "cannot make"),
    "text tower of the hub": ({**VIT, "text_cfg": {"hf_model_name": "roberta-base"}}, {}, "not open_clip's own"),
    "captioning model": ({**VIT, "multimodal_cfg": {}}, {}, "not open_clip's own"),
    "image tower of the hub": (
        {**VIT, "vision_cfg": {"timm_model_name": "hf-hub:timm/resnet18", "image_size": 32}}, {}, "would download",
    ),
    "pretrained image tower": (
        {**VIT, "vision_cfg": {"timm_model_name": "resnet10t", "timm_model_pretrained": True, "image_size": 32}}, {},
        "cannot make.*Missing key",
    ),
    "tokenizer of the hub": (
        {**VIT, "text_cfg": {**TEXT, "hf_tokenizer_name": "t5-small"}}, {}, "nothing is downloaded",
    ),
    "tokenizer that downloads": (
        {**VIT, "text_cfg": {**TEXT, "tokenizer_kwargs": {"reduction_mask": "syntax"}}}, {}, "setting 'reduction_mask'",
    ),
    "tokenizer that runs code": (
        {**VIT, "text_cfg": {**TEXT, "tokenizer_kwargs": {"trust_remote_code": True}}}, {}, "'trust_remote_code'",
    ),
    "tokenizer settings that are none": ({**VIT, "text_cfg": {**TEXT, "tokenizer_kwargs": [1]}}, {}, "cannot make"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "preprocessing", "reason"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_config_that_does_not_serve_is_refused(
    tmp_path: Path, config: dict[str, Any], preprocessing: dict[str, Any], reason: str
) -> None:
    folder = write_folder(tmp_path / "tiny", MODELS["vit"])
    content = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    refused(folder, reason)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32", "coca_ViT-B-32", "xlm-roberta-base-ViT-B-32"])
def test_a_bare_file_that_needs_more_than_itself_is_refused(tmp_path: Path, name: str) -> None:
    save_file(weights(), tmp_path / f"{name}.safetensors")
    refused(tmp_path / f"{name}.safetensors", "nothing is downloaded|not open_clip's own")


def test_a_name_that_lies_about_the_architecture_is_refused(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "ViT-B-32.safetensors")
    refused(tmp_path / "ViT-B-32.safetensors", "width changed.*Let the name of a bare file start with its")


def test_weights_with_nan_are_told_when_they_are_used(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", MODELS["vit"])
    tensors = weights()
    tensors["visual.proj"][0, 0] = tensors["text_projection"][0, 0] = float("nan")
    save_file(tensors, folder / "open_clip_model.safetensors")
    model = load_image_text_model(folder)
    for scored in (lambda: image_similarity(model, pictures(), pictures()), lambda: model.embed_texts(TEXTS)):
        with pytest.raises(ImageTextModelError, match="tiny gives NaN"):
            scored()


# --- a tokenizer in the folder ---


def with_tokenizer(folder: Path, words: list[str], vocabulary: int = 16) -> Path:
    """A model whose tokenizer is a list of words beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    text = {**TEXT, "vocab_size": vocabulary, "context_length": 9, "pool_type": "last", "no_causal_mask": True}
    text |= {"hf_tokenizer_name": "someone/somewhere", "tokenizer_kwargs": {"clean": "canonicalize"}}
    write_folder(folder, {"model_cfg": {**VIT, "custom_text": True, "text_cfg": text}})
    ids = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[END]", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def test_a_tokenizer_in_the_folder_is_used(tmp_path: Path) -> None:
    model = load_image_text_model(with_tokenizer(tmp_path / "tiny", ["a", "red", "cat"]))
    assert model.tokenize(["A red, cat", "dog"]).tolist() == [[3, 4, 5, 2, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0, 0]]
    assert model.embed_texts(["a red cat", "a cat"]).shape == (2, 8)
    with pytest.raises(ImageTextModelError, match="in another way than Stable Diffusion"):
        encode_tokens(model, ["a red cat"])


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model = load_image_text_model(with_tokenizer(tmp_path / "tiny", ["a", "red", "cat"], vocabulary=5))
    with pytest.raises(ImageTextModelError, match="tokenizer in tiny is of another model"):
        model.embed_texts(["a red cat"])


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    folder = with_tokenizer(tmp_path / "tiny", ["a"])
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    content = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    refused(folder, "cannot make.*custom code")
    assert not (tmp_path / "ran").exists()
