"""What the reader makes of the pictures that run.py keeps: FOLDER/scores.json, and sheets of some of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from benchmarks.world.card import genuine as card_scenes
from benchmarks.world.card import hits
from benchmarks.world.card import prompts as card_prompts
from benchmarks.world.reader import trained_reader
from benchmarks.world.scenes import NAMES, described, sheet

from .evaluation import Assessor, genuine, genuine_together, prompts, prompts_together
from .painter import Painter, Task, filled, task

SHOWN = (0, 5)  # individuals whose pictures the report has
CARD_PROMPTS = 100


Pictures = Mapping[str, Sequence[np.ndarray]]  # by way or setting, (96, 96, 3) each


def judged(folder: Path, painter: Painter) -> dict[str, Any]:
    """{kind of piece: its records with their scores}, of everything that is painted."""
    assessor, found = Assessor(trained_reader()), defaultdict(list)
    (folder / "sheets").mkdir(exist_ok=True)
    for path in sorted((folder / "painted").glob("*.safetensors")):
        kind, record = judged_piece(path, painter, assessor, folder / "sheets")
        found[kind].append(record)
    return dict(found)


def judged_piece(path: Path, painter: Painter, assessor: Assessor, sheets: Path) -> tuple[str, dict[str, Any]]:
    """Its kind, and its record with scores; sheets of individuals that are shown."""
    latents, record = read_piece(path)
    kind, tasks = record.pop("kind"), [task(number) for number in record.get("numbers", ())]
    pictures: dict[str, Sequence[np.ndarray]] = {name: painter.pictures(some) for name, some in latents.items()}
    if kind != "learned":
        pictures = {"genuine scenes": _genuine(kind, tasks), **pictures}
    if tasks and tasks[0].number in SHOWN:
        rows = list(chain.from_iterable(pictures.values()))
        sheet(rows, len(rows) // len(pictures), zoom=1).save(sheets / f"{path.stem}.png")
    if kind == "references":
        photos = [shown.image for shown in tasks[0].photos]
        sheet(photos, len(photos), zoom=1).save(sheets / f"photos - {tasks[0].number}.png")
    return kind, {**record, **_JUDGES[kind](assessor, pictures, tasks)}


def read_piece(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """{way or setting: latents}, in the order in which they were kept, and what is known of them."""
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["record"])
        return {name: file.get_tensor(name).float() for name in record.pop("rows")}, record


def _genuine(kind: str, tasks: Sequence[Task]) -> list[np.ndarray]:
    """Scenes of what was asked for."""
    if kind == "card":
        return card_scenes(card_prompts(CARD_PROMPTS))
    if kind == "references":
        return genuine(tasks[0], prompts(tasks[0]))
    return genuine_together(tasks, [prompt.place for prompt in prompts_together(tasks)])


def _learned(assessor: Assessor, pictures: Pictures, tasks: Sequence[Task]):
    return {"curve": curve(assessor, pictures, *tasks)}


def curve(assessor: Assessor, pictures: Pictures, subject: Task) -> list[dict[str, float]]:
    """The scores of each setting."""
    return [{"setting": float(name), **of} for name, of in _scores(assessor, pictures, subject).items()]


def _references(assessor: Assessor, pictures: Pictures, tasks: Sequence[Task]):
    (subject,) = tasks
    sentences = [filled(prompt.sentence, NAMES) for prompt in prompts(subject)]
    scores = _scores(assessor, pictures, subject)
    return {"scores": scores, "individual": described(subject.one), "prompts": sentences}


def _scores(assessor: Assessor, pictures: Pictures, subject: Task) -> dict[str, dict[str, float]]:
    common, asked = assessor.common([shown.image for shown in subject.photos], subject.one), prompts(subject)
    return {name: assessor.scores(some, subject.one, asked, common) for name, some in pictures.items()}


def _together(assessor: Assessor, pictures: Pictures, tasks: Sequence[Task]):
    scores = {name: assessor.together(some, [one.one for one in tasks]) for name, some in pictures.items()}
    return {"scores": scores, "prompts": [filled(prompt.sentence, NAMES) for prompt in prompts_together(tasks)]}


def _card(assessor: Assessor, pictures: Pictures, tasks: Sequence[Task]):
    asked = card_prompts(CARD_PROMPTS)
    return {name: hits(assessor.reader, some, asked * (len(some) // len(asked))) for name, some in pictures.items()}


_JUDGES = {"learned": _learned, "references": _references, "two": _together, "three": _together, "card": _card}
