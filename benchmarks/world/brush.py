"""How the book is painted: a part is filled, patterned, shaded from the light's side and outlined."""

from __future__ import annotations

from collections.abc import Callable

import skia

Colour = tuple[int, int, int]
INK = (64, 48, 44)
_PATTERN_SIZE = 13.0  # from one stripe, dot or check to the next


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def rgba(colour: Colour, alpha: float = 1.0) -> int:
    return skia.Color(*colour, round(255 * alpha))


def oval(x: float, y: float, rx: float, ry: float) -> skia.Path:
    return skia.Path().addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))


def box(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> skia.Path:
    return skia.Path().addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), radius, radius)


def polygon(*points: tuple[float, float]) -> skia.Path:
    return skia.Path().addPoly([skia.Point(*point) for point in points], True)


def turned(path: skia.Path, degrees: float, x: float, y: float) -> skia.Path:
    out = skia.Path(path)
    out.transform(skia.Matrix().setRotate(degrees, x, y))
    return out


class Brush:
    """Paints on a canvas. ``light``: -1 when it comes from the left, 1 from the right."""

    def __init__(self, canvas: skia.Canvas, light: float = -1.0, outline: float = 2.4):
        self.canvas, self.light, self.outline = canvas, light, outline

    def part(self, path: skia.Path, colour: Colour, pattern: Callable[[Brush, skia.Rect], None] | None = None) -> None:
        """One part of a thing, as soft and round as picture books have it."""
        self.flat(path, colour)
        bounds = path.getBounds()
        if pattern:
            self.canvas.save()
            self.canvas.clipPath(path, skia.ClipOp.kIntersect, True)
            pattern(self, bounds)
            self.canvas.restore()
        self.canvas.drawPath(path, self._shade(bounds))
        self.line(path, mixed(colour, INK, 0.62))

    def flat(self, path: skia.Path, colour: Colour, alpha: float = 1.0) -> None:
        self.canvas.drawPath(path, skia.Paint(AntiAlias=True, Color=rgba(colour, alpha)))

    def line(self, path: skia.Path, colour: Colour = INK, width: float = 0.0) -> None:
        paint = skia.Paint(
            AntiAlias=True, Color=rgba(colour), Style=skia.Paint.kStroke_Style, StrokeWidth=width or self.outline,
            StrokeCap=skia.Paint.kRound_Cap, StrokeJoin=skia.Paint.kRound_Join,
        )  # fmt: skip
        self.canvas.drawPath(path, paint)

    def _shade(self, bounds: skia.Rect) -> skia.Paint:
        width, height = bounds.width(), bounds.height()
        centre = (bounds.centerX() + self.light * 0.22 * width, bounds.top() + 0.25 * height)
        shader = skia.GradientShader.MakeRadial(
            center=centre, radius=max(0.95 * max(width, height), 1.0),
            colors=[skia.Color(255, 255, 245, 95), skia.Color(255, 255, 245, 0), skia.Color(40, 20, 60, 105)],
            positions=[0.0, 0.45, 1.0],
        )  # fmt: skip
        return skia.Paint(AntiAlias=True, Shader=shader)


def pattern_of(name: str, colour: Colour) -> Callable[[Brush, skia.Rect], None] | None:
    """Paints the pattern over a part, laid out from its middle; None for a plain part."""
    if name == "plain":
        return None
    draw = {"stripes": _stripes, "dots": _dots, "checks": _checks}[name]
    return lambda brush, bounds: draw(brush, bounds, colour)


def _steps(low: float, high: float, middle: float) -> list[int]:
    return list(range(int((low - middle) // _PATTERN_SIZE), int((high - middle) // _PATTERN_SIZE) + 2))


def _stripes(brush: Brush, bounds: skia.Rect, colour: Colour) -> None:
    left, right, y = bounds.left(), bounds.right(), bounds.centerY()
    for row in _steps(bounds.top(), bounds.bottom(), y):
        top = y + row * _PATTERN_SIZE
        brush.flat(box(left, top, right, top + _PATTERN_SIZE / 2), colour)


def _dots(brush: Brush, bounds: skia.Rect, colour: Colour) -> None:
    x, y = bounds.centerX(), bounds.centerY()
    for row in _steps(bounds.top(), bounds.bottom(), y):
        for column in _steps(bounds.left(), bounds.right(), x):
            shift = 0.5 * (row % 2)
            centre = (x + (column + shift) * _PATTERN_SIZE, y + row * _PATTERN_SIZE)
            brush.flat(oval(*centre, 0.31 * _PATTERN_SIZE, 0.31 * _PATTERN_SIZE), colour)


def _checks(brush: Brush, bounds: skia.Rect, colour: Colour) -> None:
    x, y, size = bounds.centerX(), bounds.centerY(), _PATTERN_SIZE
    for row in _steps(bounds.top(), bounds.bottom(), y):
        for column in _steps(bounds.left(), bounds.right(), x):
            if (row + column) % 2:
                left, top = x + column * size, y + row * size
                brush.flat(box(left, top, left + size, top + size), colour)
