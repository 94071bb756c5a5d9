"""What the reader makes of the pictures that run.py keeps: FOLDER/scores.json, and sheets of some of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
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


def judged(folder: Path, painter: Painter) -> dict[str, Any]:
    """{kind of piece: its records with their scores}, of everything that is painted."""
    assessor, found = Assessor(trained_reader()), defaultdict(list)
    (folder / "sheets").mkdir(exist_ok=True)
    for path in sorted((folder / "painted").glob("*.safetensors")):
        latents, record = read_piece(path)
        kind = record.pop("kind")
        found[kind].append({**record, **_JUDGES[kind](assessor, painter, latents, record)})
        if kind != "card" and record["numbers"][0] in SHOWN:
            rows = [picture for some in latents.values() for picture in painter.pictures(some)]
            sheet(rows, len(rows) // len(latents), zoom=1).save(folder / "sheets" / f"{path.stem}.png")
        if kind == "references":
            (number,) = record["numbers"]
            photos = [shown.image for shown in task(number).photos]
            sheet(photos, len(photos), zoom=1).save(folder / "sheets" / f"photos - {number}.png")
    return dict(found)


def read_piece(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """{way or setting: latents}, in the order in which they were kept, and what is known of them."""
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["record"])
        return {name: file.get_tensor(name).float() for name in record.pop("rows")}, record


def _learned(assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], record: Mapping[str, Any]):
    pictures = {name: painter.pictures(some) for name, some in latents.items()}
    scores = _scores(assessor, pictures, task(*record["numbers"]))
    return {"curve": [{"setting": float(name), **of} for name, of in scores.items()]}


def _references(assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], record: Mapping[str, Any]):
    subject = task(*record["numbers"])
    sentences = [filled(prompt.sentence, NAMES) for prompt in prompts(subject)]
    pictures = {"genuine scenes": genuine(subject, prompts(subject))}
    pictures |= {name: painter.pictures(some) for name, some in latents.items()}
    scores = _scores(assessor, pictures, subject)
    return {"scores": scores, "individual": described(subject.one), "prompts": sentences}


def _scores(
    assessor: Assessor, pictures: Mapping[str, Sequence[np.ndarray]], subject: Task
) -> dict[str, dict[str, float]]:
    common, asked = assessor.common([shown.image for shown in subject.photos], subject.one), prompts(subject)
    return {name: assessor.scores(some, subject.one, asked, common) for name, some in pictures.items()}


def _together(assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], record: Mapping[str, Any]):
    tasks = [task(number) for number in record["numbers"]]
    ones = [one.one for one in tasks]
    asked = prompts_together(tasks)
    pictures = {"genuine scenes": genuine_together(tasks, [prompt.place for prompt in asked])}
    pictures |= {name: painter.pictures(some) for name, some in latents.items()}
    scores = {name: assessor.together(some, ones) for name, some in pictures.items()}
    return {"scores": scores, "prompts": [filled(prompt.sentence, NAMES) for prompt in asked]}


def _card(assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], record: Mapping[str, Any]):
    asked = card_prompts(CARD_PROMPTS)
    ways = {"genuine scenes": card_scenes(asked)} | {name: painter.pictures(some) for name, some in latents.items()}
    return {
        name: hits(assessor.reader, pictures, asked * (len(pictures) // len(asked))) for name, pictures in ways.items()
    }


_JUDGES = {"learned": _learned, "references": _references, "two": _together, "three": _together, "card": _card}
