"""The classes of the world, drawn in a box of about 100 by 100 that stands on y = 0, with y pointing down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import skia

from .accessories import Places, accessory_behind, accessory_in_front
from .brush import INK, Brush, Colour, box, mixed, oval, pattern_of, polygon, turned
from .individuals import COLOURS, Individual

_GLASS, _WHITE, _CHEEK, _BEAK = (186, 226, 244), (252, 250, 246), (240, 120, 120), (250, 172, 60)


@dataclass(frozen=True)
class Pose:
    """What is not identity: how far arms or tail are raised, 0 to 1."""

    raised: float = 0.0


@dataclass(frozen=True)
class _Look:
    main: Colour
    second: Colour
    pattern: Callable[[Brush, skia.Rect], None] | None


def draw_thing(brush: Brush, one: Individual, pose: Pose) -> None:
    main, second = COLOURS[one.colour], COLOURS[one.second]
    look = _Look(main, second, pattern_of(one.pattern, second))
    places = _PLACES[one.kind](one.shape)
    accessory_behind(brush, one, places)
    _DRAWINGS[one.kind](brush, look, one.shape, pose, places)
    accessory_in_front(brush, one, places)


# --- animals -----------------------------------------------------------------------------------------------------

_ANIMALS = {  # body's width and height, head's radius (half of them each)
    "chubby": (31, 29, 24),
    "slim": (20, 29, 22),
    "baby": (22, 20, 30),
}


def _animal_places(shape: str) -> Places:
    width, height, head = _ANIMALS[shape]
    neck = -2 * height + 2
    middle = neck - 0.72 * head
    return Places(
        eyes=(0, middle - 0.06 * head, 0.42 * head), neck=(0, neck + 1, 0.72 * head), top=(0, middle - 0.86 * head),
        hand=(width + 7, -height), head=head, middle=middle,
    )  # fmt: skip


def _bear(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, height, head = _ANIMALS[shape]
    light = mixed(look.second, _WHITE, 0.12)
    for side in (-1, 1):
        ear = (side * 0.74 * head, at.middle - 0.66 * head)
        brush.part(oval(*ear, 0.36 * head, 0.36 * head), look.main)
        brush.flat(oval(*ear, 0.19 * head, 0.19 * head), light)
    for side in (-1, 1):
        _arm(brush, look.main, side, width, height, pose)
    brush.part(oval(0, -height, width, height), look.main, look.pattern)
    if look.pattern is None:
        brush.flat(oval(0, -0.86 * height, 0.58 * width, 0.62 * height), light)
    for side in (-1, 1):
        foot = (side * 0.68 * width, -8)
        brush.part(oval(*foot, 11, 10), look.main)
        brush.flat(oval(foot[0], -7, 6, 5.5), light)
    brush.part(oval(0, at.middle, 1.06 * head, 0.94 * head), look.main)
    brush.flat(oval(0, at.middle + 0.38 * head, 0.46 * head, 0.36 * head), light)
    _eyes(brush, at, 0.13 * head)
    brush.flat(oval(0, at.middle + 0.22 * head, 0.15 * head, 0.11 * head), INK)
    _smile(brush, 0, at.middle + 0.40 * head, 0.2 * head)


def _arm(brush: Brush, colour: Colour, side: int, width: float, height: float, pose: Pose) -> None:
    shoulder = (side * 0.78 * width, -1.45 * height)
    arm = oval(shoulder[0], shoulder[1] + 12, 8.5, 16)
    brush.part(turned(arm, -side * (28 + 95 * pose.raised), *shoulder), colour)


def _cat(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, height, head = _ANIMALS[shape]
    light = mixed(look.second, _WHITE, 0.12)
    tail = skia.Path()
    tail.moveTo(0.6 * width, -8)
    tail.cubicTo(width + 26, -6, width + 4, -30 - 16 * pose.raised, width + 14, -40 - 18 * pose.raised)
    brush.line(tail, mixed(look.main, INK, 0.62), 12)
    brush.line(tail, look.main, 8)
    brush.flat(oval(width + 13.6, -39 - 18 * pose.raised, 4.6, 5.6), light)
    brush.part(oval(0, -height, 0.9 * width, height), look.main, look.pattern)
    if look.pattern is None:
        brush.flat(oval(0, -1.05 * height, 0.42 * width, 0.66 * height), light)
    for side in (-1, 1):
        brush.part(oval(side * 0.42 * width, -6, 8.5, 7), look.main)
        x, y = side * 0.62 * head, at.middle - 0.5 * head
        ear = polygon((x - side * 0.42 * head, y - 0.1 * head), (x + side * 0.34 * head, y - 0.82 * head),
                      (x + side * 0.42 * head, y + 0.36 * head))  # fmt: skip
        brush.part(ear, look.main)
        inner = polygon((x - side * 0.14 * head, y - 0.12 * head), (x + side * 0.24 * head, y - 0.54 * head),
                        (x + side * 0.27 * head, y + 0.1 * head))  # fmt: skip
        brush.flat(inner, light)
    brush.part(oval(0, at.middle, 1.12 * head, 0.86 * head), look.main)
    brush.flat(oval(0, at.middle + 0.4 * head, 0.36 * head, 0.26 * head), light)
    _eyes(brush, at, 0.15 * head)
    y = at.middle + 0.26 * head
    brush.flat(polygon((-0.13 * head, y), (0.13 * head, y), (0, y + 0.14 * head)), (206, 88, 98))
    for side in (-1, 1):
        _smile(brush, side * 0.12 * head, at.middle + 0.42 * head, 0.12 * head)
        for slope in (-1.5, 3.0):
            whisker = skia.Path()
            whisker.moveTo(side * 0.56 * head, at.middle + 0.3 * head + slope)
            whisker.lineTo(side * 1.3 * head, at.middle + 0.22 * head + 2.2 * slope)
            brush.line(whisker, INK, 1.1)


def _eyes(brush: Brush, at: Places, size: float) -> None:
    x, y, apart = at.eyes
    for side in (-1, 1):
        _eye(brush, x + side * apart, y, size)


def _eye(brush: Brush, x: float, y: float, size: float) -> None:
    brush.flat(oval(x, y, size + 1.8, size + 2.6), _WHITE)
    brush.flat(oval(x, y, size + 0.4, size + 1.4), INK)
    brush.flat(oval(x - 0.3 * size, y - 0.5 * size, 0.45 * size, 0.45 * size), _WHITE)


def _smile(brush: Brush, x: float, y: float, size: float) -> None:
    smile = skia.Path()
    smile.moveTo(x - size, y)
    smile.quadTo(x, y + 1.3 * size, x + size, y)
    brush.line(smile, INK, 1.9)


# --- mug ---------------------------------------------------------------------------------------------------------

_MUGS = {"tall": (23, 74), "wide": (36, 50), "round": (33, 58)}  # half of the width, height


def _mug_places(shape: str) -> Places:
    width, height = _MUGS[shape]
    return Places(eyes=(0, -0.58 * height, 0.4 * width), neck=(0, -0.2 * height, 0.8 * width), top=(0, -height + 1),
                  hand=(-width - 5, -0.42 * height), head=22, middle=-0.6 * height)  # fmt: skip


def _mug(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, height = _MUGS[shape]
    handle = skia.Path()
    handle.addOval(skia.Rect.MakeLTRB(width - 10, -0.78 * height, width + 17, -0.24 * height))
    brush.line(handle, mixed(look.second, INK, 0.62), 12)
    brush.line(handle, look.second, 7.6)
    body = skia.Path()
    if shape == "round":
        body.moveTo(-0.8 * width, -height)
        body.cubicTo(-1.28 * width, -0.6 * height, -1.1 * width, 0, -0.5 * width, 0)
        body.lineTo(0.5 * width, 0)
        body.cubicTo(1.1 * width, 0, 1.28 * width, -0.6 * height, 0.8 * width, -height)
        rim = 0.8 * width
    else:
        body = box(-width, -height, width, 0, 9)
        rim = width
    brush.part(body, look.main, look.pattern)
    brush.part(oval(0, -height, rim, 7), look.second)
    brush.flat(oval(0, -height + 1, 0.82 * rim, 4.6), (92, 56, 40))
    _eyes(brush, at, 3.2)
    _smile(brush, 0, -0.43 * height, 5.5)
    for side in (-1, 1):
        brush.flat(oval(side * 0.62 * width, -0.46 * height, 3.6, 2.6), _CHEEK, 0.7)


# --- car ---------------------------------------------------------------------------------------------------------

_CARS = {"round": (44, 26, 30), "tall": (42, 30, 34), "sporty": (50, 22, 17)}  # half width, body's and cabin's height


def _car_places(shape: str) -> Places:
    width, body, cabin = _CARS[shape]
    top = -8 - body - cabin + 2
    return Places(eyes=(0, 0, 0), neck=(0.72 * width, -8 - body, 14), top=(-6, top),
                  hand=(-0.78 * width, -8 - body + 3), head=20, middle=top)  # fmt: skip


def _car(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, body, cabin = _CARS[shape]
    shoulder, roof = -8 - body + 4, -8 - body - cabin
    cab = skia.Path()
    if shape == "round":
        cab.moveTo(-38, shoulder)
        cab.cubicTo(-34, roof - 6, 26, roof - 8, 30, shoulder)
    elif shape == "tall":
        cab = box(-38, roof, 20, shoulder + 6, 8)
    else:
        cab = polygon((-34, shoulder), (-18, roof), (10, roof), (30, shoulder))
    cab.close()
    brush.part(cab, look.second)
    window = skia.Path()
    low, high = shoulder - 3, roof + 7
    if shape == "tall":
        window.addRoundRect(skia.Rect.MakeLTRB(-32, high, -11, low), 3, 3)
        window.addRoundRect(skia.Rect.MakeLTRB(-6, high, 14, low), 3, 3)
    else:
        lean = 8 if shape == "round" else 5
        window.addPoly([skia.Point(*p) for p in ((-31 + lean, low), (-23 + lean, high), (-7, high), (-7, low))], True)
        window.addPoly([skia.Point(*p) for p in ((-2, low), (-2, high), (10, high), (22 - lean / 2, low))], True)
    brush.flat(window, _GLASS)
    brush.line(window, mixed(look.second, INK, 0.62), 1.6)
    hull = skia.Path()
    if shape == "tall":
        hull = box(-width, -8 - body, width, -8, 8)
    else:
        hull.moveTo(-width, -10)
        hull.cubicTo(-width - 2, -8 - body, -0.8 * width, -8 - body, -0.5 * width, -8 - body)
        hull.lineTo(0.45 * width, -8 - body)
        hull.cubicTo(0.85 * width, -8 - body, width + 3, -4 - 0.8 * body, width, -10)
        hull.close()
    brush.part(hull, look.main, look.pattern)
    brush.part(oval(width - 5, -8 - 0.62 * body, 4.5, 5), (255, 236, 150))
    for side in (-1, 1):
        wheel = (side * 0.56 * width, -11)
        brush.part(oval(*wheel, 12.5, 12.5), (66, 64, 72))
        brush.flat(oval(*wheel, 5.5, 5.5), (214, 214, 220))


# --- house -------------------------------------------------------------------------------------------------------

_HOUSES = {"tall": (25, 62, 34), "wide": (42, 42, 32), "round": (33, 46, 36)}  # half width, wall's and roof's height


def _house_places(shape: str) -> Places:
    width, wall, roof = _HOUSES[shape]
    return Places(eyes=(0, 0, 0), neck=(0, -wall - 0.3 * roof, 14), top=(0, -wall - roof + 5),
                  hand=(-width - 4, -0.5 * wall), head=20, middle=-wall)  # fmt: skip


def _house(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, wall, roof = _HOUSES[shape]
    brush.part(box(0.42 * width, -wall - 0.86 * roof, 0.42 * width + 10, -wall, 1), (176, 110, 92))
    brush.part(box(-width, -wall - 4, width, 0, 14 if shape == "round" else 2), look.main, look.pattern)
    if shape == "round":
        dome = skia.Path()
        dome.moveTo(-width - 8, -wall + 2)
        dome.cubicTo(-width, -wall - 1.34 * roof, width, -wall - 1.34 * roof, width + 8, -wall + 2)
        dome.close()
        brush.part(dome, look.second)
    else:
        brush.part(polygon((-width - 8, -wall + 2), (0, -wall - roof), (width + 8, -wall + 2)), look.second)
    door = 0.0 if shape != "wide" else -0.45 * width
    brush.part(box(door - 8, -25, door + 8, 0, 6), (132, 86, 58))
    brush.flat(oval(door + 4.5, -11, 1.6, 1.6), (250, 214, 110))
    spots = {"tall": ((0, -46),), "wide": ((0.42 * width, -22),), "round": ((-21, -30), (21, -30))}[shape]
    for x, y in spots:
        size = 6.5 if shape == "round" else 9
        brush.part(box(x - size, y - size, x + size, y + size, 2), (255, 232, 150))
        cross = skia.Path()
        cross.moveTo(x - size, y)
        cross.lineTo(x + size, y)
        cross.moveTo(x, y - size)
        cross.lineTo(x, y + size)
        brush.line(cross, mixed((255, 232, 150), INK, 0.62), 1.5)


# --- robot -------------------------------------------------------------------------------------------------------

_ROBOTS = {"chubby": (30, 38, 23, 17), "slim": (17, 40, 18, 17), "round": (26, 36, 22, 20)}
# half width and height of the body, half width and half height of the head


def _robot_places(shape: str) -> Places:
    width, height, head, tall = _ROBOTS[shape]
    neck = -14 - height
    middle = neck - tall + 1
    return Places(eyes=(0, middle - 2, 0.46 * head), neck=(0, neck + 1, 0.74 * head), top=(0, middle - tall + 2),
                  hand=(width + 12, -0.75 * height), head=head, middle=middle)  # fmt: skip


def _robot(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, height, head, tall = _ROBOTS[shape]
    rounded = shape == "round"
    metal = mixed(look.second, (150, 154, 166), 0.15)
    antenna = skia.Path()
    antenna.moveTo(0, at.top[1])
    antenna.lineTo(0, at.top[1] - 9)
    brush.line(antenna, mixed(metal, INK, 0.62), 3)
    brush.part(oval(0, at.top[1] - 11, 4.4, 4.4), look.second)
    for side in (-1, 1):
        brush.part(box(side * 0.5 * width - 6, -18, side * 0.5 * width + 6, -3), metal)
        brush.part(box(side * 0.52 * width - 9, -7, side * 0.52 * width + 9, 0, 3), look.second)
        shoulder = (side * (width + 1), -10 - 0.82 * height)
        arm = box(shoulder[0] - 5, shoulder[1] - 4, shoulder[0] + 5, shoulder[1] + 26, 5)
        brush.part(turned(arm, -side * (18 + 110 * pose.raised), *shoulder), look.second)
        brush.part(box(side * head - 5, at.middle - 6, side * head + 5, at.middle + 6, 3), look.second)
    body = oval(0, -12 - height / 2, width + 3, height / 2 + 4) if rounded else box(-width, -14 - height, width, -14, 6)
    brush.part(body, look.main, look.pattern)
    if look.pattern is None:
        brush.part(box(-0.5 * width, -20 - 0.5 * height, 0.5 * width, -22, 3), metal)
    skull = oval(0, at.middle, head + 2, tall) if rounded else box(-head, at.middle - tall, head, at.middle + tall, 7)
    brush.part(skull, look.main)
    _eyes(brush, at, 4.0)
    mouth = box(-0.4 * head, at.middle + 0.42 * tall, 0.4 * head, at.middle + 0.42 * tall + 5, 2)
    brush.flat(mouth, _WHITE)
    brush.line(mouth, INK, 1.4)


# --- bird --------------------------------------------------------------------------------------------------------

_BIRDS = {  # body's half width and height, how high its middle is, head's radius and middle
    "chubby": (33, 28, 40, 20, (22, -72)),
    "slim": (25, 18, 43, 14, (23, -86)),
    "baby": (22, 19, 25, 27, (10, -58)),
}


def _bird_places(shape: str) -> Places:
    width, _, high, head, (x, y) = _BIRDS[shape]
    neck = {"chubby": (20, -52, 15), "slim": (19, -64, 8), "baby": (8, -36, 16)}[shape]
    return Places(eyes=(x, y, 0), neck=neck, top=(x, y - 0.88 * head), hand=(-0.82 * width, -high - 6),
                  head=0.9 * head, middle=y)  # fmt: skip


def _bird(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, height, high, head, (x, y) = _BIRDS[shape]
    for left in (-9, 7):
        leg = skia.Path()
        leg.moveTo(left, 0.8 * height - high)
        leg.lineTo(left, -2)
        leg.lineTo(left + 8, -2)
        brush.line(leg, mixed(_BEAK, INK, 0.62), 5.6)
        brush.line(leg, _BEAK, 3.2)
    tail = polygon((-0.5 * width, -high - 0.5 * height), (-1.15 * width - 14, -high - height - 6),
                   (-1.15 * width - 18, -high - 0.5 * height), (-0.6 * width, -high + 0.4 * height))  # fmt: skip
    brush.part(turned(tail, 14 * pose.raised, -0.6 * width, -high), look.second)
    beak = (x + 0.8 * head, y + 0.1 * head)
    brush.part(
        polygon((beak[0], y - 0.3 * head), (x + 1.2 * head + 13, beak[1] + 1), (beak[0], y + 0.55 * head)), _BEAK
    )
    if shape == "slim":
        throat = polygon((2, -high), (15, y), (29, y), (24, -high))
        brush.part(throat, look.main)
    brush.part(oval(0, -high, width, height), look.main, look.pattern)
    if look.pattern is None:
        brush.flat(
            oval(0.3 * width, -high + 0.36 * height, 0.56 * width, 0.5 * height), mixed(look.second, _WHITE, 0.12)
        )
    brush.part(oval(x, y, head, 0.96 * head), look.main)
    wing = skia.Path()
    wing.moveTo(0.36 * width, -high - 0.3 * height)
    wing.cubicTo(
        0.4 * width, -high + 0.6 * height, -0.4 * width, -high + 0.6 * height, -0.92 * width, -high + 0.1 * height
    )
    wing.cubicTo(
        -0.6 * width, -high - 0.1 * height, -0.2 * width, -high - 0.7 * height, 0.36 * width, -high - 0.3 * height
    )
    brush.part(turned(wing, 55 * pose.raised, 0.3 * width, -high - 0.3 * height), look.second)
    _eye(brush, x + 0.3 * head, y - 0.16 * head, 3.2 if shape != "baby" else 4.4)


# --- fish --------------------------------------------------------------------------------------------------------

_FISH = {"round": (33, 31), "slim": (38, 18), "tall": (27, 36)}  # half of the width and of the height


def _fish_places(shape: str) -> Places:
    width, height = _FISH[shape]
    high = height + 9
    return Places(
        eyes=(0, 0, 0),
        neck=(0.42 * width, -high + 0.72 * height, 14),
        top=(0.34 * width, -high - 0.86 * height),
        hand=(-0.86 * width, -high - 4),
        head=20,
        middle=-high,
    )


def _fish(brush: Brush, look: _Look, shape: str, pose: Pose, at: Places) -> None:
    width, height = _FISH[shape]
    y, reach = at.middle, 13 if shape == "tall" else 8
    tail = skia.Path()
    tail.moveTo(-0.8 * width, y)
    tail.cubicTo(-width - 4, y - 6, -width - 8, y - 24, -width - 19, y - 22)
    tail.quadTo(-width - 8, y, -width - 19, y + 22)
    tail.cubicTo(-width - 8, y + 24, -width - 4, y + 6, -0.8 * width, y)
    brush.part(turned(tail, 20 * pose.raised - 6, -0.8 * width, y), look.second)
    for up in (-1, 1):
        fin = skia.Path()
        fin.moveTo(0.3 * width, y + up * 0.8 * height)
        fin.quadTo(-0.1 * width, y + up * (height + 1.5 * reach), -0.7 * width, y + up * (height + 0.4 * reach))
        fin.lineTo(-0.5 * width, y + up * 0.6 * height)
        fin.close()
        brush.part(fin, look.second)
    body = skia.Path()
    body.moveTo(width, y)
    body.cubicTo(0.9 * width, y - 1.3 * height, -0.6 * width, y - 1.3 * height, -0.95 * width, y)
    body.cubicTo(-0.6 * width, y + 1.3 * height, 0.9 * width, y + 1.3 * height, width, y)
    brush.part(body, look.main, look.pattern)
    if look.pattern is None:
        brush.flat(oval(0.1 * width, y + 0.5 * height, 0.5 * width, 0.28 * height), mixed(look.second, _WHITE, 0.12))
    side = oval(-0.12 * width, y + 6, 9, 5)
    brush.part(turned(side, 40 * pose.raised - 24, 0.02 * width, y + 4), look.second)
    gill = skia.Path()
    gill.moveTo(0.22 * width, y - 0.5 * height)
    gill.quadTo(0.06 * width, y, 0.22 * width, y + 0.5 * height)
    brush.line(gill, mixed(look.main, INK, 0.62), 1.8)
    _eye(brush, 0.55 * width, y - 0.2 * height, 4.6)
    _smile(brush, 0.74 * width, y + 0.22 * height, 4.5)


_DRAWINGS = {
    "bear": _bear, "cat": _cat, "mug": _mug, "car": _car, "house": _house, "robot": _robot, "bird": _bird,
    "fish": _fish,
}  # fmt: skip
_PLACES: dict[str, Callable[[str], Places]] = {
    "bear": _animal_places, "cat": _animal_places, "mug": _mug_places, "car": _car_places, "house": _house_places,
    "robot": _robot_places, "bird": _bird_places, "fish": _fish_places,
}  # fmt: skip
