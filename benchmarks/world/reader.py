"""Reads off a picture what stands in it: each thing's class and attributes, the place and the style; and who it is.

    bash scripts/env.sh python -m benchmarks.world.reader [--steps 3000]    # trains it; then how often it is right
    bash scripts/env.sh python -m benchmarks.world.reader --critic --steps 400    # that teaches the autoencoder

It looks at one thing at a time, at the part of the picture where the k-th of n things stands, enlarged as if it stood
alone. Who it is, it tells as in face recognition: by an embedding, near that of the individual's attributes and far
from those of others of the class. It learns from new scenes all the time, of all classes, some with a thing taken away;
a model's pictures are softer than scenes, so many are blurred a little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from .cache import FOLDER
from .individuals import CLASSES, LISTS, WIDTH, Individual, any_individual
from .networks import as_input, precision
from .places import PLACES, SIZE, STYLES, empty
from .scenes import SCALES, Scene, scene
from .training import Training

TRAINED, CRITIC = FOLDER / "reader.pt", FOLDER / "critic.pt"
FIRST, TESTED = 10**7, 2 * 10**7  # the numbers of its first scene, and of those that it is tested on
SCENES, RATE, SAVE_EVERY = 44, 2e-3, 50  # scenes a step: some 64 things
TAKEN, BLURRED = 0.06, 0.5  # how often a thing is taken away; a picture blurred
BANK, RIVALS, SHARPNESS = 1500, 50, 16.0  # of a class; by chance, and as many that are nearly the individual itself
NOTHING = ""
READ = {
    "kind": (*CLASSES, NOTHING),
    **dict(zip(("shape", "colour", "second", "pattern", "accessory", "accessory_colour"), LISTS[1:], strict=True)),
    "place": tuple(PLACES),
    "style": tuple(STYLES),
}
_COLOURS = ("colour", "second", "accessory_colour")
_PARTS = torch.repeat_interleave(  # of an individual's numbers: its shape, colours, pattern, and accessory
    torch.tensor([[k == 1, k == 2, k == 3, k == 4, k in (5, 6)] for k in range(len(LISTS))]),
    torch.tensor([len(values) for values in LISTS]), 0,
).T  # fmt: skip


class Reader(nn.Module):
    def __init__(
        self, widths: Sequence[int] = (32, 64, 128, 192), blocks: Sequence[int] = (1, 2, 2, 1), size: int = 64
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1)]
        for before, width, count in zip((widths[0], *widths), widths, blocks, strict=False):
            if width != before:
                layers.append(nn.Conv2d(before, width, 2, stride=2))
            layers += [_Block(width) for _ in range(count)]
        self.seen = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * widths[-1], 256), nn.SiLU())
        self.out = nn.Linear(256, sum(map(len, READ.values())))
        self.embedding = nn.Linear(256, size)
        self.individual = nn.Sequential(nn.Linear(WIDTH, 256), nn.SiLU(), nn.Linear(256, size))

    def forward(self, views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """views (n, 3, 96, 96) -> embeddings (n, size), and for every name in READ (n, values): logarithms but for a
        constant."""
        seen = self.seen(views)
        parts = self.out(seen).float().split([len(values) for values in READ.values()], -1)
        return F.normalize(self.embedding(seen).float(), dim=-1), dict(zip(READ, parts, strict=True))

    def of(self, individuals: Tensor) -> Tensor:
        """Embeddings (..., size) of individuals (..., WIDTH)."""
        return F.normalize(self.individual(individuals).float(), dim=-1)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def likeness_loss(reader: Reader, images: Tensor, wanted: Tensor) -> Tensor:
    """How far two batches of pictures (n, 3, h, w) are from each other as the reader's convolutions see them.

    As in LPIPS (Zhang et al. 2018): features of unit length, behind every block.
    """
    loss = images.new_zeros(()).float()
    for layer in reader.seen[:-3]:  # what follows is flat
        images, wanted = layer(images), layer(wanted)
        if isinstance(layer, _Block):
            unlike = F.normalize(images.float(), dim=1) - F.normalize(wanted.float(), dim=1)
            loss = loss + unlike.square().sum(1).mean()
    return loss


def view(picture: np.ndarray, k: int, count: int) -> np.ndarray:
    """(96, 96, 3): where the k-th of so many things stands, as large as if it were the only one."""
    side = SIZE * SCALES[count - 1] / SCALES[0]
    left = SIZE * (1 + (k + 0.5) / count) - side / 2
    wide = Image.fromarray(np.pad(picture, ((0, 0), (SIZE, SIZE), (0, 0)), mode="edge"))
    corners = (left, SIZE - side, left + side, SIZE)
    return np.asarray(wide.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=corners))


def truth(one: Individual | None, place: str, style: str) -> list[int]:
    """The index of every READ value; -1 for what cannot be seen: colours in gray, the attributes of nothing."""
    found = {"kind": NOTHING, **(vars(one) if one else {}), "place": place, "style": style}
    unseen = _COLOURS if style == "gray" else ()
    return [values.index(found[name]) if found.get(name) in values and name not in unseen else -1
            for name, values in READ.items()]  # fmt: skip


def as_numbers(ones: Sequence[Individual]) -> Tensor:
    """(n, WIDTH)."""
    return torch.from_numpy(np.stack([one.numbers() for one in ones]))


def others(kind: str, count: int, seed: int) -> Tensor:
    """(count, WIDTH), individuals of a class by chance."""
    random = np.random.default_rng((8, CLASSES.index(kind), seed))
    return as_numbers([any_individual(random, kind) for _ in range(count)])


def nearly(individuals: Tensor, others: Tensor, random: np.random.Generator) -> Tensor:
    """Of individuals (n, 1, WIDTH) those (n, m, WIDTH) that have the shape, a colour, the pattern or the accessory of
    others (n, m, WIDTH)."""
    taken = torch.from_numpy(random.integers(len(_PARTS), size=others.shape[:2]))
    return torch.where(_PARTS[taken], others, individuals)


Lesson = tuple[list[np.ndarray], list[list[int]], list[Individual | None]]


def lesson(number: int) -> Lesson:
    """Views of all things of a scene, what is to be read off them, and who it is, where that can be seen."""
    shown, random = scene(number), np.random.default_rng((27, number))
    things: list[Individual | None] = list(shown.things)
    picture = shown.image
    if not shown.style and random.random() < TAKEN * len(things):
        k = int(random.integers(len(things)))
        picture, things[k] = without(shown, k, number), None
    views = [view(picture, k, len(things)) for k in range(len(things))]
    for k, seen in enumerate(views):
        if random.random() < BLURRED:
            views[k] = np.asarray(Image.fromarray(seen).filter(ImageFilter.GaussianBlur(random.uniform(0, 1.2))))
    answers = [truth(one, shown.place, shown.style) for one in things]
    return views, answers, [None if shown.style == "gray" else one for one in things]


def without(shown: Scene, k: int, number: int) -> np.ndarray:
    """The picture of a scene in no style, with the place's own where its k-th thing stands."""
    place = empty(shown.place, np.random.default_rng((22, number, 1)))
    return np.where(shown.masks[k][..., None] > 0, place, shown.image)


