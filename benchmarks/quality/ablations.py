"""What else the paper asks, of the same individuals: the temperature, one photo, the covariance, and the similarities.

    bash scripts/env.sh python -m benchmarks.quality.ablations FOLDER [--workers 2]

FOLDER is run.py's, with what *perfusion* has learned there. What is learned here is kept in FOLDER/ablations, so it
goes on where it was stopped. The tables of docs/quality-methods.md are printed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.world.reader import trained_reader
from benchmarks.world.scenes import NAMES
from perfusion_core import ConceptSet

from .evaluation import Assessor, prompts
from .judging import curve, read_piece
from .methods import TOGETHER_BETA, LearnedConcepts, Method, Perfusion
from .painter import FILE, Painter, Task, filled, task
from .report import best, hypervolume, means, percent
from .run import Bench, bench, crew

INDIVIDUALS = range(12)
TEMPERATURES = (0.03, 0.07, 0.1, 0.15, 0.2, 0.3)
SHOWN = ("identified", "in five", "class", "prompt", "likeness")


def one_photo(painter: Painter, subject: Task, seed: int) -> LearnedConcepts:
    return Perfusion()(painter, replace(subject, photos=subject.photos[:1]), seed)


def without_covariance(painter: Painter, subject: Task, seed: int) -> LearnedConcepts:
    """The metric is the plain one."""
    other = copy.copy(painter)
    other.__dict__["inverse_covariance"] = torch.eye(len(painter.inverse_covariance))
    return Perfusion()(other, subject, seed)


METHODS: Mapping[str, Method] = {"perfusion, one photo": one_photo, "perfusion, no covariance": without_covariance}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=FILE, help="a demo model's file; by default the one of the nodes")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one core")
    options = parser.parse_args()
    with crew(options.folder / "ablations", options.model, options.workers) as pool:
        list(pool.map(_learned, *zip(*itertools.product(METHODS, INDIVIDUALS), strict=True)))
        curves, scores = defaultdict(list), defaultdict(list)
        for found, by_temperature in pool.map(_scores, INDIVIDUALS):
            for label, points in found.items():
                curves[label].append(points)
            for temperature, of in by_temperature.items():
                scores[temperature].append(of)
        similar = list(pool.map(_similarities, INDIVIDUALS))
    print("|  | hypervolume | beta | " + " | ".join(SHOWN) + " |\n|" + "---|" * (3 + len(SHOWN)))
    for label, some in curves.items():
        at = best([means(points) for points in zip(*some, strict=True)])
        print(f"| {label} | {np.mean([*map(hypervolume, some)]):.2f} | {at['setting']:g} | {_row(at)} |")
    print("\n| temperature | " + " | ".join(SHOWN) + " |\n|" + "---|" * (1 + len(SHOWN)))
    for temperature, some in scores.items():
        print(f"| {temperature:g} | {_row(means(some))} |")
    print("\n| similarity of | mean | least | most |\n|---|---|---|---|")
    for word in similar[0]:
        values = np.concatenate([of[word] for of in similar])
        print(f"| {word} | {values.mean():.2f} | {values.min():.2f} | {values.max():.2f} |")


def _learned(label: str, number: int) -> None:
    bench().alone(number, 0, label, METHODS[label])


def _scores(number: int) -> tuple[dict[str, list[dict[str, float]]], dict[float, dict[str, float]]]:
    """{method: its curve} and {temperature: scores at one beta}, of one individual."""
    painter, subject, assessor = bench().painter, task(number), Assessor(trained_reader())
    asked, common = prompts(subject), assessor.common([shown.image for shown in subject.photos], subject.one)
    curves = {}
    for label in ("perfusion", *METHODS):
        latents, _ = read_piece((bench() if label in METHODS else _run()).painted(label, number, 0))
        pictures = {name: painter.pictures(some) for name, some in latents.items()}
        curves[label] = curve(assessor, pictures, subject)
    sentences, found = [prompt.sentence for prompt in asked], {}
    for temperature in TEMPERATURES:
        learned = LearnedConcepts([_run().concept(number, 0)], (TOGETHER_BETA,), temperature=temperature)
        painted = painter.pictures(learned.paint(painter, sentences, number, TOGETHER_BETA))
        found[temperature] = assessor.scores(painted, subject.one, asked, common)
    return curves, found


def _similarities(number: int) -> dict[str, np.ndarray]:
    """How similar to the concept its word is in other prompts, its class word there, and the likest other word."""
    painter, subject, concept = bench().painter, task(number), _run().concept(number, 0)
    sentences, concepts = [prompt.sentence for prompt in prompts(subject)], ConceptSet([concept])
    new, found = {NAMES[0]: concept.token_embeddings["l"]}, defaultdict(list)
    for sentence in sentences:
        encodings, (place,) = painter.encode([filled(sentence, new)], new)
        shares = concepts.coordinates(encodings)[0, :, 0]
        words = encodings[0].abs().amax(-1) > 0
        words[place] = False
        found["the trigger"].append(float(shares[place]))
        found["the likest other word of its prompt"].append(float(shares[words].max()))
        plain, _ = painter.encode([filled(sentence, [subject.superclass])], {})
        found["the class word in its place"].append(float(concepts.coordinates(plain)[0, place, 0]))
    return {word: np.array(values) for word, values in found.items()}


def _run() -> Bench:
    """What run.py has made."""
    return Bench(bench().folder.parent, bench().painter)


def _row(scores: Mapping[str, float]) -> str:
    return " | ".join(percent(scores[name]) for name in SHOWN)


if __name__ == "__main__":
    main()
