"""Who lives in the picture book: an individual is its class and its attributes, and nothing else.

Widening the world means longer lists here, and a drawing for each new word (things.py, accessories.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass

import numpy as np

COLOURS = {
    "red": (217, 62, 58), "orange": (241, 138, 52), "yellow": (247, 208, 72), "green": (98, 176, 78),
    "teal": (50, 168, 160), "blue": (62, 116, 212), "purple": (134, 84, 186), "pink": (243, 142, 184),
    "brown": (146, 94, 56), "black": (58, 58, 66), "white": (248, 244, 236), "gray": (156, 158, 166),
}  # fmt: skip
SHAPES = {
    "bear": ("chubby", "slim", "baby"),
    "cat": ("chubby", "slim", "baby"),
    "mug": ("tall", "wide", "round"),
    "car": ("round", "tall", "sporty"),
    "house": ("tall", "wide", "round"),
    "robot": ("chubby", "slim", "round"),
    "bird": ("chubby", "slim", "baby"),
    "fish": ("round", "slim", "tall"),
}
PATTERNS = ("plain", "stripes", "dots", "checks")
_WITH_FACE = ("", "bow", "scarf", "hat", "glasses", "flag", "balloon")
ACCESSORIES = {
    "bear": _WITH_FACE,
    "cat": _WITH_FACE,
    "mug": _WITH_FACE,
    "robot": _WITH_FACE,
    "car": ("", "bow", "hat", "flag", "balloon"),
    "house": ("", "bow", "hat", "flag", "balloon"),
    "bird": ("", "bow", "scarf", "hat", "flag", "balloon"),
    "fish": ("", "bow", "hat", "flag", "balloon"),
}
CLASSES = tuple(SHAPES)
_SHAPE_WORDS = tuple(sorted({shape for shapes in SHAPES.values() for shape in shapes}))
_FIRST_CLASSES = CLASSES[:6]  # later ones are told by the word of the class alone: so networks keep their size
LISTS = (_FIRST_CLASSES, _SHAPE_WORDS, tuple(COLOURS), tuple(COLOURS), PATTERNS, _WITH_FACE, tuple(COLOURS))
WIDTH = sum(map(len, LISTS))  # of an individual as numbers
HELD_OUT = 0.02  # share of individuals that no training scene shows


@dataclass(frozen=True)
class Individual:
    kind: str
    shape: str
    colour: str
    second: str  # the colour of the pattern and of the smaller parts
    pattern: str
    accessory: str  # "" for none
    accessory_colour: str  # "" without accessory

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256("|".join(astuple(self)).encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32

    def numbers(self) -> np.ndarray:
        """(WIDTH,): a one for each attribute's value, nothing for those that are not known."""
        hot = [[float(value == other) for other in values] for value, values in zip(astuple(self), LISTS, strict=True)]
        return np.concatenate(hot).astype(np.float32)


UNKNOWN = "?"
NOBODY = Individual(*[UNKNOWN] * len(LISTS))


@dataclass(frozen=True)
class World:
    """The picture book, or a stage of it."""

    prefix: str  # of its files in the cache
    classes: tuple[str, ...]
    counts: tuple[float, ...]  # share of scenes with one thing, with two, ...
    raised: float  # how far arms and tails go up, 0..1
    lean: float  # how far things lean to a side, in degrees
    first: int  # the number of its first training scene; the autoencoder learns from those before
    scenes: int  # training scenes, at most


FIRST_STAGE = World("first-", _FIRST_CLASSES, (0.75, 0.25), 0.3, 3, 10**6, 60_000)
BOOK = World("", CLASSES, (0.6, 0.28, 0.12), 0.6, 5, 2 * 10**6, 120_000)


def any_individual(random: np.random.Generator, kind: str = "", world: World = BOOK) -> Individual:
    kind = kind or _one(random, world.classes)
    colour, second = random.choice(len(COLOURS), 2, replace=False)
    accessory = _one(random, ACCESSORIES[kind])
    others = [name for name in COLOURS if name != tuple(COLOURS)[colour]]  # so that it can be told from what it is on
    return Individual(
        kind=kind,
        shape=_one(random, SHAPES[kind]),
        colour=tuple(COLOURS)[colour],
        second=tuple(COLOURS)[second],
        pattern=_one(random, PATTERNS),
        accessory=accessory,
        accessory_colour=_one(random, others) if accessory else "",
    )


def individual(random: np.random.Generator, kind: str = "", held_out: bool = False, world: World = BOOK) -> Individual:
    """One for training, or one that no training scene shows."""
    while (one := any_individual(random, kind, world)).held_out is not held_out:
        pass
    return one


def _one(random: np.random.Generator, values):
    return values[int(random.integers(len(values)))]
