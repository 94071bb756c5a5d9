"""The search finds optima that are known, and the node paints, judges and returns what it says."""

import types
from statistics import fmean

import comfy.model_management
import folder_paths
import optuna
import pytest
import torch
from comfyui_perfusion.nodes import search as search_module
from comfyui_perfusion.nodes import tune
from comfyui_perfusion.nodes.demo import PerfusionDemoModel
from comfyui_perfusion.nodes.host.model import apply_to_model
from comfyui_perfusion.nodes.host.photos import prepare_photos
from comfyui_perfusion.nodes.host.sampling import Sampling
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.search import RANGES, Trial, best_of, front, search
from comfyui_perfusion.nodes.tune import PerfusionTune
from comfyui_perfusion.perfusion_core.checkpoints import harmonic_mean
from comfyui_perfusion.perfusion_core.openclip import image_similarity, load_image_text_model, text_similarity
from PIL import Image

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


class Painter:
    """Four pictures for every setting, two at a time, each with a luck of its own. Counts what it made."""

    def __init__(self, judged):
        self.judged, self.painted = judged, 0
        self.luck = 0.02 * torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def __call__(self, settings):
        for luck in self.luck:
            self.painted += 2
            yield [tuple(pair) for pair in (luck + torch.tensor(self.judged(settings), dtype=torch.float64)).tolist()]


@pytest.fixture
def by_chance(monkeypatch):
    """Proposals that need no thought, for what is not about how good they are."""
    monkeypatch.setattr(search_module, "_sampler", lambda seed: optuna.samplers.RandomSampler(seed))


def searched(painter, file, tries, seed=3, start=START):
    *_, trials = search(painter, start, 4, 4 * tries, seed, file)
    return trials


def test_a_known_optimum_is_found_nearly(tmp_path):
    best = best_of(searched(Painter(hill(OPTIMA[0])), tmp_path / "a.log", 14))
    assert best.settings["beta"] == pytest.approx(OPTIMA[0]["beta"], abs=0.1)
    assert best.means[0] > 0.78  # the start has 0.768, at beta 0.7 it would have 0.78


def test_the_start_comes_first_and_all_others_are_within_their_ranges_and_different(tmp_path, by_chance):
    start = {"beta": 0.123, "key_lock": 0.5, "temperature": 1.0}  # as a concept may come
    trials = searched(Painter(hill(OPTIMA[2])), tmp_path / "a.log", 30, start=start)
    assert trials[0].settings == start
    assert len({tuple(trial.settings.values()) for trial in trials}) == len(trials) >= 30
    for trial in trials[1 + len(search_module._FIRST) :]:  # those before change one setting of the best
        assert all(low <= trial.settings[name] <= high for name, (low, high) in RANGES.items())


def test_a_search_in_several_runs_is_the_search_in_one(tmp_path, by_chance):
    whole, parts = (Painter(hill(OPTIMA[0])) for _ in range(2))
    at_once = searched(whole, tmp_path / "whole.log", 20)
    for tries in (3, 3, 8, 20):
        in_parts = searched(parts, tmp_path / "parts.log", tries)
    assert in_parts == at_once
    assert parts.painted == whole.painted + 3 * 4  # the start again, in each of three runs that went on
    assert searched(Painter(hill(OPTIMA[0])), tmp_path / "other seed.log", 20, seed=4)[5:] != at_once[5:]


def test_a_study_of_something_else_or_a_damaged_one_is_not_gone_on_with(tmp_path, by_chance):
    file = tmp_path / "a.log"
    fresh = searched(Painter(hill(OPTIMA[1])), tmp_path / "fresh.log", 9)
    searched(Painter(hill(OPTIMA[0])), file, 12)
    assert searched(Painter(hill(OPTIMA[1])), file, 9) == fresh
    for damaged in (b"no journal\n", file.read_bytes()[:-40] + b"\0" * 40 + b"\n{}\n", b""):
        file.write_bytes(damaged)
        assert searched(Painter(hill(OPTIMA[1])), file, 9) == fresh


@pytest.mark.parametrize("whole", [0, 1, 7])
def test_what_was_cut_short_is_asked_for_again(tmp_path, by_chance, whole):
    painter = Painter(hill(OPTIMA[0]))
    at_once = searched(Painter(hill(OPTIMA[0])), tmp_path / "whole.log", 12)

    def cut_short(settings):
        for part in painter(settings):
            if painter.painted > sum(len(trial.scores) for trial in at_once[:whole]):
                raise KeyboardInterrupt
            yield part

    with pytest.raises(KeyboardInterrupt):
        searched(cut_short, tmp_path / "a.log", 12)
    assert searched(Painter(hill(OPTIMA[0])), tmp_path / "a.log", 12) == at_once


def test_a_study_with_trials_cut_short_as_earlier_versions_kept_them_goes_on(tmp_path, by_chance):
    painter, file = Painter(hill(OPTIMA[0])), tmp_path / "a.log"
    searched(painter, file, 4)
    study = search_module._study(file)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    study.ask()
    at_once = Painter(hill(OPTIMA[0]))
    assert searched(painter, file, 8) == searched(at_once, tmp_path / "whole.log", 8)
    assert painter.painted == at_once.painted + 4  # the start again, and nothing else


