"""Concepts on transformers in the demo model's UNet's place: joint attention by values alone, and cross-attention.

    bash scripts/env.sh python -m benchmarks.quality.transformers joint|cross|unet FOLDER [--individuals 0 1 2 5 6 7]

The tasks, prompts, reader and settings are run.py's; what is painted is kept in FOLDER, so it goes on where it was
stopped. A transformer must be trained: benchmarks/world/train_transformer.py. With "unet" it is the UNet itself, for
values alone there.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.world.networks import precision
from benchmarks.world.train_transformer import trained_path
from benchmarks.world.transformers import cross_wiring, joint_wiring, make_transformer
from perfusion_core import ConceptSet, Wiring

from .methods import Lora, Method, Perfusion, TextualInversion
from .painter import Painter
from .report import best, mean_curve, means_by_way
from .run import LOCKED, Bench, check_names, write_scores
from .variants import OffsetPhotos, PlainWordTraining

INDIVIDUALS = (0, 1, 2, 5, 6, 7)
JOINT_RATE = 0.15  # of values alone: better than 0.05 on an individual that is not reported
SHOWN = ("setting", "identified", "in five", "class", "prompt", "place")


class TransformerPainter(Painter):
    zero_padded = True  # both have a norm behind their keys

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.unet = kind, make_transformer(kind)
        self.unet.load_state_dict(torch.load(trained_path(kind), weights_only=True)["models"][0])
        self.unet.to(precision()).eval().requires_grad_(False)

    def wiring(self, concepts: ConceptSet | None = None) -> Wiring:
        return (joint_wiring if self.kind == "joint" else cross_wiring)(self.unet, concepts)

    def adapted(self) -> list[str]:
        """In joint attention those of both streams."""
        ends = ("attn.qkv",) if self.kind == "joint" else ("cross_attn.k_proj", "cross_attn.v_proj")
        return [name for name, _ in self.unet.named_modules() if name.endswith(ends)]


def methods(kind: str) -> dict[str, Method]:
    plain = Perfusion()
    locked = replace(plain, settings=replace(plain.settings, key_freedom=0.0))
    values = {"values alone": replace(locked, kind=PlainWordTraining)}
    others: dict[str, Method] = {"lora, rank 4": Lora(4), "textual inversion": TextualInversion()}
    if kind == "joint":
        faster = replace(plain, settings=replace(plain.settings, learning_rate_values=JOINT_RATE))
        alone = {"values alone": replace(faster, kind=PlainWordTraining)}
        return {**alone, "values and an offset": replace(plain, of=OffsetPhotos), "values and a word": plain, **others}
    return values if kind == "unet" else {"perfusion": plain, LOCKED: locked, **values, **others}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=["joint", "cross", "unet"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--individuals", nargs="*", type=int, default=INDIVIDUALS)
    parser.add_argument("--only", nargs="*", help="names of methods")
    options = parser.parse_args()
    known = methods(options.kind)
    check_names(options.only or (), known)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    bench = Bench(options.folder, Painter() if options.kind == "unet" else TransformerPainter(options.kind))
    for number in options.individuals:
        bench.references(number)
        for label in options.only or known:
            bench.alone(number, 0, label, known[label])
    found, curves = write_scores(options.folder, bench.painter), defaultdict(list)
    for record in found["learned"]:
        curves[record["method"]].append(record)
    rows = means_by_way(found["references"])
    rows |= {label: best(mean_curve(records)) for label, records in curves.items()}
    for label, row in rows.items():
        print(f"{label:20}", *(f"{name} {row[name]:4.0%}" for name in SHOWN if name in row))


if __name__ == "__main__":
    main()
