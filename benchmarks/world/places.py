"""Where scenes are set, and the styles they are painted in."""

from __future__ import annotations

import numpy as np
import skia
from PIL import Image, ImageFilter

from .brush import Brush, Colour, box, mixed, oval, polygon

SIZE = 96
PLACES = {
    "meadow": "in the meadow", "beach": "on the beach", "snow": "in the snow", "street": "on the street",
    "room": "in the room", "forest": "in the forest", "night": "at night", "desert": "in the desert",
}  # fmt: skip
STYLES = {"": "picture", "sketch": "sketch", "watercolor": "watercolor", "pixel": "pixel art", "gray": "gray picture"}


def empty(name: str, random: np.random.Generator) -> np.ndarray:
    """(96, 96, 3) uint8, a place in which nothing stands."""
    canvas = np.zeros((SIZE, SIZE, 4), np.uint8)
    surface = skia.Surface(canvas, colorType=skia.ColorType.kRGBA_8888_ColorType)
    _PLACES[name](Brush(surface.getCanvas(), outline=0.8), random)
    return canvas[..., :3].copy()


def _ground(brush: Brush, sky: tuple[Colour, Colour], ground: tuple[Colour, Colour], horizon: float) -> None:
    for top, bottom, colours in ((0, horizon, sky), (horizon, SIZE, ground)):
        shader = skia.GradientShader.MakeLinear(
            points=[(0, top), (0, bottom)], colors=[skia.Color(*colour) for colour in colours]
        )
        brush.canvas.drawRect(skia.Rect.MakeLTRB(0, top, SIZE, bottom), skia.Paint(Shader=shader))


def _hills(brush: Brush, colour: Colour, horizon: float, height: float, random: np.random.Generator) -> None:
    for x in (random.uniform(0, 40), random.uniform(55, 96)):
        brush.flat(oval(x, horizon + 2, random.uniform(30, 48), height * random.uniform(0.7, 1.1)), colour)


def _cloud(brush: Brush, x: float, y: float, alpha: float = 0.9) -> None:
    for dx, dy, rx, ry in ((0, 0, 10, 4.5), (-4, -3, 5, 4), (4, -3.5, 6, 5)):
        brush.flat(oval(x + dx, y + dy, rx, ry), (255, 255, 255), alpha)


def _horizon(random: np.random.Generator) -> float:
    return random.uniform(54, 60)


def _meadow(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random)
    _ground(brush, ((132, 200, 242), (214, 238, 250)), ((142, 204, 96), (96, 168, 74)), y)
    _cloud(brush, random.uniform(8, 88), random.uniform(10, 22))
    canvas = brush.canvas
    canvas.save()
    canvas.clipRect(skia.Rect.MakeLTRB(0, 0, SIZE, y))
    _hills(brush, (122, 188, 100), y, 12, random)
    canvas.restore()
    for _ in range(7):
        x, at = random.uniform(3, 93), random.uniform(y + 8, 94)
        colour = ((255, 255, 255), (255, 226, 110), (246, 160, 190))[int(random.integers(3))]
        brush.flat(oval(x, at, 1.7, 1.7), colour)


def _beach(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random) + 4
    _ground(brush, ((122, 200, 246), (218, 242, 252)), ((250, 226, 164), (232, 196, 126)), y)
    sea = box(0, y - 13, SIZE, y)
    brush.flat(sea, (70, 160, 206))
    brush.flat(box(0, y - 2.5, SIZE, y + 1), (244, 252, 252), 0.9)
    brush.flat(oval(random.uniform(10, 86), random.uniform(9, 18), 6.5, 6.5), (255, 230, 120))


def _snow(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random)
    _ground(brush, ((170, 190, 216), (222, 230, 242)), ((250, 252, 255), (216, 226, 242)), y)
    for x in (random.uniform(4, 34), random.uniform(62, 92)):
        for step in range(3):
            top, wide = y - 26 + 8 * step, 5 + 2.5 * step
            brush.flat(polygon((x - wide, top + 11), (x, top), (x + wide, top + 11)), (92, 136, 124))
    for _ in range(16):
        brush.flat(oval(random.uniform(0, SIZE), random.uniform(0, y), 1.3, 1.3), (255, 255, 255))


