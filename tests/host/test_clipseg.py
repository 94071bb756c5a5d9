"""Masks from words, with a small random CLIPSeg as its folder on Hugging Face looks."""

import asyncio
import json
import logging
import pickle
import shutil
import socket
import types
from pathlib import Path

import comfy.model_management
import comfy.sd1_clip
import execution
import folder_paths
import numpy as np
import pytest
import torch
from comfyui_perfusion.nodes.host import clipseg
from comfyui_perfusion.nodes.photos import PerfusionMasksFromText
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

import nodes

NAME = "clipseg-rd64-refined"
TOKENIZER = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
PREPROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": 32,
}
PART = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = CLIPSegConfig(
        text_config={**PART, "num_hidden_layers": 2},
        vision_config={**PART, "num_hidden_layers": 3, "image_size": 24, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty models/clipseg."""
    home = tmp_path / "clipseg"
    home.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clipseg", ([str(home)], set()))
    monkeypatch.setattr(PerfusionMasksFromText, "hidden", types.SimpleNamespace(unique_id=None))
    return home


@pytest.fixture
def folder(home, tiny) -> Path:
    """models/clipseg with one model."""
    return Path(shutil.copytree(tiny, home / NAME))


@pytest.fixture(autouse=True)
def _without_network(monkeypatch):
    calls = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def refuse(*args, **kwargs):
        calls.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert calls == []


def noise(*shape, seed=0) -> torch.Tensor:
    """Pictures of 8 bits, as files are."""
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(values.astype(np.float32) / 255)


def reference_logits(folder: Path, photo: torch.Tensor, subject: str) -> torch.Tensor:
    """(height, width) of the model, as the documentation of transformers calls it."""
    processor = CLIPSegProcessor.from_pretrained(folder)
    model = CLIPSegForImageSegmentation.from_pretrained(folder)
    picture = Image.fromarray((photo * 255).round().to(torch.uint8).numpy())
    return model(**processor(text=[subject], images=[picture], return_tensors="pt")).logits.squeeze()


def change_weights(folder: Path, **changes) -> None:
    """Replaces tensors by their functions of them, or takes them out where the function gives None."""
    weights = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        (key,) = [key for key in weights if key.endswith(name.replace("__", "."))]
        changed = change(weights.pop(key))
        if changed is not None:
            weights[key] = changed
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def masks_of(images, subject="teddy", model=NAME):
    return PerfusionMasksFromText.execute(images, [subject], [model]).result


@pytest.mark.parametrize(("height", "width"), [(48, 80), (80, 48), (20, 20), (5, 7)])
def test_a_mask_is_what_transformers_gives(folder, height, width):
    photo = noise(height, width, 3)
    (mask,), _ = masks_of([photo[None]], " a teddy ")
    small = reference_logits(folder, photo, "a teddy").sigmoid()
    want = torch.nn.functional.interpolate(small[None, None], size=(height, width), mode="bilinear")[0]
    assert mask.shape == (1, height, width)
    assert torch.allclose(mask, want, atol=1e-5)
    assert mask.dtype == torch.float32


def test_the_words_and_the_photo_decide(folder):
    masks, _ = masks_of([noise(32, 32, 3)[None], noise(32, 32, 3, seed=1)[None]])
    others, _ = masks_of([noise(32, 32, 3)[None]], "a red car")
    assert not torch.allclose(masks[0], masks[1], atol=0.01)
    assert not torch.allclose(masks[0], others[0], atol=0.01)


def test_batches_lists_and_sizes_mix_and_every_photo_gets_a_mask(folder):
    batch = noise(2, 24, 40, 4)
    masks, report = masks_of([batch, noise(1, 30, 20, 3, seed=1)])
    assert [tuple(mask.shape) for mask in masks] == [(1, 24, 40), (1, 24, 40), (1, 30, 20)]
    assert torch.equal(masks[1], masks_of([batch[1:, ..., :3]])[0][0])
    assert "found in 3 of 3 photos" in report


def test_a_photo_without_the_subject_gets_an_empty_mask_and_a_warning(folder, caplog):
    photos = [noise(32, 32, 3, seed=seed) for seed in range(2)]
    heights = [reference_logits(folder, photo, "teddy").max().item() for photo in photos]
    assert 0.02 < abs(heights[0] - heights[1]) < 2
    border = torch.tensor(0.1).logit().item() - sum(heights) / 2  # one photo comes above 0.1, the other below
    change_weights(folder, transposed_convolution__bias=lambda bias: bias + border)
    with caplog.at_level(logging.WARNING):
        masks, report = masks_of([photo[None] for photo in photos])
    lower = heights.index(min(heights))
    assert masks[lower].max() == 0
    assert masks[1 - lower].max() >= 0.1
    assert "'teddy' found in 1 of 2 photos" in report
    assert f"Not in photo {lower + 1}:" in report
    assert f"Not in photo {lower + 1}:" in caplog.text


def test_the_old_file_of_weights_gives_the_same_masks(folder):
    want = masks_of([noise(1, 32, 32, 3)])[0][0]
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no CLIPSeg model that can be read"):
        masks_of([noise(1, 32, 32, 3)])  # the safe file comes first
    weights.unlink()
    found = masks_of([noise(1, 32, 32, 3)])[0][0]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)  # not the bits on every machine: 3e-7 was seen


def test_a_list_of_parts_is_not_followed_out_of_the_folder(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="its weights lack"):
        masks_of([noise(1, 32, 32, 3)])


def test_a_folder_as_todays_transformers_saves_it_serves_too(folder):
    want = masks_of([noise(1, 32, 32, 3)])[0][0]
    processor = CLIPSegProcessor.from_pretrained(folder)
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    found = masks_of([noise(1, 32, 32, 3)])[0][0]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)  # not the bits on every machine: 3e-7 was seen


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_code_in_a_folder_does_not_run(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    want = masks_of([noise(1, 32, 32, 3)])[0][0]
    named = {
        "config.json": {"AutoConfig": "evil.A", "AutoModel": "evil.A"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.A", "evil.A"]},
        "preprocessor_config.json": {"AutoImageProcessor": "evil.A", "AutoProcessor": "evil.A"},
    }
    for name, classes in named.items():
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": classes, "attn_implementation": "evil/code", "tokenizer_class": "A"}
        (folder / name).write_text(json.dumps(content))
    found = masks_of([noise(1, 32, 32, 3)])[0][0]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)  # not the bits on every machine: 3e-7 was seen
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark), protocol=2))
    with pytest.raises(ValueError, match="no CLIPSeg model that can be read"):
        masks_of([noise(1, 32, 32, 3)])
    torch.save(Payload(mark), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no CLIPSeg model that can be read"):
        masks_of([noise(1, 32, 32, 3)])
    assert not mark.exists()


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replaced("config.json", b'{"model_type": "clip"}'), "of type 'clip'"),
        (replaced("config.json", b"{}"), "of type None"),
        (replaced("config.json", b"[]"), "no CLIPSeg model"),
        (replaced("config.json", b"\xff\xfe"), "no CLIPSeg model"),
        (replaced("config.json", b'{"model_type": "clipseg", "projection_dim": "wide"}'), "no CLIPSeg model"),
        (replaced("preprocessor_config.json", b"{"), "no CLIPSeg model"),
        (replaced("vocab.json", b"{"), "no CLIPSeg model"),
        (replaced("merges.txt", b"\xff"), "no CLIPSeg model"),
        (replaced("model.safetensors", b""), "no CLIPSeg model"),
        (lambda folder: change_weights(folder, film_mul__weight=lambda _: None), "its weights lack decoder.film_mul"),
        (
            lambda folder: change_weights(folder, film_mul__weight=lambda weight: weight[1:].clone()),
            "its weights lack decoder.film_mul",
        ),
        (lambda folder: change_weights(folder, film_mul__weight=torch.log), "gives NaN"),
    ],
)
def test_a_damaged_folder_is_named_with_what_to_do(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        masks_of([noise(1, 32, 32, 3)])
    assert NAME in str(caught.value)
    assert "Put the files of the Hugging Face repository CIDAS/clipseg-rd64-refined" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_cut_short_anywhere_is_named(folder):
    weights = (folder / "model.safetensors").read_bytes()
    for length in (4, 100, len(weights) // 2, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:length])
        with pytest.raises(ValueError, match="no CLIPSeg model that can be read"):
            masks_of([noise(1, 32, 32, 3)])


@pytest.mark.parametrize(
    ("images", "subject", "message"),
    [
        ([], "teddy", "no photos"),
        ([torch.zeros(0, 8, 8, 3)], "teddy", "no photos"),
        ([noise(1, 8, 8, 3)], "", "subject is empty"),
        ([noise(1, 8, 8, 3)], " \n", "subject is empty"),
        ([noise(1, 8, 8, 3)], "a very " * 50 + "old teddy", "subject has 104 tokens, CLIPSeg reads 77"),
        ([noise(1, 8, 8, 3), torch.full((1, 8, 8, 3), torch.nan)], "teddy", "Photo 2 holds NaN"),
    ],
)
def test_photos_and_words_that_cannot_be_used_are_named(folder, images, subject, message):
    with pytest.raises(ValueError, match=message):
        masks_of(images, subject)


def test_folders_are_offered_and_nothing_else_is_read(home, tmp_path, tiny):
    for name in ("b", "a", ".cache"):
        (home / name).mkdir()
    (home / "c.safetensors").touch()
    shutil.copytree(tiny, tmp_path / "outside")
    extra = tmp_path / "extra"
    shutil.copytree(tiny, extra / "d")
    folder_paths.folder_names_and_paths["clipseg"][0].extend([str(extra), str(tmp_path / "none")])
    assert clipseg.clipseg_names() == ["a", "b", "d"]
    assert clipseg.clipseg_folder("d") == extra / "d"
    for name in ("../outside", str(tmp_path / "outside"), "..", ".", "", "d/", "a/../../outside", "D/../d", "x\0", "c"):
        with pytest.raises(ValueError, match="There is no folder"):
            clipseg.clipseg_folder(name)


def test_missing_files_are_listed(folder):
    (folder / "merges.txt").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=rf"models/clipseg/{NAME} lacks model\.safetensors, merges\.txt\. Put the files"
    ):
        clipseg.clipseg_folder(NAME)


def test_registering_twice_keeps_the_folders_of_others(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"clipseg": ([str(tmp_path)], {".pt"})})
    clipseg.register()
    clipseg.register()
    default = str(Path(folder_paths.models_dir) / "clipseg")
    assert folder_paths.folder_names_and_paths["clipseg"] == ([str(tmp_path), default], {".pt"})


def validate(monkeypatch, model):
    """What the host says of a graph before it runs."""
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "PerfusionMasksFromText", PerfusionMasksFromText)
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PerfusionMasksFromText", "inputs": {"images": ["1", 0], "subject": "toy", "model": model}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    return asyncio.run(execution.validate_inputs("prompt", prompt, "2", {}))


def test_a_graph_without_the_model_fails_before_it_runs_and_says_what_to_put_where(home, tiny, monkeypatch):
    (offered,) = PerfusionMasksFromText.define_schema().inputs[2].options
    assert offered == NAME
    valid, (error,), _ = validate(monkeypatch, offered)
    assert not valid
    assert (
        "Hugging Face repository CIDAS/clipseg-rd64-refined into models/clipseg/clipseg-rd64-refined"
        in error["details"]
    )
    shutil.copytree(tiny, home / NAME)
    assert validate(monkeypatch, NAME)[:2] == (True, [])
    assert validate(monkeypatch, "../tiny")[0] is False
    assert validate(monkeypatch, ["1", 0])[0] is False  # a picture is no name
    assert PerfusionMasksFromText.validate_inputs((None,)) is True  # a connected name is known only when it runs


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_model_is_freed_afterwards_and_cancel_is_obeyed_between_photos(folder, monkeypatch, cancelled):
    loaded, made, left = [], [], []
    load, mask = clipseg._load, clipseg._mask

    def load_seen(folder):
        loaded.append(load(folder))
        return loaded[-1]

    def mask_seen(*args):
        made.append(mask(*args))
        comfy.model_management.interrupt_current_processing(cancelled)
        return made[-1]

    monkeypatch.setattr(clipseg, "_load", load_seen)
    monkeypatch.setattr(clipseg, "_mask", mask_seen)
    held = lambda: left.append({weight.device.type for weight in loaded[0][0].parameters()})  # noqa: E731
    monkeypatch.setattr(comfy.model_management, "soft_empty_cache", held)
    if cancelled:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            masks_of([noise(3, 32, 32, 3)])
    else:
        assert len(masks_of([noise(3, 32, 32, 3)])[0]) == 3
    assert len(made) == (1 if cancelled else 3)
    assert left[-1] == {"meta"}  # when the host gives memory back, the model holds none
