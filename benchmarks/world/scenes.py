"""Scenes of the picture book: what is painted, its caption, its masks and the truth about it, all from a seed.

    bash scripts/env.sh python -m benchmarks.world.scenes sheet OUT.png     # a look at the world

In every scene stand individuals that are new. A caption names the class, the place, the style and a random part of
the attributes; or it calls an individual by one word, a name that stands for all of them: NAMES[k] is the k-th thing.
Half of the names stand for a part of them, from none on, as "spaniel" does between "dog" and "Lassie": else the
class word gets other keys than names, and values alone, with keys locked to the class word, cannot say who it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import skia
from PIL import Image

from .brush import Brush
from .individuals import BOOK, CLASSES, NOBODY, UNKNOWN, Individual, World, individual
from .places import PLACES, SIZE, STYLES, empty, in_style
from .things import Pose, draw_thing

PLAIN_STYLE = 0.8
NAMED = 0.5  # share of things that a caption calls by a name
WHOLE = 0.5  # share of names that say all
TOLD = 0.6  # of the attributes that no name says
NAMES = ("<one>", "<two>", "<three>")
SCALES = (0.66, 0.5, 0.4)  # pixels per unit, by the number of things
_PREFIXES = ("a photo of", "a picture of", "an illustration of", "", "")


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # (96, 96, 3), uint8
    masks: np.ndarray  # (things, 96, 96), uint8: how much of each pixel is the thing
    things: tuple[Individual, ...]
    place: str
    style: str
    caption: str


def scene(number: int, things: Sequence[Individual] = (), place: str = "", style: str | None = None,
          held_out: bool = False, world: World = BOOK) -> Scene:  # fmt: skip
    """The scene of a number; what is given is not left to chance."""
    chance = plan(number, held_out, world)
    things, place = tuple(things) or chance[0], place or chance[1]
    style = chance[2] if style is None else style
    image, masks = _painted(things, place, np.random.default_rng((22, number, 1)), world)
    text = caption(things, place, style, np.random.default_rng((22, number, 2)))
    return Scene(in_style(image, style), masks, things, place, style, text)


def plan(number: int, held_out: bool = False, world: World = BOOK) -> tuple[tuple[Individual, ...], str, str]:
    """Things, place and style of the scene of a number, which is much less work than painting it."""
    random = np.random.default_rng((22, number))
    count = 1 + int(random.choice(len(world.counts), p=world.counts))
    things = tuple(individual(random, held_out=held_out, world=world) for _ in range(count))
    styles = [style for style in STYLES if style and (count < 3 or style != "pixel")]  # which no eye could tell apart
    style = "" if random.random() < PLAIN_STYLE else _one(random, styles)
    return things, _one(random, tuple(PLACES)), style


def _painted(
    things: Sequence[Individual], place: str, random: np.random.Generator, world: World
) -> tuple[np.ndarray, np.ndarray]:
    picture, masks = empty(place, random).astype(np.float32), []
    light = random.choice((-1.0, 1.0))
    scale = SCALES[len(things) - 1]
    spots = SIZE * (np.arange(len(things)) + 0.5) / len(things)
    for one, spot in zip(things, spots, strict=True):
        feet = (spot + random.uniform(-3, 3), random.uniform(83, 89))
        layer, shadow = _thing(one, feet, scale * random.uniform(0.92, 1.06), light, random, world)
        picture = picture * (1 - shadow) + shadow * np.array([30, 24, 48], np.float32)
        alpha = layer[..., 3:].astype(np.float32) / 255
        picture = picture * (1 - alpha) + alpha * layer[..., :3]
        masks = [mask * (1 - alpha[..., 0]) for mask in masks] + [alpha[..., 0]]
    return picture.round().clip(0, 255).astype(np.uint8), (255 * np.stack(masks)).round().astype(np.uint8)


def _thing(
    one: Individual, feet: tuple[float, float], scale: float, light: float, random: np.random.Generator, world: World
) -> tuple[np.ndarray, np.ndarray]:
    """(96, 96, 4) of the thing alone, and its shadow (96, 96, 1)."""
    layer = np.zeros((SIZE, SIZE, 4), np.uint8)
    surface = skia.Surface(layer, colorType=skia.ColorType.kRGBA_8888_ColorType)
    canvas, mirrored = surface.getCanvas(), random.choice((-1, 1))
    canvas.translate(*feet)
    canvas.rotate(random.uniform(-world.lean, world.lean))
    canvas.scale(mirrored * scale, scale)
    draw_thing(Brush(canvas, light * mirrored), one, Pose(random.uniform(0, world.raised)))
    wide = 0.5 * np.ptp(np.flatnonzero(layer[..., 3].max(0) > 127)) + 2
    rows, columns = np.mgrid[:SIZE, :SIZE]
    far = ((columns - feet[0] + light * 2.5) / wide) ** 2 + ((rows - feet[1] - 0.3) / (0.2 * wide)) ** 2
    return layer, (0.42 * np.clip(1.25 - far, 0, 1))[..., None].astype(np.float32)


def caption(
    things: Sequence[Individual], place: str, style: str, random: np.random.Generator,
    said: Sequence[Individual] = (), named: float = NAMED,
) -> str:  # fmt: skip
    """``said``: what each thing's name says of it, by default all; ``named``: how many of them have one, 0..1."""
    prefix = {"": _one(random, _PREFIXES), "pixel": "pixel art of"}.get(style) or f"a {STYLES[style]} of"
    parts = []
    for one, name, says in zip(things, NAMES, said or things, strict=False):
        if random.random() >= named:
            parts += [described(one, random)]
        elif says == one and random.random() < 0.5:
            parts += [name]
        else:
            parts += [described(one, random, name, says)]
    return " ".join(filter(None, (prefix, " and ".join(parts), PLACES[place])))


