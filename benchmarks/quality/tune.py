"""What the settings of every method are chosen by, on three individuals that are not reported.

    bash scripts/env.sh python -m benchmarks.quality.tune FOLDER [--workers 2] [--only VARIANT ...]

For every variant the hypervolume (see report.py), how often the individual is nearest and how often the rest of the
prompt is there, at the variant's best setting. Finished pieces are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .methods import FineTune, Lora, Method, Perfusion, TextualInversion
from .painter import FILE, Painter
from .report import best, hypervolume, mean_curve
from .run import bench, check_names, crew, write_scores

INDIVIDUALS = (100, 101, 103)  # a house, a robot and a cat
CUSTOM = r"attn2\.to_[kv]\."


def variants() -> dict[str, Method]:
    plain = Perfusion()

    def perfusion(least: int = plain.least, outside: float = plain.outside, **settings: Any) -> Method:
        return replace(plain, least=least, outside=outside, settings=replace(plain.settings, **settings))

    made: dict[str, Method] = {"perfusion": plain, "perfusion, all timesteps": perfusion(0)}
    for rate in (0.03, 0.1):
        made[f"perfusion, values {rate:g}"] = perfusion(learning_rate_values=rate)
    for rate in (0.003, 0.006):
        made[f"perfusion, embedding {rate:g}"] = perfusion(learning_rate_embedding=rate)
    for rate in (0.002, 0.005, 0.01):
        made[f"textual inversion, {rate:g}"] = TextualInversion(rate)
    for rank, rate in itertools.product((1, 4), (0.001, 0.002, 0.004)):
        made[f"lora, rank {rank}, {rate:g}"] = Lora(rank, rate)
    for rate in (0.0001, 0.0002, 0.0004):
        made[f"custom diffusion, {rate:g}"] = FineTune(CUSTOM, rate, embedding_rate=0.006)
    for batch, rate in itertools.product((4, 16), (0.0001, 0.0003)):
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
        list(pool.map(_tried, *zip(*itertools.product(options.only or variants(), INDIVIDUALS), strict=True)))
    of_variant = defaultdict(list)
    for record in write_scores(options.folder, Painter(options.model))["learned"]:
        of_variant[record["method"]].append(record)
    for label, records in of_variant.items():
        volume, at = np.mean([hypervolume(record["curve"]) for record in records]), best(mean_curve(records))
        print(f"{volume:.3f}  {at['identified']:4.0%}  {at['prompt']:4.0%}  at {at['setting']:<5g} {label}")


def _tried(label: str, number: int) -> None:
    bench().alone(number, 0, label, variants()[label])


if __name__ == "__main__":
    main()
