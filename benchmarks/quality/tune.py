"""What the settings of every method are chosen by, on three concepts that are not reported.

    bash scripts/env.sh python benchmarks/quality/tune.py FOLDER --judges FOLDER [--only VARIANT ...] [--seeds 0 1 2]

For every variant, over koala, boot and blowfish: how often the concept is found at the variant's best setting
(Perfusion: at beta 0.5), how often two of them are found in one picture, and the hypervolume. Finished pieces are kept
in FOLDER.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "benchmarks" / "world")]

from evaluation import Judges, anchors, combined_scores, curve, noise, painted
from gates import inverse_covariance
from methods import (
    MIDDLE_BETA,
    PICTURES,
    FineTune,
    Learned,
    LearnedConcepts,
    Lora,
    Method,
    Pasted,
    Perfusion,
    TextualInversion,
    summed,
)
from painter import Painter, task
from report import hypervolume, points
from run import PAIRED, check_names, once
from scenes import TUNING_CONCEPTS


def variants(inverse: Tensor) -> dict[str, Method]:
    plain = Perfusion(inverse)

    def perfusion(least: int = plain.min_timestep, outside: float = plain.outside, **settings: Any) -> Method:
        chosen = replace(plain.settings, **settings)
        return Pasted(replace(plain, min_timestep=least, outside=outside, settings=chosen))

    falling = {"learning_rate_schedule": "cosine", "learning_rate_values": 0.1}
    made: dict[str, Method] = {
        "perfusion": Pasted(plain),
        "perfusion, from 500": perfusion(500),
        "perfusion, all timesteps": perfusion(0),
        "perfusion, nothing masked": perfusion(outside=1.0),
        "perfusion, falling from 0.1": perfusion(**falling),
        "perfusion, falling from 0.1, 800 of 2": perfusion(**falling, steps=800, batch_size=2),
        "perfusion, 200 of 8": perfusion(steps=200, batch_size=8),
    }
    for rate in (0.03, 0.1):
        made[f"perfusion, values {rate:g}"] = perfusion(learning_rate_values=rate)
    for rate in (0.003, 0.006):
        made[f"perfusion, embedding {rate:g}"] = perfusion(learning_rate_embedding=rate)
    for rate in (0.005, 0.01):
        made[f"textual inversion, {rate:g}"] = TextualInversion(rate)
    for rank, rate in itertools.product((1, 4), (0.0005, 0.001)):
        made[f"lora, rank {rank}, {rate:g}"] = Lora(rank, rate)
    for rate in (0.0005, 0.001):
        made[f"lora, rank 4, pasted, {rate:g}"] = Pasted(Lora(4, rate))
    for rate in (0.0002, 0.0004):
        made[f"custom diffusion, {rate:g}"] = FineTune(r"attn2\.to_[kv]\.", rate, embedding_rate=0.006)
    for batch, rate in ((16, 0.0006), (4, 0.0006), (4, 0.0003)):
        made[f"dreambooth, {PICTURES // batch} of {batch}, {rate:g}"] = FineTune("", rate, batch=batch)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judges", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    options.folder.mkdir(parents=True, exist_ok=True)
    painter, judges = Painter(), Judges.load(options.judges)
    chosen = variants(inverse_covariance(painter))
    check_names(options.only or (), chosen)
    for name, seed in itertools.product(options.only or chosen, options.seeds):
        piece = partial(tried, painter, judges, chosen[name], seed)
        found = once(options.folder / f"{name} - {seed}.json", piece)
        both = f"{100 * found['both']:3.0f} %" if found["both"] is not None else "     "
        print(f"{100 * found['alone']:3.0f} %  {both}  {found['hypervolume']:.3f}  {name} - {seed}", flush=True)


def tried(painter: Painter, judges: Judges, method: Method, seed: int) -> dict[str, Any]:
    learned = {name: method(painter, task(name), seed) for name in TUNING_CONCEPTS}
    curves = {name: curve(judges, painted(painter, one, seed), task(name)) for name, one in learned.items()}
    ends = {name: anchors(painter, judges, task(name), (seed,)) for name in TUNING_CONCEPTS}
    volumes = [hypervolume(points({"concept": name, "curve": row}, ends)) for name, row in curves.items()]
    shares = [sum(at["concept"] for at in row) / len(row) for row in zip(*curves.values(), strict=True)]
    settings = learned["koala"].settings
    alone = shares[settings.index(MIDDLE_BETA)] if isinstance(learned["koala"], LearnedConcepts) else max(shares)
    volume = sum(volumes) / len(volumes)
    return {"alone": alone, "both": both(painter, judges, learned, seed), "hypervolume": volume, "curves": curves}


def both(painter: Painter, judges: Judges, learned: dict[str, Learned], seed: int) -> float | None:
    """The share of pictures with two concepts that show both; None for methods that do not add up."""
    shown = []
    for pair in itertools.permutations(learned, 2):
        together = added_up(painter, [learned[name] for name in pair])
        if together is None:
            return None
        pictures = together.paint(painter, PAIRED, noise(len(PAIRED), seed), together.settings[0])
        shown.append(combined_scores(judges, pictures, pair)["all_shown"])
    return sum(shown) / len(shown)


def added_up(painter: Painter, learned: Sequence[Any]) -> Learned | None:
    if isinstance(learned[0], LearnedConcepts):
        return LearnedConcepts([one.concepts[0] for one in learned], (MIDDLE_BETA,))
    return summed(painter, learned) if 1.0 in learned[0].versions else None


if __name__ == "__main__":
    main()