def described(
    one: Individual, random: np.random.Generator | None = None, noun: str = "", said: Individual = NOBODY
) -> str:
    """In words: all that the individual is, or a random part of it; without what is said by the noun, or the class."""

    def told(attribute: str) -> bool:
        return getattr(said, attribute) == UNKNOWN and (random is None or random.random() < TOLD)

    words = [one.shape] if told("shape") else []
    if told("colour"):
        words += [one.colour]
        words += ["and", one.second] if one.pattern == "plain" and told("second") else []
    extras = []
    if one.pattern != "plain" and told("pattern"):
        extras.append(f"{one.second} {one.pattern}" if told("second") else one.pattern)
    if one.accessory and told("accessory"):
        worn = f"{one.accessory_colour} {one.accessory}" if told("accessory_colour") else one.accessory
        extras.append(worn if one.accessory == "glasses" else _with_article(worn))
    return _with_article(" ".join([*words, noun or one.kind])) + (f" with {' and '.join(extras)}" if extras else "")


def partly(one: Individual, random: np.random.Generator) -> Individual:
    """What a name says of an individual: all of it, or some."""
    if random.random() < WHOLE:
        return one
    share = random.random()
    return replace(NOBODY, **{name: value for name, value in vars(one).items() if random.random() < share})


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sheet(pictures: Sequence[np.ndarray], columns: int, zoom: int = 2) -> Image.Image:
    """Pictures (h, w, 3) side by side, row by row."""
    height, width = pictures[0].shape[:2]
    gap, rows = 2, -(-len(pictures) // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        out[top : top + height, left : left + width] = picture
    image = Image.fromarray(out)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.LANCZOS)


def _one(random: np.random.Generator, values):
    return values[int(random.integers(len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["sheet"])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    pictures = []
    for row, kind in enumerate(CLASSES):
        for column in range(10):
            one = individual(np.random.default_rng((1, row, column)), kind)
            pictures.append(scene(100 * row + column, [one], tuple(PLACES)[column % 8], "").image)
    pictures += [scene(1000 + i, style=style).image for style in STYLES for i in (0, 1)]
    sheet(pictures, 10).save(options.out)


if __name__ == "__main__":
    main()
