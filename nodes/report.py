"""What a finished training has to show: a contact sheet and a report."""

from __future__ import annotations

from PIL import Image

from .host.superclass import LockedWord
from .host.trainee import Subject
from .pictures import contact_sheet, thumbnails
from .run import Run


def contact_sheet_of(run: Run, subject: Subject) -> Image.Image:
    """A row of photos, then a row of sample pictures per checkpoint; photos alone where there are no previews."""
    columns = [sentence.replace("{}", run.training.trigger) for sentence in run.previews] or [""] * 4
    best = run.best.step
    rows = [("photos", thumbnails(subject.photos[: len(columns)]))]
    rows += [(f"step {step}{' (best)' if step == best else ''}", pictures) for step, pictures in run.rows]
    return contact_sheet(columns, rows)


def report(run: Run, subject: Subject, scorer: str, locked: LockedWord) -> str:
    """What was trained on what, how it went, which checkpoint is best and why, in lines of text."""
    training, settings = run.training, run.training.settings
    size, photos = subject.photos.shape[1], len(subject.photos)
    start, last, best = run.checkpoints[0], run.checkpoints[-1], run.best
    lines = [f"{training.trigger}, a {subject.superclass}: {last.step} steps on {photos} photos at {size}x{size}"]
    lines[0] += ", mirrored too." if subject.flip else "."
    if subject.masks is None:
        lines.append("There were no masks: the background was learned too.")
    if subject.flip:
        lines.append("If the subject has writing or a parting, train again with flip off.")
    if start.step:
        lines.append(f"It was continued from step {start.step}.")
    lines.append(f"Batches of {settings.batch_size}, {settings.accumulation} per step, seed {settings.seed}.")
    lines.append(f"Keys are locked to {locked.locked!r}{_of(subject.superclass, locked.locked)}.")
    if locked.warning:
        lines.append(locked.warning)
    lines.append(f"Loss on a fixed set of noises: {start.loss:.4f} before, {last.loss:.4f} after.")
    reason = "lowest loss" if best.score is None else f"highest harmonic mean of CLIP-I and CLIP-T by {scorer}"
    lines += [f"Best: step {best.step}, with the {reason}.", "", _table(run)]
    return "\n".join(lines)


def _of(superclass: str, locked: str) -> str:
    return "" if superclass.lower() == locked else f", the last token of {superclass!r}"


def _table(run: Run) -> str:
    scored = any(checkpoint.score is not None for checkpoint in run.checkpoints)
    rows = ["step   loss" + ("    CLIP-I  CLIP-T  mean" if scored else "")]
    for checkpoint in run.checkpoints:
        row = f"{checkpoint.step:4}   {checkpoint.loss:.4f}"
        if checkpoint.score is not None:
            row += f"  {checkpoint.image_similarity:.4f}  {checkpoint.text_similarity:.4f}  {checkpoint.score:.4f}"
        rows.append(row)
    return "\n".join(rows)