class Seen(NamedTuple):
    embedding: Tensor  # (size,)
    said: dict[str, str]  # for every name in READ


@torch.no_grad()
def read(reader: Reader, picture: np.ndarray, kinds: Sequence[str]) -> tuple[list[Seen], str, str]:
    """What is seen of each thing asked for, and the place and the style.

    Whoever is asked for may stand in any order: in the one that fits best by their classes.
    """
    count = len(kinds)
    embeddings, found = reader(as_input([view(picture, k, count) for k in range(count)]))
    like = found["kind"].log_softmax(-1)[:, [READ["kind"].index(kind) for kind in kinds]]
    order = max(permutations(range(count)), key=lambda order: float(like[list(order), range(count)].sum()))
    said = {name: values.argmax(-1).tolist() for name, values in found.items()}
    things = [Seen(embeddings[spot], {name: READ[name][said[name][spot]] for name in READ}) for spot in order]
    place, style = (READ[name][int(found[name].sum(0).argmax())] for name in ("place", "style"))
    return things, place, style


def trained_reader(path: Path = TRAINED) -> Reader:
    reader = Reader()
    reader.load_state_dict(torch.load(path, weights_only=True)["models"][0])
    return reader.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--critic", action="store_true", help="another, which teaches the autoencoder")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    path, begin = (CRITIC, FIRST) if options.critic else (TRAINED, FIRST + 10**6)
    torch.manual_seed(begin)
    training = Training([Reader()], RATE, average=0.99, workers=options.workers)
    if path.exists():
        training.load(path)
    banks = {kind: others(kind, BANK, 0) for kind in CLASSES}
    done, start, losses = training.steps, time.monotonic(), []
    for step in range(done, options.steps):
        first = begin + step * SCENES
        lessons, random = (
            [lesson(number) for number in range(first, first + SCENES)],
            np.random.default_rng((28, first)),
        )
        batches = [Batch.of(lessons[worker :: options.workers], banks, random) for worker in range(options.workers)]

        def loss_of(models, worker, batches=batches) -> Tensor:
            batch = batches[worker]
            embeddings, found = models[0](batch.views.to(precision()))
            candidates = models[0].of(batch.candidates.to(precision()))
            return reading_loss(found, batch.answers) + identity_loss(embeddings[batch.known], candidates, batch)

        share = min(1, (step + 1) / 100, (options.steps - step) / (0.5 * options.steps))
        losses.append(training.step(loss_of, share))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            seconds = (time.monotonic() - start) / (step + 1 - done)
            print(f"step {step + 1}  loss {np.mean(losses[-SAVE_EVERY:]):.3f}  {seconds:.2f} s/step", flush=True)
            training.save(path)
    for count, shares in right(trained_reader(path), 400).items():
        print(f"{count} in a scene:", *(f"{name} {share:4.0%}" for name, share in shares.items()), flush=True)


