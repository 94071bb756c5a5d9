"""open_clip's text towers encode as the host's encoders do, and models/open_clip offers what can be loaded."""

import json

import folder_paths
import open_clip
import pytest
import torch
from comfy.diffusers_convert import convert_text_enc_state_dict_v20
from comfyui_perfusion.nodes.host.encoder_covariance import measure_covariance
from comfyui_perfusion.nodes.host.scorers import register, scorer_names, scorer_path
from comfyui_perfusion.nodes.host.text import encoders
from comfyui_perfusion.perfusion_core import Covariance
from comfyui_perfusion.perfusion_core.captions import captions
from comfyui_perfusion.perfusion_core.openclip import ImageTextModel, encode_tokens, load_image_text_model
from safetensors.torch import save_file

END = 49407
TEXTS = [*captions(12), "", "A Photo of   a <teddy>, 4k!", "very long " * 60, "one two three " * 24 + "four five"]
KINDS = {  # how each of the host's encoders is asked for with encode_tokens
    "sd1": {"l": {"padding": END}},
    "sd2": {"h": {"layer": -2}},
    "sdxl": {"l": {"layer": -2, "final_norm": False, "padding": END}, "g": {"layer": -2, "final_norm": False}},
}


def as_open_clip(clip, name: str, folder) -> ImageTextModel:
    """A model in open_clip's layout whose text tower has the weights of one of the CLIP's encoders."""
    tower = encoders(clip)[name].transformer.text_model
    width, layer = tower.final_layer_norm.weight.shape[0], tower.encoder.layers[0]
    config = {
        "embed_dim": width,
        "quick_gelu": name == "l",
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {
            "width": width,
            "heads": layer.self_attn.heads,
            "layers": len(tower.encoder.layers),
            "mlp_ratio": layer.mlp.fc1.weight.shape[0] / width,
        },
    }
    converted = convert_text_enc_state_dict_v20(clip.cond_stage_model.state_dict(), f"clip_{name}.")
    weights = {key.removeprefix(f"clip_{name}."): part for key, part in converted.items()}
    with torch.device("meta"):
        images = open_clip.CLIP(**config).visual.state_dict()
    weights |= {f"visual.{key}": torch.ones(part.shape) for key, part in images.items()}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({key: part.half().contiguous() for key, part in weights.items()}, folder / "open_clip_model.safetensors")
    return load_image_text_model(folder)


@pytest.fixture(scope="module")
def both(models, tmp_path_factory):
    """kind -> (the host's CLIP, {encoder: open_clip's model of the same weights}), each made once."""
    made = {}

    def of(kind: str):
        if kind not in made:
            clip, folder = models(kind)[1], tmp_path_factory.mktemp(kind)
            made[kind] = clip, {name: as_open_clip(clip, name, folder / name) for name in KINDS[kind]}
        return made[kind]

    return of


def encode(models, options, texts) -> torch.Tensor:
    """(n, 77, d), the encodings of all text towers side by side."""
    return torch.cat([encode_tokens(models[name], texts, **options[name]) for name in models], dim=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_encodings_are_those_of_the_hosts_encoder(both, kind):
    clip, ours = both(kind)
    theirs = torch.cat([clip.encode_from_tokens(clip.tokenize(text))[:, :77] for text in TEXTS])
    torch.testing.assert_close(encode(ours, KINDS[kind], TEXTS), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skip", [-1, -2, -3])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_clip_skip_is_the_layer(both, kind, skip):
    clip, ours = both(kind)
    clip = clip.clone()
    clip.clip_layer(skip)
    theirs = torch.cat([clip.encode_from_tokens(clip.tokenize(text)) for text in TEXTS[:3]])
    options = {name: options | {"layer": skip} for name, options in KINDS[kind].items()}
    torch.testing.assert_close(encode(ours, options, TEXTS[:3]), theirs, atol=1e-5, rtol=1e-5)


def test_with_open_clips_own_padding_they_agree_up_to_the_end_token(both):
    clip, ours = both("sd1")
    for text in TEXTS[:4]:
        tokens = clip.tokenize(text)
        kept = [token for token, _ in tokens["l"][0]].index(END) + 1
        padded = encode_tokens(ours["l"], [text])
        theirs = clip.encode_from_tokens(tokens)
        torch.testing.assert_close(padded[:, :kept], theirs[:, :kept], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(padded[:, kept:], theirs[:, kept:], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_covariance_from_open_clip_is_the_one_from_the_host(both, kind):
    clip, ours = both(kind)
    texts = list(captions(40))
    encodings = encode(ours, KINDS[kind], texts)
    covariance = Covariance(encodings.shape[-1])
    covariance.update(encodings)
    measured = measure_covariance(clip, texts, None)
    assert covariance.count == measured.count == 40 * 77
    torch.testing.assert_close(covariance.matrix(), measured.matrix(), atol=1e-5, rtol=1e-5)


# --- the model folder ---


@pytest.fixture
def scorer_folder(tmp_path, monkeypatch):
    """An empty models/open_clip for one test."""
    folder = tmp_path / "open_clip"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "open_clip", raising=False)
    register()
    return folder


def put(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def test_files_and_folders_in_open_clips_layout_are_offered(scorer_folder):
    put(scorer_folder / "ViT-B-32.safetensors", scorer_folder / "laion/a.bin", scorer_folder / "b.PT")
    put(scorer_folder / "vit/open_clip_config.json", scorer_folder / "vit/open_clip_model.safetensors")
    put(scorer_folder / "laion/h/open_clip_config.json", scorer_folder / "laion/h/open_clip_pytorch_model.bin")
    put(scorer_folder / "notes.txt", scorer_folder / "other/config.json", scorer_folder / "x.ckpt")
    names = ["ViT-B-32.safetensors", "b.PT", "laion/a.bin", "laion/h", "vit"]
    assert scorer_names() == names
    assert [scorer_path(name) for name in names] == [scorer_folder / name for name in names]


def test_a_model_put_there_later_and_in_an_extra_folder_is_found(scorer_folder, tmp_path):
    extra = tmp_path / "extra"
    extra.mkdir()
    folder_paths.add_model_folder_path("open_clip", str(extra))
    assert scorer_names() == []
    put(extra / "vit/open_clip_config.json", scorer_folder / "a.pt")
    assert scorer_names() == ["a.pt", "vit"]
    assert scorer_path("vit") == extra / "vit"
    register()
    assert folder_paths.get_folder_paths("open_clip") == [str(scorer_folder), str(extra)]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret.pt", "vit/../../secret.pt", "vit/open_clip_model.safetensors", "vit/../vit", "x.pt",
     "vit/open_clip_config.json", "{}/secret.pt", "{}", "vit\0", "..\\secret.pt", None, 3],
)  # fmt: skip
def test_only_what_is_offered_is_found(scorer_folder, tmp_path, name):
    put(scorer_folder / "vit/open_clip_config.json", scorer_folder / "vit/open_clip_model.safetensors")
    put(tmp_path / "secret.pt", tmp_path / "open_clip_config.json", scorer_folder / "open_clip_config.json")
    assert scorer_names() == ["vit"]
    with pytest.raises(ValueError, match="There is no model"):
        scorer_path(name.format(tmp_path) if isinstance(name, str) else name)
