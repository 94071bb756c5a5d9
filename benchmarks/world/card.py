"""What the model can paint: how often a picture shows what its prompt names, as judge.py reads it.

    bash scripts/env.sh python -m benchmarks.world.card [--prompts 100] [--seeds 3] [--sheet OUT.png]

Individuals that no training scene shows, told in words. Beside it the same readers on genuine scenes of the prompts.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from .individuals import CLASSES, NOBODY, Individual, individual
from .judge import READ, Judge, trained_judge, truth
from .places import PLACES
from .pool import encoded
from .sampling import encode, paint
from .scenes import COUNTS, described, scene, sheet
from .teach import Model

AT_ONCE = 24


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
        kinds = random.permutation(CLASSES)[: 1 + int(random.choice(len(COUNTS), p=COUNTS))]
        things = tuple(individual(random, str(kind), held_out=True) for kind in kinds)
        found.append(Prompt(things, tuple(_left_open(one, random) for one in things), str(random.choice([*PLACES]))))
    return found


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
    model, judge, asked = Model(), trained_judge(), prompts(options.prompts)
    print(f"the model after {model.steps} steps, {options.prompts} prompts, {options.seeds} seeds", flush=True)
    scenes = [scene(200 + i, one.things, one.place, "").image for i, one in enumerate(asked)]
    genuine = model.pool.normal(encoded(model.pool.vae, np.stack(scenes)))
    shown = [painted(model, [one.sentence for one in asked], seed) for seed in range(options.seeds)]
    for name, latents in (("genuine scenes", genuine), ("the model", torch.cat(shown))):
        shares = hits(judge, latents, asked * (len(latents) // len(asked)))
        print(f"{name:15}", *(f"{what} {share:4.0%}" for what, share in shares.items()), flush=True)
    if options.sheet:
        sheet(list(model.pictures(shown[0][:48])), 12, zoom=1).save(options.sheet)
        for one in asked[:48]:
            print(one.sentence)


def painted(model: Model, sentences: list[str], seed: int) -> Tensor:
    parts = []
    for first in range(0, len(sentences), AT_ONCE):
        some = sentences[first : first + AT_ONCE]
        positive, negative = (encode(model.text, texts).bfloat16() for texts in (some, [""] * len(some)))
        parts.append(paint(model.unet, positive, negative, 1000 * seed + first))
    return torch.cat(parts)


@torch.no_grad()
def hits(judge: Judge, latents: Tensor, asked: list[Prompt]) -> dict[str, float]:
    """Shares of what prompts name that is there; "two": both of two things."""
    right = defaultdict(list)
    for latent, prompt in zip(latents, asked, strict=True):
        _, read = judge(latent.expand(len(prompt.things), -1, -1, -1), [one.kind for one in prompt.things])
        there = (read["shown"].argmax(-1) == 1).tolist()
        right[("", "class", "two", "three")[len(prompt.things)]].append(all(there))
        right["place"].append(int(read["place"][0].argmax()) == READ["place"].index(prompt.place))
        for k, (one, left) in enumerate(zip(prompt.things, prompt.unsaid, strict=True)):
            answers = dict(zip(READ, truth(one, prompt.place), strict=True))
            for name in ("shape", "colour", "pattern", "accessory"):
                if getattr(left, name) != getattr(one, name) and (getattr(one, name) or name != "accessory"):
                    right[name].append(int(read[name][k].argmax()) == answers[name])
    return {name: float(np.mean(found)) for name, found in right.items()}


if __name__ == "__main__":
    main()
