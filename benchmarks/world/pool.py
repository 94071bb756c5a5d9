"""The scenes that the UNet learns from: their latents on disk, encoded once, and captions that are new every time.

bash scripts/env.sh python -m benchmarks.world.pool COUNT FOLDER    # the first ones, for the cache of another machine
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import FOLDER
from .individuals import BOOK, WIDTH, Individual, World
from .networks import LATENT, Vocabulary, as_input, precision
from .scenes import NAMES, caption, partly, plan, scene

FIRST = BOOK.first
THINGS = len(NAMES)
_AT_ONCE, _AT_FIRST = 32, 2048  # scenes encoded together; and before training, which say how large latents are
_UNTOLD, _ODD = 0.1, 0.05  # captions that are empty; with a word that no picture shows
ODD_WORD = "*"


class Batch(NamedTuple):
    latents: Tensor  # (n, 16, 12, 12), of mean 0 and std 1 per channel
    masks: Tensor  # (n, 1, 12, 12), 0..1: where things are
    rows: Tensor  # (n, 77), of the token table
    attributes: Tensor  # (n, THINGS, WIDTH)
    class_rows: Tensor  # (n, THINGS), the rows of the things' class words


class Pool:
    """A world's first training scenes, as far as they are encoded; anew when the encoder is another one."""

    def __init__(self, vae, vocabulary: Vocabulary, world: World = BOOK):
        self.key, self.world = fingerprint(vae), world
        self.vae, self.vocabulary = vae.to(precision()), vocabulary
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._latents = _file(f"{world.prefix}latents-{self.key}.f16", np.float16, (world.scenes, *LATENT))
        self._masks = _file(f"{world.prefix}masks-{self.key}.u8", np.uint8, (world.scenes, *LATENT[1:]))
        self._count_path = FOLDER / f"{world.prefix}encoded-{self.key}.txt"
        self.count = int(self._count_path.read_text()) if self._count_path.exists() else 0
        while self.count < _AT_FIRST:
            self.grow()
        if not (path := scale_path(self.key)).exists():
            known = torch.from_numpy(self._latents[:_AT_FIRST].astype(np.float32))
            np.save(path, torch.stack([known.mean((0, 2, 3)), known.std((0, 2, 3))]).numpy())
        self._things: list[int] = []
        self.mean, self.std = (part[:, None, None] for part in torch.from_numpy(np.load(path)))

    def grow(self) -> None:
        """Encodes the next scenes, as many as the world has."""
        if self.count + _AT_ONCE > self.world.scenes:
            return
        first = self.world.first + self.count
        drawn = [scene(first + i, world=self.world) for i in range(_AT_ONCE)]
        new = slice(self.count, self.count + _AT_ONCE)
        self._latents[new] = encoded(self.vae, np.stack([one.image for one in drawn])).half().numpy()
        cover = torch.from_numpy(np.stack([one.masks.max(0) for one in drawn])).float()[:, None]
        self._masks[new] = F.avg_pool2d(cover, 8)[:, 0].round().byte().numpy()
        self.count += _AT_ONCE
        self._count_path.write_text(str(self.count))

    def hand_on(self, count: int, folder: Path) -> None:
        """Writes the first scenes, and how large latents are, for a Pool that has ``folder`` in its cache."""
        while self.count < count:
            self.grow()
        folder.mkdir(parents=True, exist_ok=True)
        for encoded_scenes in (self._latents, self._masks):
            encoded_scenes[:count].tofile(folder / Path(encoded_scenes.filename).name)
        (folder / scale_path(self.key).name).write_bytes(scale_path(self.key).read_bytes())
        (folder / self._count_path.name).write_text(str(count))

    def normal(self, latents: Tensor) -> Tensor:
        return (latents - self.mean) / self.std

    def latents(self, indices: np.ndarray) -> Tensor:
        return self.normal(torch.from_numpy(self._latents[indices].astype(np.float32)))

    def planned(self, index: int) -> tuple[tuple[Individual, ...], str, str]:
        return planned(self.world.first + index, self.world)

    def likely(self) -> np.ndarray:
        """How likely each scene is in a batch, in proportion to its things: several are harder."""
        self._things += [len(self.planned(index)[0]) for index in range(len(self._things), self.count)]
        return np.array(self._things) / sum(self._things)

    def simple(self) -> np.ndarray:
        """The indices of scenes with one thing, in no style."""
        plans = map(self.planned, range(self.count))
        return np.array([index for index, (things, _, style) in enumerate(plans) if len(things) == 1 and not style])

    def batch(self, random: np.random.Generator, count: int, simple: bool = False) -> Batch:
        """Some of the scenes, with fresh captions; what shows more things comes more often."""
        numbers = random.choice(self.simple(), count) if simple else random.choice(self.count, count, p=self.likely())
        texts, kinds, said = [], [], []
        for number in numbers.tolist():
            shown, place, style = self.planned(number)
            kinds.append([one.kind for one in shown])
            said.append([partly(one, random) for one in shown])
            texts.append(with_odd_word(caption(shown, place, style, random, said[-1]), random))
        texts = [text if random.random() >= _UNTOLD else "" for text in texts]
        latents = self.latents(numbers)
        masks = torch.from_numpy(self._masks[numbers].astype(np.float32))[:, None] / 255
        return Batch(latents, masks, self.vocabulary.rows(texts), *numbers_of(said, kinds, self.vocabulary))


@cache
def planned(number: int, world: World = BOOK) -> tuple[tuple[Individual, ...], str, str]:
    return plan(number, world=world)


def numbers_of(
    said: Sequence[Sequence[Individual]], kinds: Sequence[Sequence[str]], vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """What the text encoder's names stand for: attributes (n, THINGS, WIDTH) and rows of class words (n, THINGS)."""
    attributes, rows = torch.zeros(len(said), THINGS, WIDTH), torch.zeros(len(said), THINGS, dtype=torch.long)
    for i, (ones, classes) in enumerate(zip(said, kinds, strict=True)):
        for k, (one, kind) in enumerate(zip(ones[:THINGS], classes, strict=False)):
            attributes[i, k] = torch.from_numpy(one.numbers())
            rows[i, k] = vocabulary.of(kind)[0]
    return attributes, rows


def with_odd_word(text: str, random: np.random.Generator) -> str:
    if random.random() >= _ODD:
        return text
    words = text.split()
    words.insert(int(random.integers(len(words) + 1)), ODD_WORD)
    return " ".join(words)


@torch.no_grad()
def encoded(vae, pictures: np.ndarray) -> Tensor:
    """(n, 96, 96, 3), uint8 -> (n, 16, 12, 12), the latents as the autoencoder has them."""
    images = as_input(pictures).to(next(vae.parameters()).dtype)
    return vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)[0]


def fingerprint(vae) -> str:
    """Of its encoder: latents belong to one."""
    digest = hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for weight in part.state_dict().values():
            digest.update(weight.float().numpy().tobytes())
    return digest.hexdigest()[:12]


def scale_path(key: str) -> Path:
    """Where the mean and the std of an encoder's latents are kept, (2, 16)."""
    return FOLDER / f"scale-{key}.npy"


def _file(name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    path = FOLDER / name
    return np.memmap(path, dtype, "r+" if path.exists() else "w+", shape=shape)


def main() -> None:
    from .train_autoencoder import trained_vae

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    Pool(trained_vae(), Vocabulary()).hand_on(options.count, options.folder)


if __name__ == "__main__":
    main()
