"""The best settings of a concept, found by painting and judging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..perfusion_core.checkpoints import harmonic_mean
from .host.model import apply_to_model, default_resolution
from .host.photos import prepare_photos
from .host.progress import Cancelled, Progress, cut_short, times_cut_short
from .host.sampling import Sampling
from .host.scorers import chosen_scorer, scorer_input
from .host.text import apply_to_clip
from .host.trainee import Subject
from .host.uses import ConceptUse
from .plots import as_image, similarities
from .prompts import prompt_lines, with_places, with_triggers
from .run import judge
from .schema import ADVANCED, INSPECT, Concepts, sampling_inputs

_PROMPTS = "a photo of {} on the beach\nan oil painting of {}\n{} wearing a hat\n{} in the snow"
_COARSE = {
    "beta": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "key_lock": (0.0, 0.5, 1.0),
    "temperature": (0.05, 0.1, 0.2),
}  # the most telling one first
_STEPS = {"beta": 0.05, "key_lock": 0.25, "temperature": 0.05}
_LEAST = {"beta": 0.0, "key_lock": 0.0, "temperature": 0.01}
_FINEST = 0.01


class PerfusionTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionTune",
            display_name="Perfusion Tune",
            category=INSPECT,
            description="Looks for the beta, temperature and key_lock at which pictures are most like both your photos "
            "and their prompts, by an image-text model of yours. Cancel when you like: the best so far is kept.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model, without the concept."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint, without the concept."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                Concepts.Input("concept", tooltip="The concept. Its settings are tried first."),
                io.Image.Input("photos", tooltip="Your photos of the subject, as a batch or a list of any sizes."),
                io.String.Input(
                    "prompts",
                    default=_PROMPTS,
                    multiline=True,
                    tooltip="What to paint, one on each line, with the trigger, or {} in its place.",
                ),
                io.Int.Input(
                    "budget",
                    default=160,
                    min=0,
                    max=100_000,
                    tooltip="Pictures to paint in all. A setting takes one for each prompt, times pictures.",
                ),
                io.Int.Input(
                    "pictures",
                    default=2,
                    min=1,
                    max=16,
                    tooltip="Of each prompt, in one batch. The same noise for all settings.",
                    **ADVANCED,
                ),
                scorer_input(**ADVANCED),
                io.String.Input("negative", multiline=True, tooltip="The negative prompt.", **ADVANCED),
                *sampling_inputs(),
            ],
            outputs=[
                Concepts.Output(display_name="concept", tooltip="The concept with the best settings."),
                io.Float.Output(display_name="beta"),
                io.Float.Output(display_name="temperature"),
                io.Float.Output(display_name="key_lock"),
                io.Image.Output(display_name="plot", tooltip="What was tried: likeness to photos and to prompts."),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> int:
        return times_cut_short(cls.hidden.unique_id)

    @classmethod
    def execute(cls, photos, **lists) -> io.NodeOutput:
        best, trials, report = _tune(cls.hidden.unique_id, photos, **{name: it[0] for name, it in lists.items()})
        plot = as_image(_plot(trials))
        return io.NodeOutput(
            (best,), best.beta, best.temperature, best.key_lock, plot, report, ui=ui.PreviewImage(plot)
        )


@dataclass(frozen=True)
class Trial:
    """Settings, and how good the pictures with them are: the mean CLIP-I and CLIP-T."""

    settings: Mapping[str, float]  # beta, key_lock, temperature
    image_similarity: float
    text_similarity: float

    @property
    def score(self) -> float:
        return harmonic_mean(self.image_similarity, self.text_similarity)


def best_of(trials: Sequence[Trial]) -> Trial:
    """The highest score; the first of equals."""
    return max(trials, key=lambda trial: trial.score)


def search(
    judged: Callable[[Mapping[str, float]], tuple[float, float]], start: Mapping[str, float], tries: int
) -> Iterator[Trial]:
    """Yields at most so many trials of different settings, each as soon as it is judged by (CLIP-I, CLIP-T).

    After the start one setting at a time is changed from the best so far: first through a few values of its range, beta
    before key_lock before temperature, then by steps to both sides, which halve when none of them is better. It ends by
    itself where no step of 0.01 helps.
    """
    trials: dict[tuple[float, ...], Trial] = {}
    for settings in _proposals(start, lambda: best_of(list(trials.values())).settings):
        key = tuple(settings.values())
        if key in trials:
            continue
        trials[key] = Trial(settings, *judged(settings))
        yield trials[key]
        if len(trials) == tries:
            return


def _proposals(start: Mapping[str, float], best: Callable[[], Mapping[str, float]]) -> Iterator[Mapping[str, float]]:
    yield start
    for name, values in _COARSE.items():
        for value in values:
            yield {**best(), name: value}
    steps = _STEPS
    while max(steps.values()) >= _FINEST:
        before = best()
        for name, step in steps.items():
            for change in (step, -step):
                value = round(min(max(best()[name] + change, _LEAST[name]), 1.0), 2)
                yield {**best(), name: value}
        if best() == before:
            steps = {name: step / 2 for name, step in steps.items()}


def _tune(
    node_id, photos, model, clip, vae, concept, prompts, budget, pictures, scorer, negative, seed, **settings
) -> tuple[ConceptUse, list[Trial], str]:
    """The concept with its best settings, all trials in order, and a report."""
    if len(concept) != 1:
        raise ValueError(f"One concept is tuned at a time, these are {len(concept)}: connect them one by one.")
    (use,) = concept
    sentences = [with_places(line, use.concept) for line in prompt_lines(prompts)]
    for sentence in sentences:
        if "{}" not in sentence:
            raise ValueError(
                f"The prompt {sentence!r} does not name {use.concept.trigger}. Write it there, or {{}} in its place."
            )
    if not sentences:
        raise ValueError(f"There are no prompts. Write one on each line, with {use.concept.trigger} or {{}} in it.")
    each = len(sentences) * pictures
    if budget < each:
        raise ValueError(
            f"The budget is {budget} pictures, and to try one setting takes {each}: {len(sentences)} prompts, "
            f"{pictures} of each. Set it to {each} at least, better to {20 * each}."
        )
    sampling, name = Sampling(**settings), chosen_scorer(scorer)
    squares, _ = prepare_photos(photos, (), sampling.resolution or default_resolution(model))
    repeated = [sentence for sentence in sentences for _ in range(pictures)]
    score = judge(name, Subject(squares, None, [], use.concept.superclass), repeated)
    tries, trials = budget // each, []
    progress = Progress(tries * each, node_id)

    def judged(changes: Mapping[str, float]) -> tuple[float, float]:
        tried, painted = use.replace(**changes), []
        models = apply_to_model(model, [tried]), apply_to_clip(clip, [tried])
        for sentence in sentences:
            prompt = with_triggers(sentence, [use.concept])
            painted.append(sampling.paint(*models, vae, prompt, negative, seed, pictures))
            done = len(trials) * each + len(painted) * pictures
            progress.update(done, f"setting {len(trials) + 1} of {tries}", _plot(trials) if trials else None)
        return score(torch.cat(painted))

    try:
        for trial in search(judged, {name: getattr(use, name) for name in _COARSE}, tries):
            trials.append(trial)
    except Cancelled:
        if not trials:
            raise
        cut_short(node_id)
    how = f"{len(sentences)} prompts, {pictures} pictures of each from seed {seed}, judged by {name}."
    return use.replace(**best_of(trials).settings), trials, f"{_report(trials)}\n{how}"


def _words(trial: Trial) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in trial.settings.items())


def _plot(trials: Sequence[Trial]) -> Image.Image:
    best = best_of(trials)
    points = [(trial.image_similarity, trial.text_similarity) for trial in trials]
    return similarities(points, trials.index(best), f"best: {_words(best)}")


def _report(trials: Sequence[Trial]) -> str:
    """A table, best first."""
    best, first = best_of(trials), trials[0]
    lines = [
        f"Best of {len(trials)} settings: {_words(best)}. As it came: {_words(first)}.",
        "  beta  key_lock  temperature  CLIP-I  CLIP-T  harmonic mean",
    ]
    for trial in sorted(trials, key=lambda trial: -trial.score):
        beta, key_lock, temperature = trial.settings.values()
        numbers = f"{trial.image_similarity:6.4f}  {trial.text_similarity:6.4f}  {trial.score:.4f}"
        lines.append(f"{beta:6.2f}  {key_lock:8.2f}  {temperature:11.2f}  {numbers}")
    return "\n".join(lines)
