"""What a finished training has to show: a contact sheet and a report."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..perfusion_core import Checkpoint, TrainingSettings
from .host.estimate import FEW_PHOTOS, photo_warnings
from .host.superclass import LockedWord
from .host.trainee import Subject
from .host.trainings import Course
from .pictures import contact_sheet, thumbnails

_HARDLY = 0.01  # share by which the loss falls at least where something was learned


def warnings_of(subject: Subject) -> dict[str, int]:
    photos, masks = subject.photos, subject.masks
    unmasked = len(photos) if masks is None else int((masks.flatten(1).amin(1) > 0.99).sum())
    return photo_warnings(len(photos), unmasked)


def hardly_changed(course: Course) -> bool:
    """Whether the best checkpoint is hardly better at the photos than the plain superclass word."""
    start, best = course.checkpoints[0], course.best
    return start.step == 0 and best.loss > start.loss * (1 - _HARDLY)


def contact_sheet_of(course: Course, subject: Subject, previews: Sequence[str], trigger: str) -> Image.Image:
    """A row of photos, then a row of sample pictures per checkpoint; photos alone where there are no previews."""
    columns = [sentence.replace("{}", trigger) for sentence in previews] or [""] * 4
    notes = {course.best.step: " (best)"} | ({course.chosen: " (chosen)"} if course.chosen else {})
    rows = [("photos", thumbnails(subject.photos[: len(columns)]))]
    rows += [(f"step {step}{notes.get(step, '')}", pictures) for step, pictures in course.rows]
    return contact_sheet(columns, rows)


def report(
    course: Course, subject: Subject, settings: TrainingSettings, trigger: str, scorer: str, locked: LockedWord
) -> str:
    """What was trained on what, how it went, which checkpoint is best and why, in lines of text."""
    size, photos = subject.photos.shape[1], len(subject.photos)
    start, last, best = course.checkpoints[0], course.checkpoints[-1], course.best
    lines = [f"{trigger}, a {subject.superclass}: {last.step} steps on {photos} photos at {size}x{size}"]
    lines[0] += ", mirrored too." if subject.flip else "."
    if last.step < settings.steps:
        lines.append(f"It was stopped; {settings.steps} steps were planned.")
    if (warnings := warnings_of(subject)).get("without_mask"):
        lines.append(f"{warnings['without_mask']} photos had no mask: their background was learned too.")
    if "few_photos" in warnings:
        lines.append(f"{FEW_PHOTOS} to 10 photos make a better concept than {photos}.")
    if subject.flip:
        lines.append("If the subject has writing or a parting, train again with flip off.")
    if start.step:
        lines.append(f"It was continued from step {start.step}.")
    lines.append(f"Batches of {settings.batch_size}, {settings.accumulation} per step, seed {settings.seed}.")
    lines.append(f"Keys are locked to {locked.locked!r}{_of(subject.superclass, locked.locked)}.")
    if locked.warning:
        lines.append(locked.warning)
    lines.append(f"Loss on a fixed set of noises: {start.loss:.4f} before, {last.loss:.4f} after.")
    if hardly_changed(course):
        lines.append("Hardly anything changed: train for more steps, or with higher learning rates.")
    reason = "lowest loss" if best.score is None else f"highest harmonic mean of CLIP-I and CLIP-T by {scorer}"
    lines.append(f"Best: step {best.step}, with the {reason}.")
    if course.chosen:
        lines.append(f"Chosen by you: step {course.chosen}.")
    return "\n".join([*lines, "", _table(course.checkpoints)])


def _of(superclass: str, locked: str) -> str:
    return "" if superclass.lower() == locked else f", the last token of {superclass!r}"


def _table(checkpoints: Sequence[Checkpoint]) -> str:
    scored = any(checkpoint.score is not None for checkpoint in checkpoints)
    rows = ["step   loss" + ("    CLIP-I  CLIP-T  mean" if scored else "")]
    for checkpoint in checkpoints:
        row = f"{checkpoint.step:4}   {checkpoint.loss:.4f}"
        if checkpoint.score is not None:
            row += f"  {checkpoint.image_similarity:.4f}  {checkpoint.text_similarity:.4f}  {checkpoint.score:.4f}"
        rows.append(row)
    return "\n".join(rows)
