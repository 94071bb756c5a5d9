"""What the judge makes of the pictures that run.py keeps: FOLDER/scores.json, and sheets of some of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from benchmarks.world.card import genuine, hits
from benchmarks.world.card import prompts as card_prompts
from benchmarks.world.judge import trained_judge
from benchmarks.world.reader import trained_reader
from benchmarks.world.scenes import NAMES, described, sheet

from .evaluation import Assessor, prompts, prompts_together
from .painter import Painter, Task, filled, task

SHOWN = (0, 5)  # individuals whose pictures the report has
CARD_PROMPTS = 100


def judged(folder: Path, painter: Painter) -> dict[str, Any]:
    """{kind of piece: its records with their scores}, of everything that is painted."""
    assessor, found = Assessor(trained_judge()), defaultdict(list)
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
    scores = _scores(assessor, painter, latents, task(*record["numbers"]))
    return {"curve": [{"setting": float(name), **of} for name, of in scores.items()]}


def _references(assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], record: Mapping[str, Any]):
    subject = task(*record["numbers"])
    sentences = [filled(prompt.sentence, NAMES) for prompt in prompts(subject)]
    scores = _scores(assessor, painter, latents, subject)
    return {"scores": scores, "individual": described(subject.one), "prompts": sentences}


def _scores(
    assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], subject: Task
) -> dict[str, dict[str, float]]:
    photos, asked = painter.latents([shown.image for shown in subject.photos]), prompts(subject)
    return {name: assessor.scores(some, subject.one, asked, photos) for name, some in latents.items()}


def _together(assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], record: Mapping[str, Any]):
    tasks = [task(number) for number in record["numbers"]]
    ones = [one.one for one in tasks]
    scores = {name: assessor.together([some] * len(ones), ones) for name, some in latents.items()}
    return {"scores": scores, "prompts": [filled(prompt.sentence, NAMES) for prompt in prompts_together(tasks)]}


def _card(assessor: Assessor, painter: Painter, latents: Mapping[str, Tensor], record: Mapping[str, Any]):
    asked, reader = card_prompts(CARD_PROMPTS), trained_reader()
    ways = {name: painter.pictures(some) for name, some in latents.items()}
    ways["through the autoencoder"] = ways.pop("genuine scenes")
    ways["genuine scenes"] = genuine(asked)
    return {name: hits(reader, pictures, asked * (len(pictures) // len(asked))) for name, pictures in ways.items()}


_JUDGES = {"learned": _learned, "references": _references, "two": _together, "three": _together, "card": _card}
