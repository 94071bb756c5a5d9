"""Reads off a picture what stands in it: each thing's class and attributes, the place and the style.

    bash scripts/env.sh python -m benchmarks.world.reader [--steps 1000]    # trains it; then how often it is right
    bash scripts/env.sh python -m benchmarks.world.reader --critic --steps 400    # that teaches the autoencoder

It looks at one thing at a time, at the part of the picture where the k-th of n things stands, enlarged as if it stood
alone. It learns from new scenes all the time, of all classes, some with a thing taken away; a model's pictures are
softer than scenes, so many are blurred a little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from .cache import FOLDER
from .individuals import CLASSES, LISTS, Individual
from .networks import as_input
from .places import PLACES, SIZE, STYLES, empty
from .scenes import SCALES, Scene, scene
from .training import Training

TRAINED, CRITIC = FOLDER / "reader.pt", FOLDER / "critic.pt"
FIRST, TESTED = 10**7, 2 * 10**7  # the numbers of its first scene, and of those that it is tested on
SCENES, RATE, SAVE_EVERY = 44, 2e-3, 50  # scenes a step: some 64 things
TAKEN, BLURRED = 0.06, 0.5  # how often a thing is taken away; a picture blurred
NOTHING = ""
READ = {
    "kind": (*CLASSES, NOTHING),
    **dict(zip(("shape", "colour", "second", "pattern", "accessory", "accessory_colour"), LISTS[1:], strict=True)),
    "place": tuple(PLACES),
    "style": tuple(STYLES),
}
_COLOURS = ("colour", "second", "accessory_colour")


class Reader(nn.Module):
    def __init__(self, widths: Sequence[int] = (32, 64, 128, 192), blocks: Sequence[int] = (1, 2, 2, 1)):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1)]
        for before, width, count in zip((widths[0], *widths), widths, blocks, strict=False):
            if width != before:
                layers.append(nn.Conv2d(before, width, 2, stride=2))
            layers += [_Block(width) for _ in range(count)]
        self.seen = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * widths[-1], 256), nn.SiLU())
        self.out = nn.Linear(256, sum(map(len, READ.values())))

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """views (n, 3, 96, 96) -> for every name in READ (n, values), as logarithms but for a constant."""
        parts = self.out(self.seen(views)).float().split([len(values) for values in READ.values()], -1)
        return dict(zip(READ, parts, strict=True))


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


def lesson(number: int) -> tuple[list[np.ndarray], list[list[int]]]:
    """Views of all things of a scene, and what is to be read off them."""
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
    return views, [truth(one, shown.place, shown.style) for one in things]


def without(shown: Scene, k: int, number: int) -> np.ndarray:
    """The picture of a scene in no style, with the place's own where its k-th thing stands."""
    place = empty(shown.place, np.random.default_rng((22, number, 1)))
    return np.where(shown.masks[k][..., None] > 0, place, shown.image)


@torch.no_grad()
def read(reader: Reader, picture: np.ndarray, kinds: Sequence[str]) -> tuple[list[dict[str, str]], str, str]:
    """What is read of each thing asked for, and the place and the style.

    Whoever is asked for may stand in any order: in the one that fits best by their classes.
    """
    count = len(kinds)
    found = reader(as_input([view(picture, k, count) for k in range(count)]))
    like = found["kind"].log_softmax(-1)[:, [READ["kind"].index(kind) for kind in kinds]]
    order = max(permutations(range(count)), key=lambda order: float(like[list(order), range(count)].sum()))
    said = {name: values.argmax(-1).tolist() for name, values in found.items()}
    things = [{name: READ[name][said[name][spot]] for name in READ} for spot in order]
    place, style = (READ[name][int(found[name].sum(0).argmax())] for name in ("place", "style"))
    return things, place, style


def trained_reader(path: Path = TRAINED) -> Reader:
    reader = Reader()
    reader.load_state_dict(torch.load(path, weights_only=True)["models"][0])
    return reader.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--critic", action="store_true", help="another, which teaches the autoencoder")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    path, begin = (CRITIC, FIRST) if options.critic else (TRAINED, FIRST + 10**6)
    torch.manual_seed(begin)
    training = Training([Reader()], RATE, average=0.99, workers=options.workers)
    if path.exists():
        training.load(path)
    done, start, losses = training.steps, time.monotonic(), []
    for step in range(done, options.steps):
        first = begin + step * SCENES
        lessons = [lesson(number) for number in range(first, first + SCENES)]
        views = as_input([seen for pictures, _ in lessons for seen in pictures]).chunk(options.workers)
        answers = torch.tensor([line for _, lines in lessons for line in lines]).chunk(options.workers)

        def loss_of(models, worker, views=views, answers=answers) -> Tensor:
            return reading_loss(models[0](views[worker].bfloat16()), answers[worker])

        share = min(1, (step + 1) / 100, (options.steps - step) / (0.5 * options.steps))
        losses.append(training.step(loss_of, share))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            seconds = (time.monotonic() - start) / (step + 1 - done)
            print(f"step {step + 1}  loss {np.mean(losses[-SAVE_EVERY:]):.3f}  {seconds:.2f} s/step", flush=True)
            training.save(path)
    for count, shares in right(trained_reader(path), 400).items():
        print(f"{count} in a scene:", *(f"{name} {share:4.0%}" for name, share in shares.items()), flush=True)


def reading_loss(found: dict[str, Tensor], answers: Tensor) -> Tensor:
    losses = [F.cross_entropy(found[name], answer, ignore_index=-1, reduction="sum") / len(answer)
              for name, answer in zip(READ, answers.T, strict=True)]  # fmt: skip
    return torch.stack(losses).sum()


def right(reader: Reader, scenes: int) -> dict[int, dict[str, float]]:
    """Shares read right of scenes in no style, with individuals that no training scene shows, by their number."""
    hits: dict[int, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for number in range(TESTED, TESTED + scenes):
        shown = scene(number, style="", held_out=True)
        for k, one in enumerate(shown.things):
            with torch.no_grad():
                found = reader(as_input([view(shown.image, k, len(shown.things))]))
            for name, answer in zip(READ, truth(one, shown.place, ""), strict=True):
                if answer >= 0:
                    hits[len(shown.things)][name].append(int(found[name].argmax()) == answer)
    return {count: {name: float(np.mean(hits[count][name])) for name in READ} for count in sorted(hits)}


if __name__ == "__main__":
    main()
