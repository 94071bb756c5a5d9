"""What individuals wear or carry."""

from __future__ import annotations

from dataclasses import dataclass

import skia

from .brush import INK, Brush, Colour, box, mixed, oval, polygon
from .individuals import COLOURS, Individual


@dataclass(frozen=True)
class Places:
    """Where a thing of some shape has its accessories."""

    eyes: tuple[float, float, float]  # x and y of their middle, half their distance
    neck: tuple[float, float, float]  # x, y, half of the width
    top: tuple[float, float]
    hand: tuple[float, float]
    head: float  # how large a hat must be
    middle: float  # y of the head's middle


def accessory_behind(brush: Brush, one: Individual, at: Places) -> None:
    if one.accessory in ("flag", "balloon"):
        {"flag": _flag, "balloon": _balloon}[one.accessory](brush, COLOURS[one.accessory_colour], at)


def accessory_in_front(brush: Brush, one: Individual, at: Places) -> None:
    draw = {"bow": _bow, "scarf": _scarf, "hat": _hat, "glasses": _glasses}.get(one.accessory)
    if draw:
        draw(brush, COLOURS[one.accessory_colour], at)


def _bow(brush: Brush, colour: Colour, at: Places) -> None:
    x, y, _ = at.neck
    for side in (-1, 1):
        loop = skia.Path()
        loop.moveTo(x, y + 2)
        loop.cubicTo(x + side * 6, y - 9, x + side * 17, y - 12, x + side * 17, y + 2)
        loop.cubicTo(x + side * 17, y + 14, x + side * 6, y + 11, x, y + 2)
        brush.part(loop, colour)
    brush.part(oval(x, y + 2, 4.6, 5.2), colour)


def _scarf(brush: Brush, colour: Colour, at: Places) -> None:
    x, y, width = at.neck
    brush.part(box(x + 0.3 * width, y, x + 0.3 * width + 10, y + 24, 3), colour)
    brush.part(box(x - width - 3, y - 5, x + width + 3, y + 6, 5.5), colour)


def _hat(brush: Brush, colour: Colour, at: Places) -> None:
    x, y = at.top
    wide = 0.62 * at.head
    brush.part(box(x - 0.72 * wide, y - 20, x + 0.72 * wide, y + 1, 3), colour)
    brush.flat(box(x - 0.72 * wide, y - 6, x + 0.72 * wide, y - 1), mixed(colour, INK, 0.45))
    brush.part(box(x - 1.35 * wide, y - 2, x + 1.35 * wide, y + 4, 3), colour)


def _glasses(brush: Brush, colour: Colour, at: Places) -> None:
    x, y, apart = at.eyes
    size = min(apart - 0.6, 10.5)
    bridge = skia.Path()
    bridge.moveTo(x - apart + size, y)
    bridge.lineTo(x + apart - size, y)
    for path in (bridge, oval(x - apart, y, size, size), oval(x + apart, y, size, size)):
        brush.line(path, mixed(colour, INK, 0.62), 5.4)
        brush.line(path, colour, 3.2)


def _flag(brush: Brush, colour: Colour, at: Places) -> None:
    x, y = at.hand
    pole = skia.Path()
    pole.moveTo(x, y + 8)
    pole.lineTo(x, y - 46)
    brush.line(pole, (120, 84, 60), 3)
    out = 1 if x > 0 else -1
    brush.part(polygon((x, y - 46), (x + out * 20, y - 37), (x, y - 27)), colour)


def _balloon(brush: Brush, colour: Colour, at: Places) -> None:
    x, y = at.hand
    out = 1 if x > 0 else -1
    string = skia.Path()
    string.moveTo(x, y)
    string.quadTo(x + out * 7, y - 20, x + out * 3, y - 40)
    brush.line(string, INK, 1.3)
    brush.part(oval(x + out * 3, y - 55, 12.5, 15), colour)
    brush.flat(oval(x + out * 3 - 4, y - 61, 2.6, 4), (255, 255, 255), 0.75)
