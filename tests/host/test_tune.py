"""The search finds optima that are known, and the node paints, judges and returns what it says."""

import types

import comfy.model_management
import folder_paths
import pytest
import torch
from comfyui_perfusion.nodes import tune
from comfyui_perfusion.nodes.demo import PerfusionDemoModel
from comfyui_perfusion.nodes.host.model import apply_to_model
from comfyui_perfusion.nodes.host.photos import prepare_photos
from comfyui_perfusion.nodes.host.sampling import Sampling
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.tune import PerfusionTune, best_of, search
from comfyui_perfusion.perfusion_core.checkpoints import harmonic_mean
from comfyui_perfusion.perfusion_core.openclip import image_similarity, load_image_text_model, text_similarity

from makers import make_concept
from test_training_node import make_scorer

CANCEL = comfy.model_management.InterruptProcessingException
START = {"beta": 0.6, "key_lock": 0.0, "temperature": 0.15}
OPTIMA = [
    {"beta": 0.73, "key_lock": 0.35, "temperature": 0.08},
    {"beta": 0.42, "key_lock": 1.0, "temperature": 0.21},
    {"beta": 0.97, "key_lock": 0.0, "temperature": 0.02},
]
PHOTOS = torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(1))
LISTS = {
    "prompts": "a photo of {}\na <My-Toy> on snow", "budget": 12, "pictures": 2, "scorer": "auto", "negative": "",
    "seed": 5, "steps": 2, "cfg": 5.0, "sampler": "euler", "scheduler": "normal", "resolution": 0,
}  # fmt: skip


def hill(optimum):
    """A judge whose harmonic mean is highest at the optimum; CLIP-I and CLIP-T fall in different ways around it."""

    def judged(settings):
        away = {name: settings[name] - optimum[name] for name in settings}
        down = away["beta"] ** 2 + 0.1 * away["key_lock"] ** 2 + away["temperature"] ** 2
        return 0.8 - down, 0.3 - down / 2

    return judged


@pytest.mark.parametrize("optimum", OPTIMA)
def test_a_known_optimum_is_found_nearly_with_few_tries_and_exactly_with_many(optimum):
    few = best_of(list(search(hill(optimum), START, 24))).settings
    assert all(abs(few[name] - optimum[name]) <= reach for name, reach in (("beta", 0.05), ("temperature", 0.05)))
    many = best_of(list(search(hill(optimum), START, 1000))).settings
    assert many == pytest.approx(optimum, abs=0.011)


@pytest.mark.parametrize("tries", [1, 2, 7, 15, 30])
def test_every_try_is_of_other_settings_within_their_ranges_and_the_start_is_the_first(tries):
    trials = list(search(hill(OPTIMA[2]), START, tries))
    assert len(trials) == len({tuple(trial.settings.values()) for trial in trials}) == tries
    assert trials[0].settings == START
    for trial in trials:
        assert 0 <= trial.settings["beta"] <= 1 and 0 <= trial.settings["key_lock"] <= 1
        assert 0.01 <= trial.settings["temperature"] <= 1


def test_more_tries_are_never_worse_and_where_all_is_equal_the_settings_stay():
    scores = [best_of(list(search(hill(OPTIMA[0]), START, tries))).score for tries in range(1, 40)]
    assert scores == sorted(scores)
    flat = list(search(lambda _: (0.5, 0.5), START, 10_000))
    assert best_of(flat).settings == START and len(flat) < 100


# --- the node ---


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch, tmp_path, model_folder):
    monkeypatch.setattr(PerfusionTune, "hidden", types.SimpleNamespace(unique_id=None))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    make_scorer(model_folder.parent / "open_clip" / "tiny")


@pytest.fixture(scope="module")
def demo():
    with torch.inference_mode():
        return PerfusionDemoModel.execute().args


def run(demo, uses=1, photos=(PHOTOS,), **changes):
    model, clip, vae = demo
    concept = tuple(ConceptUse(make_concept(model, clip, "<my-toy>", "bear"), **START) for _ in range(uses))
    lists = {"model": model, "clip": clip, "vae": vae, "concept": concept, **LISTS, **changes}
    return PerfusionTune.execute(list(photos), **{name: [value] for name, value in lists.items()}).args


