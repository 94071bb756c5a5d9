"""A hundred of run.py's pictures for eyes that do not know what the reader said: half of them show whom it looked for.

    bash scripts/env.sh python -m benchmarks.quality.by_eye FOLDER
    bash scripts/env.sh python -m benchmarks.quality.by_eye FOLDER --same 0:5,6,9 1:2,5

The first draws a sheet for each individual, FOLDER/by-eye/0.png: its photos, and below them pictures, counted row by
row from 1. The second is told which of them show the individual (its colours, pattern and accessory), and counts.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.world.reader import trained_reader
from benchmarks.world.scenes import sheet

from .evaluation import Assessor, prompts
from .judging import read_piece
from .painter import Painter, task

PICTURES, COLUMNS, SEED = 100, 6, 7


class Shown(NamedTuple):
    picture: np.ndarray  # (96, 96, 3)
    taken: bool  # by the reader, for the individual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--same", nargs="+", metavar="INDIVIDUAL:PICTURE,PICTURE", help="what the eyes say")
    options = parser.parse_args()
    chosen = drawn(options.folder, Painter())
    if options.same:
        print(agreement(chosen, options.same))
        return
    (options.folder / "by-eye").mkdir(exist_ok=True)
    for number, pictures in chosen.items():
        photos = [photo.image for photo in task(number).photos]
        blank = [0 * photos[0] + 255] * (COLUMNS - len(photos))
        rows = [*photos, *blank, *(shown.picture for shown in pictures)]
        sheet(rows, COLUMNS).save(options.folder / "by-eye" / f"{number}.png")


def drawn(folder: Path, painter: Painter) -> dict[int, list[Shown]]:
    """{individual: its pictures, in an order that says nothing}, of all methods and settings."""
    assessor, found = Assessor(trained_reader()), dict[int, list[Shown]]()
    for path in sorted((folder / "painted").glob("*.safetensors")):
        rows, record = read_piece(path)
        if record["kind"] in ("learned", "references"):
            (number,) = record["numbers"]
            subject = task(number)
            for latents in rows.values():
                pictures = painter.pictures(latents)
                taken = assessor.identified(pictures, subject.one, prompts(subject))
                found.setdefault(number, []).extend(map(Shown, pictures, taken))
    dice, chosen = random.Random(SEED), dict[int, list[Shown]]()
    for place, number in enumerate(sorted(found)):
        amount = PICTURES * (place + 1) // len(found) - PICTURES * place // len(found)
        taken = [picture for picture in found[number] if picture.taken]
        others = [picture for picture in found[number] if not picture.taken]
        mine = [
            *dice.sample(taken, min(amount // 2, len(taken))),
            *dice.sample(others, min(-(-amount // 2), len(others))),
        ]
        chosen[number] = dice.sample(mine, len(mine))
    return chosen


def agreement(chosen: dict[int, list[Shown]], answers: list[str]) -> str:
    seen = Counter[tuple[bool, bool]]()
    same = {int(number): set(map(int, pictures.split(","))) for number, pictures in (a.split(":") for a in answers)}
    for number, pictures in chosen.items():
        seen.update((place in same.get(number, ()), picture.taken) for place, picture in enumerate(pictures, 1))
    both, neither = seen[True, True], seen[False, False]
    alone = f"the reader alone {seen[False, True]}, the eye alone {seen[True, False]}"
    return f"of {seen.total()} both {both}, neither {neither}, {alone}"


if __name__ == "__main__":
    main()
