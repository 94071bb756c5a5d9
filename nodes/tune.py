"""The best settings of a concept, found by painting and judging."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..perfusion_core.training_file import digest
from .host.families import family_of
from .host.model import apply_to_model, default_resolution
from .host.own_folder import own_folder
from .host.photos import prepare_photos
from .host.progress import Cancelled, Progress, run_again, times_run_again
from .host.sampling import Sampling
from .host.scorers import chosen_scorer, scorer_input
from .host.text import apply_to_clip
from .host.trainee import Subject
from .host.uses import ConceptUse
from .plots import as_image, similarities
from .prompts import prompt_lines, with_places, with_triggers
from .run import judge_each
from .schema import ADVANCED, INSPECT, Concepts, sampling_inputs
from .search import RANGES, Pair, Trial, best_of, front, search

_PROMPTS = "a photo of {} on the beach\nan oil painting of {}\n{} wearing a hat\n{} in the snow"


class PerfusionTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionTune",
            display_name="Perfusion Tune",
            category=INSPECT,
            description="Looks for the beta, temperature and key_lock at which pictures are most like both your photos "
            "and their prompts, by an image-text model of yours. Cancel when you like: you get the best so far, and "
            "the next run goes on.",
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
                    tooltip="Pictures to paint in all, earlier runs included: raise it and the search goes on. "
                    "A setting takes one for each prompt, times pictures.",
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
                io.Image.Output(
                    display_name="plot",
                    tooltip="Every setting by likeness to photos and to prompts. On the line none is better in both.",
                ),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> int:
        return times_run_again(cls.hidden.unique_id)

    @classmethod
    def execute(cls, photos, **lists) -> io.NodeOutput:
        best, trials, report = _tune(cls.hidden.unique_id, photos, **{name: it[0] for name, it in lists.items()})
        plot = as_image(_plot(trials))
        return io.NodeOutput(
            (best,), best.beta, best.temperature, best.key_lock, plot, report, ui=ui.PreviewImage(plot)
        )


def _tune(
    node_id, photos, model, clip, vae, concept, prompts, budget, pictures, scorer, negative, seed, **settings
) -> tuple[ConceptUse, list[Trial], str]:
    """The concept with its best settings, all trials in order, and a report."""
    if len(concept) != 1:
        raise ValueError(f"One concept is tuned at a time, these are {len(concept)}: connect them one by one.")
    if (family := family_of(model)).joint:
        raise ValueError(
            f"Perfusion Tune also tries key_lock, which is not for {family.title}. Compare settings with Perfusion "
            "Sweep, over beta and temperature."
        )
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
    subject = Subject(squares, None, [], use.concept.superclass)
    judged = judge_each(name, subject, [sentence for sentence in sentences for _ in range(pictures)])
    file = _study_file(use, squares, (sentences, pictures, name, negative, seed, sampling))
    progress, trials = Progress(budget, node_id), []

    def scored(changes: Mapping[str, float]) -> Iterator[list[Pair]]:
        tried, before = use.replace(**changes), sum(len(trial.scores) for trial in trials)
        models = apply_to_model(model, [tried]), apply_to_clip(clip, [tried])
        for first, sentence in zip(range(0, each, pictures), sentences, strict=True):
            prompt = with_triggers(sentence, [use.concept])
            painted = sampling.paint(*models, vae, prompt, negative, seed, pictures)
            plot = _plot(trials) if trials and not first else None
            progress.update(before + first + pictures, f"setting {len(trials) + 1}", plot)
            yield [(image, text) for image, text in judged(painted, first).tolist()]

    try:
        for found in search(scored, {name: getattr(use, name) for name in RANGES}, each, budget, seed, file):
            trials = found
    except Cancelled:
        if not trials:
            raise
        run_again(node_id)
    how = f"{len(sentences)} prompts, {pictures} pictures of each from seed {seed}, judged by {name}."
    return use.replace(**best_of(trials).settings), trials, f"{_report(trials)}\n{how}"


def _study_file(use: ConceptUse, photos: Tensor, asked: Any) -> Path:
    """Another for everything that is known to change the scores; of the rest ``search`` takes notice."""
    others = [getattr(use, field.name) for field in fields(use) if field.name not in ("concept", "training", "file")]
    found = hashlib.sha256(repr((digest(use.concept), use.concept.trigger, others, asked)).encode())
    found.update(photos.mul(255).round().byte().cpu().numpy().tobytes())
    return own_folder("tune") / f"{found.hexdigest()[:32]}.log"


def _words(trial: Trial) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in trial.settings.items())


def _plot(trials: Sequence[Trial]) -> Image.Image:
    best, whole = best_of(trials), [trial for trial in trials if not trial.given_up]
    points = [trial.means for trial in whole]
    return similarities(points, [trial.means for trial in front(trials)], best.means, f"chosen: {_words(best)}")


def _report(trials: Sequence[Trial]) -> str:
    """A table, best first; what was given up comes last, without figures, for those are of other pictures."""
    best, first = best_of(trials), trials[0]
    lines = [
        f"Chosen from {len(trials)} settings: {_words(best)}. As it came: {_words(first)}.",
        "On the front (*) no other setting is better in both. Settings that could not get there were given up early.",
        "   beta  key_lock  temperature  CLIP-I  CLIP-T  harmonic mean",
    ]
    best_in_one = front(trials)
    for trial in sorted(trials, key=lambda trial: (trial.given_up, -trial.score)):
        beta, key_lock, temperature = trial.settings.values()
        numbers = "given up" if trial.given_up else "{:6.4f}  {:6.4f}  {:.4f}".format(*trial.means, trial.score)
        mark = "*" if trial in best_in_one else " "
        lines.append(f"{mark} {beta:5.2f}  {key_lock:8.2f}  {temperature:11.2f}  {numbers}")
    return "\n".join(lines)