def paint_settings(monkeypatch) -> list[tuple]:
    """Pictures that are their settings: beta, key_lock and temperature in the three channels. Lists what was asked."""
    asked = []

    def paint(self, model, clip, vae, text, negative, seed, count=1):
        (use,), known = model.get_attachment("perfusion"), clip.patcher.get_attachment("perfusion")
        assert known == (use,)
        asked.append((text, seed, count))
        return torch.tensor([use.beta, use.key_lock, use.temperature]).expand(count, 64, 64, 3)

    def judge(name, subject, sentences):
        assert (name, subject.superclass, subject.photos.shape) == ("tiny", "bear", (2, 64, 64, 3))
        assert list(sentences) == ["a photo of {}", "a photo of {}", "a {} on snow", "a {} on snow"]

        def score(pictures):
            assert len(pictures) == 4
            channels = [round(value, 3) for value in pictures[0, 0, 0].tolist()]
            return hill(OPTIMA[0])(dict(zip(START, channels, strict=True)))

        return score

    monkeypatch.setattr(Sampling, "paint", paint)
    monkeypatch.setattr(tune, "judge", judge)
    return asked


def test_the_best_settings_come_back_on_the_concept_as_numbers_and_in_the_report(demo, monkeypatch):
    asked = paint_settings(monkeypatch)
    (use,), beta, temperature, key_lock, plot, report = run(demo, budget=163)
    found = {"beta": beta, "key_lock": key_lock, "temperature": temperature}
    assert found == {name: getattr(use, name) for name in START}
    assert found == best_of(list(search(hill(OPTIMA[0]), START, 40))).settings
    assert len(asked) == 80 and set(asked) == {("a photo of <my-toy>", 5, 2), ("a <my-toy> on snow", 5, 2)}
    first, _, best, *others = report.splitlines()
    assert first.startswith(f"Best of 40 settings: beta {beta:g}, key_lock {key_lock:g}, temperature {temperature:g}.")
    image, text, mean = map(float, best.split()[3:])
    assert mean == pytest.approx(harmonic_mean(image, text), abs=1e-3)
    assert others[-1] == "2 prompts, 2 pictures of each from seed 5, judged by tiny." and len(others) == 40
    assert plot.shape == (1, 400, 720, 3)
    red = (plot[0] - torch.tensor([0xD5, 0x5E, 0x00]) / 255).abs().amax(-1) < 0.01
    assert red[60:].any()  # the mark of the best


def test_what_is_reported_is_what_the_pictures_score(demo, model_folder):
    (use,), *_, report = run(demo)
    assert use.concept.trigger == "<my-toy>"
    model = load_image_text_model(model_folder.parent / "open_clip" / "tiny")
    models = apply_to_model(demo[0], [use]), apply_to_clip(demo[1], [use])
    sampling = Sampling(2, 5.0, "euler", "normal")
    pictures = torch.cat(
        [sampling.paint(*models, demo[2], text, "", 5, 2) for text in ("a photo of <my-toy>", "a <my-toy> on snow")]
    )
    image = image_similarity(model, pictures, prepare_photos([PHOTOS], (), 64)[0]).mean()
    text = text_similarity(model, pictures, ["a photo of bear"] * 2 + ["a bear on snow"] * 2).mean()
    numbers = [float(number) for number in report.splitlines()[2].split()]
    assert numbers[:3] == [use.beta, use.key_lock, use.temperature]
    assert numbers[3:5] == pytest.approx([image.item(), text.item()], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget is 0 pictures, and to try one setting takes 4: 2 prompts, 2 of each. Set it to 4"),
        ({"budget": 3}, "budget is 3 pictures"),
        ({"prompts": "a photo of {}\na photo of a bear"}, "'a photo of a bear' does not name <my-toy>"),
        ({"prompts": "\n"}, "There are no prompts"),
        ({"uses": 2}, "One concept is tuned at a time, these are 2"),
        ({"photos": ()}, "There are no photos"),
        ({"scorer": "../tiny"}, "There is no model"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_painted(demo, monkeypatch, changes, message):
    monkeypatch.setattr(Sampling, "paint", None)
    with pytest.raises(ValueError, match=message):
        run(demo, **changes)


@pytest.mark.parametrize("finished", [0, 1, 5])
def test_a_cancel_returns_the_best_so_far_if_there_is_one(demo, monkeypatch, finished):
    asked = paint_settings(monkeypatch)
    paint = Sampling.paint

    def paint_until(self, *args):
        if len(asked) == 2 * finished + 1:  # amid the next setting
            comfy.model_management.interrupt_current_processing()
        return paint(self, *args)

    monkeypatch.setattr(Sampling, "paint", paint_until)
    before = PerfusionTune.fingerprint_inputs()
    if not finished:
        with pytest.raises(CANCEL):
            run(demo, budget=100)
        return
    (use,), *_, report = run(demo, budget=100)
    expected = best_of(list(search(hill(OPTIMA[0]), START, finished))).settings
    assert {name: getattr(use, name) for name in START} == pytest.approx(expected)
    assert report.startswith(f"Best of {finished} settings")
    assert PerfusionTune.fingerprint_inputs() != before  # the host does not keep it for the next run