@dataclass(frozen=True)
class Batch:
    views: Tensor  # (n, 3, 96, 96)
    answers: Tensor  # (n, len(READ))
    known: Tensor  # (m,): the views in which an individual can be told
    candidates: Tensor  # (m, 1 + 2 RIVALS, WIDTH): who it is, and who it is not

    @classmethod
    def of(cls, lessons: Sequence[Lesson], banks: Mapping[str, Tensor], random: np.random.Generator) -> Batch:
        views, answers, ones = map(list, map(chain.from_iterable, zip(*lessons, strict=True)))
        known = [one for one in ones if one]
        mine = as_numbers(known)[:, None]
        far, near = (
            torch.stack([banks[one.kind][random.integers(BANK, size=RIVALS)] for one in known]) for _ in range(2)
        )
        candidates = torch.cat([mine, far, nearly(mine, near, random)], 1)
        where = torch.tensor([index for index, one in enumerate(ones) if one])
        return cls(as_input(views), torch.tensor(answers), where, candidates)


def identity_loss(embeddings: Tensor, candidates: Tensor, batch: Batch) -> Tensor:
    """Embeddings (m, size) of views are to be nearer to the first of their candidates' (m, 1 + 2 RIVALS, size)."""
    like = SHARPNESS * torch.einsum("nd,ncd->nc", embeddings, candidates)
    same = (batch.candidates == batch.candidates[:, :1]).all(-1)
    same[:, 0] = False
    return F.cross_entropy(like.masked_fill(same, -torch.inf), torch.zeros(len(like), dtype=torch.long))


def reading_loss(found: dict[str, Tensor], answers: Tensor) -> Tensor:
    losses = [F.cross_entropy(found[name], answer, ignore_index=-1, reduction="sum") / len(answer)
              for name, answer in zip(READ, answers.T, strict=True)]  # fmt: skip
    return torch.stack(losses).sum()


@torch.no_grad()
def right(reader: Reader, scenes: int) -> dict[int, dict[str, float]]:
    """Shares read right of scenes in no style, with individuals that no training scene shows, by their number.

    "nearest": the individual is nearer than 200 others of its class.
    """
    hits: dict[int, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    rivals = {kind: reader.of(others(kind, 200, 1)) for kind in CLASSES}
    for number in range(TESTED, TESTED + scenes):
        shown = scene(number, style="", held_out=True)
        count = len(shown.things)
        embeddings, found = reader(as_input([view(shown.image, k, count) for k in range(count)]))
        for k, one in enumerate(shown.things):
            for name, answer in zip(READ, truth(one, shown.place, ""), strict=True):
                if answer >= 0:
                    hits[count][name].append(int(found[name][k].argmax()) == answer)
            own = embeddings[k] @ reader.of(as_numbers([one]))[0]
            hits[count]["nearest"].append(bool((rivals[one.kind] @ embeddings[k] < own).all()))
    return {count: {name: float(np.mean(some)) for name, some in hits[count].items()} for count in sorted(hits)}


if __name__ == "__main__":
    main()
