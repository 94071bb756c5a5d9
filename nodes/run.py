"""What goes on around the steps of a training: checkpoints with pictures and scores, progress, autosave."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..perfusion_core import Checkpoint, Training, best_checkpoint, load_concept, load_training, openclip
from ..perfusion_core.checkpoints import best_of, best_tensors
from ..perfusion_core.concept import plain_words
from .host.files import concept_path, path_to_save, remove_with_training, save_with_training, training_path
from .host.model import check_fits
from .host.progress import Progress
from .host.scorers import scorer_path
from .host.trainee import ComfyTrainee, Subject
from .pictures import progress_picture, thumbnails
from .plots import loss_curve

Score = Callable[[Tensor], tuple[float, float]]  # image and text similarity of sample pictures, means over them

_SHOW_EVERY = 10  # steps
_SAVE_EVERY = 60  # seconds


class Autosave:
    """The file of an unfinished training, which is never far behind. It never replaces one that was there before."""

    def __init__(self, training: Training, metadata: Mapping[str, str]):
        self._training, self._metadata = training, metadata
        self._path: Path | None = None
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
            if self._path is None:
                word = re.sub("[^A-Za-z0-9]+", "-", self._training.trigger).strip("-")
                self._path = path_to_save(f"{word or 'concept'}-unfinished", overwrite=False)
            metadata = {**self._metadata, "steps": str(steps)}
            concept = self._training.concept().replace(name=self._path.stem, metadata=metadata)
            save_with_training(concept, state, self._path)
            self._saved_steps = steps
        except Exception:
            logging.exception("Perfusion: what was learned in %d steps could not be saved", steps)
        self._saved_at = time.monotonic()

    def keep(self, state: Mapping[str, Tensor]) -> str:
        """Saves what was learned before an untimely end; says where, or nothing."""
        self.save(state)
        if self._path is None or not self._path.is_file():
            return ""
        text = f"What was learned in {self._saved_steps} steps is in {self._path}; continue_from takes it up again."
        logging.warning("Perfusion: the training stopped. %s", text)
        return text

    def remove(self) -> None:
        if self._path is not None:
            remove_with_training(self._path)


class Run:
    """Runs a training to its end. ``checkpoints`` and ``rows``, their pictures, grow meanwhile.

    every: steps between checkpoints. previews: sentences with {} in the trigger's place. score: judges their pictures,
    if there is a scorer. earlier: the best checkpoint of the training that is continued. ``kept`` says where to find
    what was learned when the training ended before its time.
    """

    def __init__(
        self,
        training: Training,
        trainee: ComfyTrainee,
        metadata: Mapping[str, str],
        every: int,
        previews: Sequence[str],
        score: Score | None,
        earlier: Checkpoint | None,
        node_id: str | None,
    ):
        self.training, self.trainee, self.autosave = training, trainee, Autosave(training, metadata)
        self.every, self.previews, self.score, self.earlier = every, previews, score, earlier
        self.kept = ""
        self.progress = Progress(training.settings.steps, node_id, start=len(training.losses))
        self.checkpoints: list[Checkpoint] = []
        self.rows: list[tuple[int, list[Image.Image]]] = []

    def go(self) -> None:
        try:
            self._go()
        except BaseException:  # cancel, no memory, no number: whatever it is, what was learned is kept
            self.kept = self.autosave.keep(self._state())
            raise

    def _go(self) -> None:
        steps = self.training.settings.steps
        self._checkpoint()
        while (done := len(self.training.losses)) < steps:
            self.training.step()
            done += 1
            self._show(with_picture=done % _SHOW_EVERY == 0)
            if done % self.every == 0 or done == steps:
                self._checkpoint()
                self._show(with_picture=True)
                self.autosave.save(self._state())
            elif self.autosave.is_due:
                self.autosave.save(self._state())

    @property
    def best(self) -> Checkpoint:
        return best_checkpoint([self.earlier, *self.checkpoints] if self.earlier else self.checkpoints)

    def _state(self) -> Mapping[str, Tensor]:
        """To go on from here: the training's, and the best checkpoint so far."""
        best = best_tensors(self.best) if self.earlier or self.checkpoints else {}
        return {**self.training.state_dict(), **best}

    def _checkpoint(self) -> None:
        concept, step = self.training.concept(), len(self.training.losses)
        loss = self.training.evaluate()
        similarities: tuple[float, float] | tuple[None, None] = (None, None)
        if self.previews:
            pictures = self.trainee.pictures(self.previews, concept, self.training.settings.seed)
            self.rows.append((step, thumbnails(pictures)))
            if self.score is not None:
                similarities = self.score(pictures)
        self.checkpoints.append(Checkpoint(step, concept, loss, *similarities))
        self.checkpoints[-1] = dataclasses.replace(self.checkpoints[-1], training=self._state())

    def _show(self, with_picture: bool) -> None:
        losses, steps, picture = self.training.losses, self.training.settings.steps, None
        if with_picture:
            tested = {checkpoint.step: checkpoint.loss for checkpoint in self.checkpoints}
            step, pictures = self.rows[-1] if self.rows else (0, [])
            picture = progress_picture(loss_curve(losses, tested), f"samples at step {step}", pictures)
        self.progress.update(len(losses), f"step {len(losses)} of {steps}, loss {losses[-1]:.4f}", picture)


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
    name: str, model, trigger: str, superclass: str, steps: int
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
    if concept.key_outputs is not None:
        raise ValueError(
            f"{name} was imported with keys of its own, which training here does not know. Set continue_from to none."
        )
    try:
        state = load_training(training_path(concept, path), concept)
    except ValueError as error:
        logging.warning("Perfusion: %s The training goes on from the concept alone, with a fresh optimizer.", error)
        return concept.tensors(), None
    if len(state["losses"]) >= steps:
        raise ValueError(
            f"{name} has been trained for {len(state['losses'])} steps already. Set steps higher, or load it instead."
        )
    return state, best_of(state, concept)
