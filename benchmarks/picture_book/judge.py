"""Tells individuals apart, whatever the place and posture: trained on the latents of scenes with one thing.

    bash scripts/env.sh python -m benchmarks.picture_book.judge [--steps 800]

An embedding network, as in face recognition: a latent is brought near the embedding of its individual's attributes, and
away from those of a hundred others of the class. Beside it, readers of single attributes and of the place.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import FOLDER
from .individuals import CLASSES, LISTS, WIDTH, Individual, any_individual
from .networks import Vocabulary
from .places import PLACES
from .pool import FIRST, Pool, planned
from .train_autoencoder import trained_vae

TRAINED = FOLDER / "judge.pt"
SCENES = 6000  # that it needs at least
BATCH, RATE, OTHERS, BANK, SHARPNESS, NOISE = 64, 2e-3, 100, 1500, 16.0, 0.1
READ = ("kind", "shape", "colour", "second", "pattern", "accessory", "accessory_colour", "place")


class Judge(nn.Module):
    def __init__(self, width: int = 64, size: int = 64):
        super().__init__()
        self.first = nn.Conv2d(16, width, 3, padding=1)
        self.fine = nn.ModuleList(_Block(width) for _ in range(2))
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.coarse = nn.ModuleList(_Block(2 * width) for _ in range(2))
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(2 * width * 36, 384), nn.SiLU())
        self.embedding = nn.Linear(384, size)
        self.reading = nn.Linear(384, WIDTH + len(PLACES))
        self.individual = nn.Sequential(nn.Linear(WIDTH, 256), nn.SiLU(), nn.Linear(256, size))

    def forward(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeddings (n, size) and, for every name in READ, (n, values)."""
        x = self.first(latents)
        for block in self.fine:
            x = block(x)
        x = self.down(x)
        for block in self.coarse:
            x = block(x)
        x = self.out(x)
        sizes = [len(values) for values in (*LISTS, PLACES)]
        return F.normalize(self.embedding(x), dim=-1), list(self.reading(x).split(sizes, -1))

    def of(self, individuals: Tensor) -> Tensor:
        """Embeddings (..., size) of individuals (..., WIDTH)."""
        return F.normalize(self.individual(individuals), dim=-1)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def others(kind: str, count: int, seed: int) -> Tensor:
    """(count, WIDTH), individuals of a class by chance."""
    random = np.random.default_rng((8, CLASSES.index(kind), seed))
    return torch.from_numpy(np.stack([any_individual(random, kind).numbers() for _ in range(count)]))


def truth(one: Individual, place: str) -> list[int]:
    """The index of every READ value, -1 for what the individual lacks."""
    found = [one.kind, one.shape, one.colour, one.second, one.pattern, one.accessory, one.accessory_colour, place]
    lists = [tuple(values) for values in (*LISTS, PLACES)]
    return [values.index(value) if value in values else -1 for values, value in zip(lists, found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pool = Pool(trained_vae(), Vocabulary())
    while pool.count < SCENES:
        pool.grow()
    usable = pool.simple()
    banks = {kind: others(kind, BANK, 0) for kind in CLASSES}
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, options.steps, pct_start=0.1)
    random, errors = np.random.default_rng(9), []
    for step in range(options.steps):
        chosen = random.choice(usable, BATCH)
        shown = [(things[0], place) for things, place, _ in (planned(FIRST + int(index)) for index in chosen)]
        latents = pool.latents(chosen)
        latents = latents + NOISE * torch.randn_like(latents) * torch.rand(BATCH, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, read = judge(latents)
            mine = torch.from_numpy(np.stack([one.numbers() for one, _ in shown]))[:, None]
            rivals = torch.stack([banks[one.kind][random.integers(BANK, size=OTHERS)] for one, _ in shown])
            candidates = judge.of(torch.cat([mine, rivals], 1))
        like = SHARPNESS * torch.einsum("nd,ncd->nc", embeddings.float(), candidates.float())
        loss = F.cross_entropy(like, torch.zeros(BATCH, dtype=torch.long))
        answers = torch.tensor([truth(one, place) for one, place in shown])
        for part, answer in zip(read, answers.T, strict=True):
            loss = loss + 0.3 * F.cross_entropy(part.float(), answer, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        errors.append((like.argmax(1) != 0).float().mean().item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss.item():.3f}  not nearest {np.mean(errors[-100:]):.3f}", flush=True)
    torch.save(judge.state_dict(), TRAINED)


def trained_judge() -> Judge:
    judge = Judge()
    judge.load_state_dict(torch.load(TRAINED, weights_only=True))
    return judge.eval()


if __name__ == "__main__":
    main()
