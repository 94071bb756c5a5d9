"""What goes on around the steps of a training: checkpoints with pictures and scores, progress, autosave."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..perfusion_core import Checkpoint, Training, TrainingSettings, load_concept, load_training, openclip
from ..perfusion_core.checkpoints import best_of, best_tensors
from ..perfusion_core.concept import plain_words
from .host.files import (
    concept_path,
    name_of,
    path_to_save,
    remove_with_training,
    save_with_training,
    training_path,
)
from .host.model import check_fits
from .host.progress import Pace, Progress, listener, save_for_page, show_text
from .host.scorers import scorer_path
from .host.trainee import ComfyTrainee, Subject
from .host.trainings import Course
from .pictures import native, thumbnails
from .plots import smoothed

Score = Callable[[Tensor], tuple[float, float]]  # image and text similarity of sample pictures, means over them

_SAVE_EVERY, _TELL_EVERY = 60, 0.5  # seconds
_CURVE = 100  # points of the loss that the page draws, about


class Autosave:
    """The file of an unfinished training, which is never far behind. It never replaces one that was there before."""

    def __init__(self, training: Training, metadata: Mapping[str, str], course: Course):
        self._training, self._metadata, self._course = training, metadata, course
        self._saved_steps, self._saved_at = len(training.losses), time.monotonic()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._saved_at > _SAVE_EVERY

    def save(self, state: Mapping[str, Tensor]) -> None:
        """A failure to save is logged; it must neither end a training nor hide why it ended."""
        steps = len(self._training.losses)
        if steps == self._saved_steps:
            return
        try:
            if self._course.unfinished is None:
                name = f"{name_of(self._training.trigger)}-unfinished"
                self._course.unfinished = path_to_save(name, overwrite=False)
            path = self._course.unfinished
            metadata = {**self._metadata, "steps": str(steps)}
            concept = self._training.concept().replace(name=path.stem, metadata=metadata)
            save_with_training(concept, state, path)
            self._saved_steps = steps
        except Exception:
            logging.exception("Perfusion: what was learned in %d steps could not be saved", steps)
        self._saved_at = time.monotonic()

    def keep(self, state: Mapping[str, Tensor]) -> str:
        """Saves what was learned before an untimely end; says where, or nothing."""
        self.save(state)
        path = self._course.unfinished
        if path is None or not path.is_file():
            return ""
        text = f"What was learned in {self._saved_steps} steps is in {path}; continue_from takes it up again."
        logging.warning("Perfusion: the training stopped. %s", text)
        return text

    def remove(self) -> None:
        if self._course.unfinished is not None:
            remove_with_training(self._course.unfinished)
            self._course.unfinished = None


class Run:
    """Takes a training to its end, or to where the user wants no more; ``course`` is what comes of it.

    every: steps between checkpoints. previews: sentences with {} in the trigger's place. score: judges their pictures,
    if there is a scorer. warnings: what the page is to say from the start. ``kept`` says where to find what was learned
    when the training ended before its time.
    """

    def __init__(
        self,
        training: Training,
        trainee: ComfyTrainee,
        metadata: Mapping[str, str],
        every: int,
        previews: Sequence[str],
        score: Score | None,
        course: Course,
        warnings: Mapping[str, Any],
    ):
        self.training, self.trainee, self.course = training, trainee, course
        self.every, self.previews, self.score, self.warnings = every, previews, score, warnings
        if course.state is not None:
            training.load_state_dict(course.state)
        self.autosave = Autosave(training, metadata, course)
        self.kept = ""
        self.progress = Progress(training.settings.steps, course.node_id)
        self.step_pace, self.checkpoint_pace = Pace(), Pace()
        self.tell, self.told_at = listener(), 0.0

    def go(self) -> None:
        course = self.course
        course.running, course.stop, course.ended, course.chosen = True, False, False, None
        course.goal = self.training.settings.steps
        try:
            self._go()
            course.ended = True
        except BaseException:  # cancel, no memory, no number: whatever it is, what was learned is kept
            course.state = self._state()
            self.kept = self.autosave.keep(course.state)
            raise
        finally:
            course.running = False
        self.autosave.remove()

    def _go(self) -> None:
        losses, steps = self.training.losses, self.training.settings.steps
        self._checkpoint()
        while len(losses) < steps and not (self.course.stop and losses):
            with self.step_pace:
                self.training.step()
            if len(losses) % self.every == 0:
                self._checkpoint()
                self.autosave.save(self._state())
            else:
                self._show()
                if self.autosave.is_due:
                    self.autosave.save(self._state())
        if self.course.checkpoints[-1].step != len(losses):
            self._checkpoint()
        self.course.state = self._state()

    def _state(self) -> Mapping[str, Tensor]:
        """To go on from here: the training's, and the best checkpoint so far."""
        begun = self.course.earlier or self.course.checkpoints
        return {**self.training.state_dict(), **(best_tensors(self.course.best) if begun else {})}

    def _checkpoint(self) -> None:
        """Keeps the concept as it is now, tests it, paints its samples and shows all of it; once."""
        step = len(self.training.losses)
        if not self.course.checkpoints or self.course.checkpoints[-1].step != step:
            self._test(step)
        self._show(at_once=True)

    def _test(self, step: int) -> None:
        concept, course = self.training.concept(), self.course
        similarities: tuple[float, float] | tuple[None, None] = (None, None)
        with self.checkpoint_pace:
            loss = self.training.evaluate()
            if self.previews:
                pictures = self.trainee.pictures(self.previews, concept, self.training.settings.seed)
                if self.score is not None:
                    similarities = self.score(pictures)
        if self.previews:
            course.rows.append((step, thumbnails(pictures)))
            course.shown.append({"step": step, "images": save_for_page(native(pictures))})
        course.checkpoints.append(Checkpoint(step, concept, loss, *similarities))
        course.checkpoints[-1] = dataclasses.replace(course.checkpoints[-1], training=self._state())

    def _show(self, at_once: bool = False) -> None:
        losses, steps = self.training.losses, self.training.settings.steps
        done = len(losses)
        self.progress.update(done)
        if losses:
            show_text(f"loss {losses[-1]:.4f}", self.course.node_id)
        if self.tell and (at_once or time.monotonic() - self.told_at > _TELL_EVERY):
            checkpoints = -(-steps // self.every) - done // self.every
            left = (steps - done) * self.step_pace.mean + checkpoints * self.checkpoint_pace.mean if done else None
            self.tell("perfusion.training", {**for_page(self.course, losses, self.warnings), "left": left})
            self.told_at = time.monotonic()


def for_page(course: Course, losses: Sequence[float], warnings: Mapping[str, Any]) -> dict[str, Any]:
    """What web/trainer.js shows of a training, running or ended."""
    done = len(losses)
    return {
        "node": course.node_id,
        "training": course.key,
        "size": course.size,
        "done": done,
        "total": course.goal,
        "stopping": course.stop and not course.ended,
        "ended": course.ended,
        "curve": smoothed(losses, max(1, done // _CURVE)),
        "rows": course.shown,
        "used": course.used.step if course.ended else None,
        "chosen": course.chosen,
        "warnings": warnings,
    }


def judge(name: str, subject: Subject, sentences: Sequence[str]) -> Score:
    """By the means of ``judge_each``."""
    each = judge_each(name, subject, sentences)

    def score(pictures: Tensor) -> tuple[float, float]:
        image, text = each(pictures).mean(0).tolist()
        return image, text

    return score


def judge_each(name: str, subject: Subject, sentences: Sequence[str]) -> Callable[..., Tensor]:
    """(pictures, first) -> (n, 2): CLIP-I to the subject's photos, and CLIP-T to the sentences from the first on, with
    the superclass in the trigger's place."""
    model = openclip.load_image_text_model(scorer_path(name))
    photos = model.embed_images(subject.photos)
    texts = model.embed_texts([sentence.replace("{}", subject.superclass) for sentence in sentences])

    def scores(pictures: Tensor, first: int = 0) -> Tensor:
        seen = model.embed_images(pictures)
        own = texts[first : first + len(seen)]
        return torch.stack([(seen @ photos.T).mean(1), (seen * own).sum(1)], dim=1)

    return scores


def saved_state(
    name: str, model, trigger: str, superclass: str, settings: TrainingSettings, offset: bool
) -> tuple[Mapping[str, Tensor], Checkpoint | None]:
    """What a training goes on from: its whole state where that was kept, else what the concept file holds; and its best
    checkpoint until then. Raises ValueError for a concept that cannot be trained on in this way."""
    path = concept_path(name)
    concept = load_concept(path)
    check_fits(concept, model)
    if (concept.trigger, plain_words(concept.superclass)) != (trigger, superclass):
        raise ValueError(
            f"{name} is {concept.trigger}, a {concept.superclass}, and continue_from goes on with it. Write that "
            "trigger and superclass, or set continue_from to none."
        )
    if concept.has_offset != offset:
        way = "encode once" if concept.has_offset else "train through"
        raise ValueError(
            f"{name} was trained another way, and continue_from goes on with it. Set text_encoder to {way}."
        )
    if concept.key_outputs is not None:
        raise ValueError(
            f"{name} was imported with keys of its own, which training here does not know. Set continue_from to none."
        )
    if concept.key_freedom != settings.key_freedom:
        raise ValueError(
            f"{name} was trained another way, and continue_from goes on with it. Set key_freedom to "
            f"{concept.key_freedom}."
        )
    try:
        state = load_training(training_path(concept, path), concept)
    except ValueError as error:
        logging.warning("Perfusion: %s The training goes on from the concept alone, with a fresh optimizer.", error)
        return concept.tensors(), None
    if len(state["losses"]) >= settings.steps:
        raise ValueError(
            f"{name} has been trained for {len(state['losses'])} steps already. Set steps higher, or load it instead."
        )
    return state, best_of(state, concept)
