"""Scores of pictures are the core's, for all ways in which pictures, photos and prompts come in."""

import math
import sys

import folder_paths
import pytest
import torch
from comfyui_perfusion.nodes.host.scorers import scorer_names, scorer_path
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.score import PerfusionScore
from comfyui_perfusion.perfusion_core.checkpoints import harmonic_mean
from comfyui_perfusion.perfusion_core.openclip import image_similarity, load_image_text_model, text_similarity
from safetensors.torch import load_file, save_file

from makers import make_concept
from test_training_node import make_scorer

PICTURES = torch.rand(3, 40, 52, 3, generator=torch.Generator().manual_seed(0))
PHOTOS = torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(1))
PROMPTS = ["a red bear", "a cat, on snow", "a house"]


@pytest.fixture
def scorers(model_folder):
    """An empty models/open_clip but for the model tiny."""
    folder = model_folder.parent / "open_clip"
    make_scorer(folder / "tiny")
    return folder


@pytest.fixture
def clip_folder(tmp_path, monkeypatch):
    """An empty models/clip."""
    folder = tmp_path / "clip"
    folder.mkdir()
    endings = folder_paths.folder_names_and_paths["text_encoders"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "text_encoders", ([str(folder)], endings))
    return folder


def score(pictures=(PICTURES,), scorer="tiny", **lists):
    return PerfusionScore.execute([scorer], list(pictures), **lists).args


def test_the_scores_are_those_of_the_core(scorers):
    image, text, both, report = score(photos=[PHOTOS], prompts=["\n".join(PROMPTS)])
    model = load_image_text_model(scorers / "tiny")
    images, texts = image_similarity(model, PICTURES, PHOTOS), text_similarity(model, PICTURES, PROMPTS)
    assert image == pytest.approx(images.mean().item(), abs=1e-6)
    assert text == pytest.approx(texts.mean().item(), abs=1e-6)
    assert both == harmonic_mean(image, text)
    rows = [line.split(maxsplit=3) for line in report.splitlines()[2:5]]
    for number, row in enumerate(rows):
        assert row == [str(number + 1), f"{images[number]:.4f}", f"{texts[number]:.4f}", PROMPTS[number]]
    assert report.splitlines()[0] == "By tiny:" and f"{image:.4f}  {text:.4f}" in report.splitlines()[5]


def test_pictures_and_photos_of_any_sizes_come_as_lists_or_batches(scorers):
    big = torch.nn.functional.interpolate(PICTURES.movedim(-1, 1), (80, 80)).movedim(1, -1)
    image, text, *_ = score([PICTURES, big[:1]], photos=[PHOTOS[:1], PHOTOS[1:]], prompts=[*PROMPTS, "a dog"])
    model = load_image_text_model(scorers / "tiny")
    images = torch.cat([image_similarity(model, PICTURES, PHOTOS), image_similarity(model, big[:1], PHOTOS)])
    texts = torch.cat([text_similarity(model, PICTURES, PROMPTS), text_similarity(model, big[:1], ["a dog"])])
    assert image == pytest.approx(images.mean().item(), abs=1e-6)
    assert text == pytest.approx(texts.mean().item(), abs=1e-6)


def test_what_is_not_given_is_no_number(scorers):
    image, text, both, _ = score(photos=[PHOTOS], scorer="auto")
    assert not math.isnan(image) and math.isnan(text) and math.isnan(both)
    image, text, both, report = score(prompts=[PROMPTS[0]], photos=[])
    assert math.isnan(image) and not math.isnan(text) and math.isnan(both)
    assert "CLIP-I" not in report


def test_one_line_is_for_all_pictures_and_triggers_are_read_as_their_superclass(scorers, models):
    use = ConceptUse(make_concept(*models("sd1")[:2], "<my-toy>", "bear"))
    _, text, *_ = score(prompts=["a red <My-Toy>"], concepts=[(use,)])
    model = load_image_text_model(scorers / "tiny")
    assert text == pytest.approx(text_similarity(model, PICTURES, ["a red bear"] * 3).mean().item(), abs=1e-6)
    assert text != pytest.approx(score(prompts=["a red <My-Toy>"])[1], abs=1e-6)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({}, "nothing to compare the pictures to. Connect photos, write prompts, or both"),
        ({"prompts": [" \n "]}, "nothing to compare"),
        ({"prompts": ["a cat\na dog"]}, "2 prompts for 3 pictures. Write one for all, or one for each"),
        ({"prompts": ["a cat"], "scorer": "../tiny"}, "There is no model '../tiny'"),
        ({"photos": [PHOTOS * math.nan]}, "hold NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_what_to_do(scorers, lists, message):
    with pytest.raises(ValueError, match=message):
        score(**lists)


def test_without_a_model_or_the_package_it_says_what_to_get(model_folder, clip_folder, monkeypatch):
    with pytest.raises(ValueError, match=r"Put one into models/open_clip"):
        score(prompts=PROMPTS[:1], scorer="auto")
    make_scorer(model_folder.parent / "open_clip" / "tiny")
    folder_paths.filename_list_cache.clear()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        score(prompts=PROMPTS[:1], scorer="auto")


def test_a_text_encoder_alone_is_refused(scorers):
    weights = load_file(scorers / "tiny" / "open_clip_model.safetensors")
    texts = {name: part for name, part in weights.items() if not name.startswith("visual.")}
    save_file(texts, scorers / "clip_l.safetensors")
    with pytest.raises(ValueError, match=r"clip_l\.safetensors is a text encoder alone"):
        score(prompts=PROMPTS[:1], scorer="clip_l.safetensors")


def test_models_clip_offers_its_image_text_models_and_no_text_encoders(scorers, clip_folder):
    make_scorer(clip_folder / "in_clip")
    weights = load_file(clip_folder / "in_clip" / "open_clip_model.safetensors")
    save_file(weights, clip_folder / "ViT-tiny.safetensors")
    texts = {name: part for name, part in weights.items() if not name.startswith("visual.")}
    save_file(texts, clip_folder / "clip_l.safetensors")
    (clip_folder / "t5.safetensors").write_bytes(b"damaged")
    (clip_folder / "clip_g.bin").write_bytes(b"")
    make_scorer(clip_folder / "tiny")  # hidden by the one in models/open_clip
    assert scorer_names() == ["tiny", "ViT-tiny.safetensors", "in_clip"]
    assert scorer_path("in_clip") == clip_folder / "in_clip"
    assert scorer_path("tiny") == scorers / "tiny"
    for name in ("clip_l.safetensors", "../clip/in_clip", "t5.safetensors"):
        with pytest.raises(ValueError, match="There is no model"):
            scorer_path(name)
    assert math.isfinite(score(prompts=PROMPTS[:1], scorer="in_clip")[1])
