"""What the settings of every method are chosen by, on three individuals that are not reported.

    bash scripts/env.sh python -m benchmarks.quality.tune FOLDER [--workers 2] [--only VARIANT ...]

For every variant the hypervolume (see report.py), how often the individual is nearest and how often the rest of the
prompt is there, at the variant's best setting; then how often both of two and all of three are nearest, at each setting
of those that can be combined. Finished variants are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .evaluation import prompts_together
from .methods import (
    CUSTOM,
    FineTune,
    Learned,
    LearnedConcepts,
    LearnedSum,
    LearnedWeights,
    Lora,
    Method,
    Perfusion,
    TextualInversion,
)
from .painter import FILE, Painter, task
from .report import best, hypervolume, mean_curve
from .run import TOGETHER, bench, check_names, crew, write_scores

INDIVIDUALS = (100, 101, 103)  # a house, a robot and a cat
BETAS, STRENGTHS = (0.6, 0.7, 0.8), (0.5, 0.75, 1.0)  # with which they are combined


def variants() -> dict[str, Method]:
    plain, made = Perfusion(), {}

    def perfusion(freedom: float, values: float, schedule: str = "constant") -> Method:
        settings = {"key_freedom": freedom, "learning_rate_values": values, "learning_rate_schedule": schedule}
        return replace(plain, settings=replace(plain.settings, **settings))

    for freedom, keys in ((1.0, "perfusion"), (0.0, "perfusion, locked keys")):
        for rate in (0.01, 0.02, 0.05):
            made[f"{keys}, values {rate:g}"] = perfusion(freedom, rate)
        for rate in (0.02, 0.05):
            made[f"{keys}, values {rate:g}, falling"] = perfusion(freedom, rate, "cosine")
    for rate in (0.005, 0.01):
        made[f"textual inversion, {rate:g}"] = TextualInversion(rate)
    for rank, rates in ((1, (0.00025, 0.0005, 0.001)), (4, (0.000125, 0.00025, 0.0005))):
        for rate in rates:
            made[f"lora, rank {rank}, {rate:g}"] = Lora(rank, rate)
    for rate in (0.0001, 0.0002):
        made[f"custom diffusion, {rate:g}"] = FineTune(CUSTOM, rate, embedding_rate=0.006)
    for batch, rate in ((4, 1e-4), (16, 1e-4), (16, 3e-4), (16, 6e-4)):
        made[f"dreambooth, batches of {batch}, {rate:g}"] = FineTune("", rate, batch=batch)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=FILE)
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one core")
    parser.add_argument("--only", nargs="*", help="names of variants")
    options = parser.parse_args()
    check_names(options.only or (), variants())
    with crew(options.folder, options.model, options.workers) as pool:
        list(pool.map(_tried, options.only or variants()))
    found = write_scores(options.folder, Painter(options.model))
    for label, records in _by_variant(found["learned"]):
        volume, at = np.mean([hypervolume(record["curve"]) for record in records]), best(mean_curve(records))
        print(f"{volume:.3f}  {at['identified']:4.0%}  {at['prompt']:4.0%}  at {at['setting']:<5g} {label}")
    for kind in TOGETHER:
        for label, records in _by_variant(found.get(kind, ())):
            settings = [name for name in records[0]["scores"] if name != "genuine scenes"]
            shares = {name: np.mean([record["scores"][name]["all"] for record in records]) for name in settings}
            print(f"{kind} ", *(f"{share:4.0%} at {name:<4}" for name, share in shares.items()), label)


def _by_variant(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    found = defaultdict(list)
    for record in records:
        found[record["method"]].append(record)
    return list(found.items())


def _tried(label: str) -> None:
    """A variant: every individual alone, and in every order together."""
    if bench().painted(label, INDIVIDUALS[-1], 0).exists():
        return
    method, learned, seconds = variants()[label], {}, {}
    for number in INDIVIDUALS:
        start = time.process_time()
        learned[number] = method(bench().painter, task(number), 0)
        seconds[number] = time.process_time() - start
    for kind, count in TOGETHER.items() if not isinstance(method, FineTune) else ():
        for index, numbers in enumerate(itertools.permutations(INDIVIDUALS, count)):
            sentences = [prompt.sentence for prompt in prompts_together([task(number) for number in numbers])]
            way = _combined([learned[number] for number in numbers])
            found = {f"{at:g}": way.paint(bench().strong, sentences, index, at) for at in way.settings}
            path = bench().painted(f"{kind}, {label}", numbers[0], index)
            bench().keep(path, found, {"kind": kind, "numbers": numbers, "method": label})
    for number in INDIVIDUALS:
        bench().show(learned[number], number, 0, label, seconds[number])


def _combined(learned: Sequence[Learned]) -> Learned:
    """For prompts that name them in this order."""
    if isinstance(learned[0], LearnedConcepts):
        return LearnedConcepts([one.concepts[0] for one in learned], BETAS)
    if isinstance(learned[0], LearnedWeights) and 1.0 in learned[0].versions:
        return LearnedSum(learned, STRENGTHS)
    return LearnedSum([replace(one, versions={1.0: one.versions[one.settings[-1]]}) for one in learned])


if __name__ == "__main__":
    main()