def test_only_what_cannot_reach_the_front_is_given_up_and_it_costs_less(tmp_path, by_chance):
    painter = Painter(hill(OPTIMA[0]))
    trials = searched(painter, tmp_path / "a.log", 40)
    given_up = [trial for trial in trials if trial.given_up]
    assert len(given_up) > 5 and len(trials) > 40
    assert painter.painted == sum(len(trial.scores) for trial in trials) <= 160
    best, line = best_of(trials), front(trials)
    assert best in line and not set(map(id, given_up)) & set(map(id, line))
    for trial in given_up:
        means = [fmean(numbers) for numbers in zip(*(pair for part in Painter(hill(OPTIMA[0]))(trial.settings)
                                                     for pair in part), strict=True)]  # fmt: skip
        assert any(means[0] < other.means[0] and means[1] < other.means[1] for other in line)


def test_the_front_is_what_nothing_beats_in_both():
    pairs = [(0.5, 0.3), (0.6, 0.2), (0.55, 0.25), (0.5, 0.2), (0.7, 0.1), (0.6, 0.1), (0.9, 0.9)]
    trials = [Trial({"beta": number}, [pair], given_up=pair == (0.9, 0.9)) for number, pair in enumerate(pairs)]
    assert [trial.means for trial in front(trials)] == [(0.7, 0.1), (0.6, 0.2), (0.55, 0.25), (0.5, 0.3)]


def test_where_all_is_equal_the_settings_stay(tmp_path, by_chance):
    assert best_of(searched(Painter(lambda _: (0.5, 0.5)), tmp_path / "a.log", 15)).settings == START


# --- the node ---


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch, tmp_path, model_folder, by_chance):
    monkeypatch.setattr(PerfusionTune, "hidden", types.SimpleNamespace(unique_id=None))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    make_scorer(model_folder.parent / "open_clip" / "tiny")


@pytest.fixture
def no_plots(monkeypatch):
    """None is drawn after every setting, for what is not about them."""
    monkeypatch.setattr(tune, "similarities", lambda *_: Image.new("RGB", (1, 1)))


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
        return torch.tensor([use.beta, use.key_lock, use.temperature]).expand(count, 96, 96, 3)

    def judge_each(name, subject, sentences):
        assert (name, subject.superclass, subject.photos.shape) == ("tiny", "bear", (2, 96, 96, 3))
        assert list(sentences) == ["a photo of {}", "a photo of {}", "a {} on snow", "a {} on snow"]

        def scores(pictures, first):
            assert len(pictures) == 2 and first in (0, 2)
            channels = [round(value, 3) for value in pictures[0, 0, 0].tolist()]
            return torch.tensor(hill(OPTIMA[0])(dict(zip(START, channels, strict=True)))).expand(2, 2)

        return scores

    monkeypatch.setattr(Sampling, "paint", paint)
    monkeypatch.setattr(tune, "judge_each", judge_each)
    return asked


def test_the_best_settings_come_back_on_the_concept_as_numbers_and_in_the_report(demo, monkeypatch):
    asked = paint_settings(monkeypatch)
    (use,), beta, temperature, key_lock, plot, report = run(demo, budget=163)
    found = {"beta": beta, "key_lock": key_lock, "temperature": temperature}
    assert found == {name: getattr(use, name) for name in START}
    first, _, _, best, *others = report.splitlines()
    assert first.startswith(
        f"Chosen from {len(others)} settings: beta {beta:g}, key_lock {key_lock:g}, temperature {temperature:g}."
    )
    assert set(asked) == {("a photo of <my-toy>", 5, 2), ("a <my-toy> on snow", 5, 2)} and len(asked) <= 81
    image, text, mean = map(float, best.split()[-3:])
    assert mean == pytest.approx(harmonic_mean(image, text), abs=1e-3) and best.startswith("*")
    assert mean == pytest.approx(harmonic_mean(*hill(OPTIMA[0])(found)), abs=1e-3) and mean > 0.4
    assert others[-1] == "2 prompts, 2 pictures of each from seed 5, judged by tiny."
    assert plot.shape == (1, 400, 720, 3)
    red = (plot[0] - torch.tensor([0xD5, 0x5E, 0x00]) / 255).abs().amax(-1) < 0.01
    assert red[60:].any()  # the mark of the best


def test_a_larger_budget_goes_on_and_other_photos_begin_anew(demo, monkeypatch, no_plots):
    asked = paint_settings(monkeypatch)
    run(demo, budget=40)
    once = len(asked)
    *_, report = run(demo, budget=80)
    assert once + 2 < len(asked) <= 40 + 2  # both prompts of the start again
    asked.clear()
    *_, anew = run(demo, budget=80, photos=(1 - PHOTOS,))
    assert anew == report and len(asked) <= 40


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
    numbers = [float(number) for number in report.splitlines()[3].lstrip("*").split()]
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


@pytest.mark.parametrize("prompts", [0, 3, 9])
def test_a_cancel_returns_the_best_so_far_if_there_is_one_and_the_next_run_goes_on(
    demo, monkeypatch, no_plots, tmp_path, prompts
):
    asked = paint_settings(monkeypatch)
    paint = Sampling.paint

    def paint_until(self, *args):
        if len(asked) == prompts:
            comfy.model_management.interrupt_current_processing()
        return paint(self, *args)

    before = PerfusionTune.fingerprint_inputs()
    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "paint", paint_until)
        if prompts:
            *_, report = run(demo, budget=60)
            assert "As it came: beta 0.6, key_lock 0, temperature 0.15." in report
            assert PerfusionTune.fingerprint_inputs() != before  # the host does not keep it for the next run
        else:
            with pytest.raises(CANCEL):
                run(demo, budget=60)
    *_, whole = run(demo, budget=60)
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "another"))
    assert run(demo, budget=60)[-1] == whole != (report if prompts else "")
