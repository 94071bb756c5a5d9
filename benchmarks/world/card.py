"""What the model can paint: how often a picture shows what its prompt names, as reader.py reads it.

    bash scripts/env.sh python -m benchmarks.world.card [--prompts 100] [--seeds 3] [--sheet OUT.png]

Individuals that no training scene shows, told in words. Beside it the same reader on genuine scenes of the prompts, as
they are and through the autoencoder.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from .individuals import BOOK, CLASSES, NOBODY, Individual, individual
from .networks import precision
from .places import PLACES
from .reader import Reader, read, trained_reader
from .sampling import encode, paint
from .scenes import described, scene, sheet
from .teach import Model

AT_ONCE, STEPS, GUIDANCE = 24, 12, 5.0


@dataclass(frozen=True)
class Prompt:
    """Its things are of different classes."""

    things: tuple[Individual, ...]
    unsaid: tuple[Individual, ...]  # of each thing what the sentence leaves open
    place: str

    @property
    def sentence(self) -> str:
        parts = (described(one, said=left) for one, left in zip(self.things, self.unsaid, strict=True))
        return f"a photo of {' and '.join(parts)} {PLACES[self.place]}"


def prompts(count: int) -> list[Prompt]:
    random, found = np.random.default_rng(14), []
    for _ in range(count):
        kinds = random.permutation(CLASSES)[: 1 + int(random.choice(len(BOOK.counts), p=BOOK.counts))]
        things = tuple(individual(random, str(kind), held_out=True) for kind in kinds)
        found.append(Prompt(things, tuple(_left_open(one, random) for one in things), str(random.choice([*PLACES]))))
    return found


def genuine(asked: Sequence[Prompt]) -> list[np.ndarray]:
    """A scene of each prompt, (96, 96, 3)."""
    return [scene(200 + i, one.things, one.place, "").image for i, one in enumerate(asked)]


def _left_open(one: Individual, random: np.random.Generator) -> Individual:
    """Shape, pattern and accessory now and then; the colour is always told."""
    groups = [("shape",), ("pattern", "second"), ("accessory", "accessory_colour")]
    left = [name for group in groups if random.random() < 0.5 for name in group]
    return replace(NOBODY, **{name: getattr(one, name) for name in left})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sheet", type=Path, help="the first 48 pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model, reader, asked = Model(), trained_reader(), prompts(options.prompts)
    print(f"the model after {model.steps} steps, {options.prompts} prompts, {options.seeds} seeds", flush=True)
    scenes = genuine(asked)
    shown = [painted(model, [one.sentence for one in asked], seed) for seed in range(options.seeds)]
    ways = {
        "genuine scenes": scenes,
        "through the autoencoder": model.pictures(model.latents(scenes)),
        "the model": model.pictures(torch.cat(shown)),
    }
    for name, pictures in ways.items():
        shares = hits(reader, pictures, asked * (len(pictures) // len(asked)))
        print(f"{name:24}", *(f"{what} {share:4.0%}" for what, share in shares.items()), flush=True)
    if options.sheet:
        sheet(list(ways["the model"][:48]), 12, zoom=1).save(options.sheet)
        for one in asked[:48]:
            print(one.sentence)


def painted(model: Model, sentences: list[str], seed: int) -> Tensor:
    parts = []
    for first in range(0, len(sentences), AT_ONCE):
        some = sentences[first : first + AT_ONCE]
        positive, negative = (encode(model.text, texts).to(precision()) for texts in (some, [""] * len(some)))
        parts.append(paint(model.unet, positive, negative, 1000 * seed + first, STEPS, GUIDANCE))
    return torch.cat(parts)


def hits(reader: Reader, pictures: Sequence[np.ndarray], asked: Sequence[Prompt]) -> dict[str, float]:
    """Shares of what prompts name that is there; "two", "three": all of so many things."""
    right = defaultdict(list)
    for picture, prompt in zip(pictures, asked, strict=True):
        things, place, _ = read(reader, picture, [one.kind for one in prompt.things])
        there = all(found.said["kind"] == one.kind for found, one in zip(things, prompt.things, strict=True))
        right[("", "class", "two", "three")[len(prompt.things)]].append(there)
        right["place"].append(place == prompt.place)
        for found, one, left in zip(things, prompt.things, prompt.unsaid, strict=True):
            for name in ("shape", "colour", "pattern", "accessory"):
                if getattr(left, name) != getattr(one, name) and (getattr(one, name) or name != "accessory"):
                    right[name].append(found.said[name] == getattr(one, name))
    return {name: float(np.mean(found)) for name, found in right.items()}


if __name__ == "__main__":
    main()
