"""Tells who stands in a picture, whatever the place, the style, and who else: trained on the latents of all scenes.

    bash scripts/env.sh python -m benchmarks.world.judge [--steps 5000]

It is asked for a class, and says who of that class is there. An embedding network, as in face recognition: a latent is
brought near the embedding of its individual's attributes, and away from those of a hundred others of the class. Beside
it, readers of single attributes, of the place and the style, and of whether that class is there at all. In training
the class is one that stands once in the scene, or, now and then, one that does not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import FOLDER
from .individuals import CLASSES, LISTS, WIDTH, Individual, any_individual
from .networks import Vocabulary
from .places import PLACES, STYLES
from .pool import FIRST, Pool, planned
from .train_autoencoder import trained_vae

TRAINED = FOLDER / "judge.pt"
SCENES = 60_000  # of 6,000 it learns each by heart
BATCH, RATE, OTHERS, BANK, SHARPNESS, NOISE = 64, 2e-3, 100, 1500, 16.0, 0.1
LOOKS = 8  # places of a picture that it looks at, wherever they are
CROWDED = 0.5  # share of a batch that has two things for sure; in the world such scenes are few, and harder
ABSENT = 0.15  # how often it is asked for a class that the picture does not show
READ = {
    **dict(zip(("shape", "colour", "second", "pattern", "accessory", "accessory_colour"), LISTS[1:], strict=True)),
    "place": tuple(PLACES),
    "style": tuple(STYLES),
    "shown": (False, True),
}


class Judge(nn.Module):
    def __init__(self, width: int = 64, size: int = 64):
        super().__init__()
        self.first = nn.Conv2d(16, width, 3, padding=1)
        self.fine = nn.ModuleList(_Block(width) for _ in range(2))
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.coarse = nn.ModuleList(_Block(2 * width) for _ in range(2))
        self.where = nn.Conv2d(3 * width, LOOKS, 1)
        self.out = nn.Sequential(nn.Linear((2 * 36 + 3 * LOOKS) * width, 384), nn.SiLU())
        self.embedding = nn.Linear(384, size)
        self.reading = nn.Linear(384, sum(map(len, READ.values())))
        self.individual = nn.Sequential(nn.Linear(WIDTH, 256), nn.SiLU(), nn.Linear(256, size))

    def forward(self, latents: Tensor, asked: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the asked class in each latent: embeddings (n, size) and, for every name in READ, (n, values).

        Beside these, as "where": how much it looks at the left half and at the right one, (n, 2), as logarithms.
        """
        kinds = torch.tensor([CLASSES.index(kind) for kind in asked])
        x = self.first(latents)
        for block in self.fine:
            x = block(x, kinds)
        fine, x = x, self.down(x)
        for block in self.coarse:
            x = block(x, kinds)
        both = torch.cat([fine, F.interpolate(x, scale_factor=2.0)], 1)
        looks = self.where(both).flatten(2).float().softmax(-1)  # (n, LOOKS, 144)
        seen = looks.to(both.dtype) @ both.flatten(2).mT
        x = self.out(torch.cat([x.flatten(1), seen.flatten(1)], 1))
        parts = self.reading(x).split([len(values) for values in READ.values()], -1)
        halves = looks.mean(1).unflatten(1, (12, 2, 6)).sum((1, 3))
        read = {**dict(zip(READ, parts, strict=True)), "where": halves.clamp_min(1e-6).log()}
        return F.normalize(self.embedding(x), dim=-1), read

    def of(self, individuals: Tensor) -> Tensor:
        """Embeddings (..., size) of individuals (..., WIDTH)."""
        return F.normalize(self.individual(individuals), dim=-1)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.kind = nn.Embedding(len(CLASSES), width)
        self.before = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.after = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        return x + self.after(self.before(x) + self.kind(kinds)[..., None, None])


def others(kind: str, count: int, seed: int) -> Tensor:
    """(count, WIDTH), individuals of a class by chance."""
    random = np.random.default_rng((8, CLASSES.index(kind), seed))
    return torch.from_numpy(np.stack([any_individual(random, kind).numbers() for _ in range(count)]))


def truth(one: Individual | None, place: str, style: str = "") -> list[int]:
    """The index of every READ value, -1 for what does not apply; without an individual its class is not shown."""
    found = {**(vars(one) if one else {}), "place": place, "style": style, "shown": one is not None}
    return [values.index(found[name]) if found.get(name) in values else -1 for name, values in READ.items()]


def questions(numbers: Sequence[int], random: np.random.Generator) -> list[tuple[str, Individual | None]]:
    """For each scene of the pool a class to ask for, and who of it is there."""
    found: list[tuple[str, Individual | None]] = []
    for number in numbers:
        kinds = [one.kind for one in planned(FIRST + number)[0]]
        once = [one for one in planned(FIRST + number)[0] if kinds.count(one.kind) == 1]
        if once and random.random() >= ABSENT:
            one = once[int(random.integers(len(once)))]
            found.append((one.kind, one))
        else:
            absent = [kind for kind in CLASSES if kind not in kinds]
            found.append((absent[int(random.integers(len(absent)))], None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pool = Pool(trained_vae(), Vocabulary())
    while pool.count < SCENES:
        pool.grow()
    banks = {kind: others(kind, BANK, 0) for kind in CLASSES}
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, options.steps, pct_start=0.1)
    crowded = np.array([index for index in range(pool.count) if len(planned(FIRST + index)[0]) > 1])
    random, errors = np.random.default_rng(9), []
    for step in range(options.steps):
        some = round(CROWDED * BATCH)
        chosen = np.concatenate([random.choice(pool.count, BATCH - some), random.choice(crowded, some)])
        asked = questions(chosen.tolist(), random)
        latents = pool.latents(chosen)
        latents = latents + NOISE * torch.randn_like(latents) * torch.rand(BATCH, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, read = judge(latents, [kind for kind, _ in asked])
            there = [index for index, (_, one) in enumerate(asked) if one]
            mine = torch.from_numpy(np.stack([one.numbers() for _, one in asked if one]))[:, None]
            rivals = torch.stack([banks[asked[index][0]][random.integers(BANK, size=OTHERS)] for index in there])
            candidates = judge.of(torch.cat([mine, rivals], 1))
        like = SHARPNESS * torch.einsum("nd,ncd->nc", embeddings[there].float(), candidates.float())
        loss = F.cross_entropy(like, torch.zeros(len(there), dtype=torch.long))
        scenes = [planned(FIRST + index) for index in chosen.tolist()]
        answers = [truth(one, place, style) for (_, one), (_, place, style) in zip(asked, scenes, strict=True)]
        halves = [things.index(one) if one and len(things) == 2 else -1
                  for (_, one), (things, _, _) in zip(asked, scenes, strict=True)]  # fmt: skip
        for name, answer in zip([*READ, "where"], torch.tensor([*zip(*answers, strict=True), halves]), strict=True):
            loss = loss + 0.3 * F.cross_entropy(read[name].float(), answer, ignore_index=-1)
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
