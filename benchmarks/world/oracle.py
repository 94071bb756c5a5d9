"""The question before all others: can one word carry an individual? Go on when it is nearest in 70 % of pictures.

    bash scripts/env.sh python -m benchmarks.world.oracle [--pictures 4] [--sheet OUT.png]

Individuals that no training scene shows are asked for by their true one-word names; no concept is taught. A picture
counts when the individual is the nearest among 101 of its class to the reader (reader.py). Beside it: the same with
all attributes in words, with the class word alone, and genuine scenes, which say how good the reader is.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from .individuals import CLASSES, Individual, individual
from .networks import TextEncoder, Vocabulary, as_pictures, make_unet, precision
from .places import PLACES
from .pool import Pool, encoded
from .reader import READ, Reader, as_numbers, others, read, trained_reader
from .sampling import encode, paint
from .scenes import NAMES, described, scene, sheet
from .train_autoencoder import trained_vae
from .train_diffusion import newest

PER_CLASS, OTHERS = 4, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=4, help="of every individual, each in another place")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    vae = trained_vae()
    pool, reader = Pool(vae, Vocabulary()), trained_reader()
    text, unet = TextEncoder(pool.vocabulary), make_unet()
    trained, steps = newest()
    for model, weights in zip((text, unet), trained, strict=True):
        model.load_state_dict(weights)
        model.to(precision())
    print(f"after {steps} steps, {options.pictures} pictures of each of {PER_CLASS * len(CLASSES)} individuals")

    random = np.random.default_rng(10)
    ones = [individual(random, kind, held_out=True) for kind in CLASSES for _ in range(PER_CLASS)]
    asked = [(one, place) for one in ones for place in random.choice(list(PLACES), options.pictures, replace=False)]
    ways = {
        "by its name": [NAMES[0]] * len(asked),
        "in words": [described(one) for one, _ in asked],
        "class word": [f"a {one.kind}" for one, _ in asked],
    }
    genuine = [scene(i, [one], place, "").image for i, (one, place) in enumerate(asked)]
    latents = {"genuine scenes": pool.normal(encoded(pool.vae, np.stack(genuine)))}
    for way, things in ways.items():
        prompts = [f"a photo of {thing} {PLACES[place]}" for thing, (_, place) in zip(things, asked, strict=True)]
        latents[way] = painted(text, unet, prompts, [one for one, _ in asked], options.guidance)
    pictures = {way: as_pictures(vae.decode((shown * pool.std + pool.mean).to(precision())))
                for way, shown in latents.items()}  # fmt: skip
    for way, shown in pictures.items():
        shares = verdict(reader, shown, asked)
        print(f"{way:15}", *(f"{name} {share:4.0%}" for name, share in shares.items()), flush=True)
    if options.sheet:
        step = options.pictures
        rows = [
            shown[start : start + step * PER_CLASS : step]
            for start in range(0, len(asked), step * PER_CLASS)
            for shown in pictures.values()
        ]
        order = [rows[4 * k + way] for way in range(4) for k in range(len(CLASSES))]
        sheet([picture for row in order for picture in row], PER_CLASS * len(CLASSES), zoom=1).save(options.sheet)


def painted(text, unet, prompts: list[str], ones: list[Individual], guidance: float, at_once: int = 24) -> Tensor:
    parts = []
    for first in range(0, len(prompts), at_once):
        part = slice(first, first + at_once)
        positive = encode(text, prompts[part], [(one,) for one in ones[part]])
        negative = encode(text, [""] * len(prompts[part]))
        parts.append(paint(unet, positive, negative, seed=first, guidance=guidance))
    return torch.cat(parts)


@torch.no_grad()
def verdict(reader: Reader, pictures: np.ndarray, asked: Sequence[tuple[Individual, str]]) -> dict[str, float]:
    """Shares of the pictures: nearest among 101, among the five nearest, and with each attribute right."""
    rivals, right = {kind: reader.of(others(kind, OTHERS, 1)) for kind in CLASSES}, defaultdict(list)
    for picture, (one, place) in zip(pictures, asked, strict=True):
        (seen,), found, style = read(reader, picture, [one.kind])
        own = seen.embedding @ reader.of(as_numbers([one]))[0]
        rank = int((rivals[one.kind] @ seen.embedding > own).sum())
        right["nearest"].append(rank == 0)
        right["in five"].append(rank < 5)
        for name, value in {**vars(one), "place": place, "style": ""}.items():
            if value in READ[name]:
                right[name].append({**seen.said, "place": found, "style": style}[name] == value)
    return {name: float(np.mean(hits)) for name, hits in right.items()}


if __name__ == "__main__":
    main()