def _street(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random) + 4
    _ground(brush, ((168, 208, 236), (226, 238, 246)), ((150, 152, 160), (118, 120, 130)), y)
    x = -random.uniform(0, 14)
    while x < SIZE:
        wide, high = random.uniform(18, 26), random.uniform(24, 44)
        colour = ((214, 170, 150), (196, 190, 206), (222, 206, 168), (172, 190, 186))[int(random.integers(4))]
        brush.flat(box(x, y - high, x + wide, y), colour)
        for row in range(int(high // 11)):
            for column in (0.18, 0.6):
                left, top = x + column * wide, y - high + 5 + 11 * row
                brush.flat(box(left, top, left + 4, top + 5), mixed(colour, (80, 90, 120), 0.5))
        x += wide
    brush.flat(box(0, y, SIZE, y + 4), (202, 200, 200))
    shift = random.uniform(0, 24)
    for start in range(-24, SIZE, 24):
        brush.flat(box(start + shift, 88, start + shift + 12, 90.5), (246, 240, 220))


def _room(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random) + 6
    _ground(brush, ((248, 226, 190), (240, 212, 174)), ((190, 128, 82), (160, 102, 64)), y)
    brush.flat(box(0, y - 3, SIZE, y), (252, 244, 230))
    for line in (y + 9, y + 20, y + 32):
        brush.flat(box(0, line, SIZE, line + 0.9), (138, 88, 56))
    x = random.choice([random.uniform(4, 20), random.uniform(58, 72)])
    window = box(x, 10, x + 22, 36, 1)
    brush.flat(window, (158, 212, 242))
    brush.line(window, (252, 248, 240), 3)
    brush.flat(box(x + 10, 10, x + 12, 36), (252, 248, 240))


def _forest(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random)
    _ground(brush, ((120, 168, 122), (176, 206, 150)), ((104, 138, 70), (74, 104, 56)), y)
    for x in np.linspace(4, 92, 6) + random.uniform(-5, 5, 6):
        brush.flat(box(x - 3, 0, x + 3, y + 3), (104, 78, 58))
    for x in np.linspace(0, 96, 7) + random.uniform(-5, 5, 7):
        brush.flat(oval(x, random.uniform(2, 10), 13, 11), (62, 118, 72))


def _night(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random)
    _ground(brush, ((24, 28, 74), (64, 66, 130)), ((58, 74, 112), (40, 52, 88)), y)
    for _ in range(12):
        brush.flat(oval(random.uniform(0, SIZE), random.uniform(0, y - 10), 1.1, 1.1), (255, 250, 214))
    x, top = random.uniform(12, 84), random.uniform(12, 20)
    brush.flat(oval(x, top, 7.5, 7.5), (255, 244, 196))
    brush.flat(oval(x + 3.4, top - 1.4, 6.2, 6.2), (32, 36, 84))
    canvas = brush.canvas
    canvas.save()
    canvas.clipRect(skia.Rect.MakeLTRB(0, 0, SIZE, y))
    _hills(brush, (46, 54, 104), y, 10, random)
    canvas.restore()


def _desert(brush: Brush, random: np.random.Generator) -> None:
    y = _horizon(random)
    _ground(brush, ((250, 190, 120), (254, 228, 178)), ((226, 156, 92), (202, 126, 74)), y)
    brush.flat(oval(random.uniform(14, 82), random.uniform(16, 30), 9, 9), (255, 240, 190))
    x = random.choice([random.uniform(8, 22), random.uniform(74, 88)])
    green = (96, 146, 92)
    brush.flat(box(x - 3, y - 24, x + 3, y + 2, 3), green)
    brush.flat(box(x - 9, y - 15, x, y - 11, 2), green)
    brush.flat(box(x - 9, y - 20, x - 5, y - 11, 2), green)
    brush.flat(box(x, y - 11, x + 9, y - 7, 2), green)
    brush.flat(box(x + 5, y - 17, x + 9, y - 7, 2), green)


_PLACES = {
    "meadow": _meadow, "beach": _beach, "snow": _snow, "street": _street, "room": _room, "forest": _forest,
    "night": _night, "desert": _desert,
}  # fmt: skip


def in_style(picture: np.ndarray, style: str) -> np.ndarray:
    """(96, 96, 3), uint8, painted in one of STYLES."""
    return _STYLES[style](picture) if style else picture


def _gray(picture: np.ndarray) -> np.ndarray:
    luma = picture @ np.array([0.299, 0.587, 0.114])
    return np.repeat(luma.round().astype(np.uint8)[..., None], 3, -1)


def _sketch(picture: np.ndarray) -> np.ndarray:
    """Pencil on paper: dark where the picture changes, with a hint of its colours."""
    image = Image.fromarray(picture)
    luma = np.asarray(image.convert("L"), np.float32)
    around = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(2.2)), np.float32)
    pencil = np.clip(luma / np.maximum(around, 1), 0.35, 1)[..., None] ** 1.6
    paper = 0.72 * np.array([252, 250, 244], np.float32) + 0.28 * picture
    return (paper * pencil).round().astype(np.uint8)


def _watercolor(picture: np.ndarray) -> np.ndarray:
    """Pale and wet on white paper, darker where a colour ends."""
    soft = Image.fromarray(picture).filter(ImageFilter.MedianFilter(3))
    wet = soft.filter(ImageFilter.GaussianBlur(1.6))
    pale = 255 - 0.58 * (255 - (1.3 * np.asarray(soft, np.float32) - 0.3 * np.asarray(wet, np.float32)).clip(0, 255))
    edge = np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1])
    inside = np.clip((np.minimum(edge[:, None], edge) - 1) / 5, 0, 1)[..., None]
    return (pale * inside + 252 * (1 - inside)).round().clip(0, 255).astype(np.uint8)


def _pixel(picture: np.ndarray) -> np.ndarray:
    """Large square pixels of few colours."""
    small = Image.fromarray(picture).resize((SIZE // 3, SIZE // 3), Image.Resampling.BOX)
    few = small.quantize(24, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).convert("RGB")
    return np.asarray(few.resize((SIZE, SIZE), Image.Resampling.NEAREST))


_STYLES = {"gray": _gray, "sketch": _sketch, "watercolor": _watercolor, "pixel": _pixel}
