"""Pictures of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from ..perfusion_core import Covariance
from ..perfusion_core.checkpoints import harmonic_mean

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _BOTTOM = 84, 28, 60  # margins
_FONT = 18  # pixels; a node mostly shows a plot at half its size
_INK, _GRID, _RAW, _SMOOTH, _RED = "#202124", "#dadce0", "#669df6", "#0b57d0", "#b3261e"
_BAND, _ORANGE, _GREEN = "#e8f0fe", "#b06000", "#137333"
_LEAST = 1e-8  # share of the mean; less is nothing, as in covariances once kept in fp32


class _Plot:
    """A white picture 720 x 400 with a plot in it; x and y: the ends of its axes, in the plotted numbers.

    legend: words and their colours, written above the plot, on as many lines as they need.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        legend: Sequence[tuple[str, str]],
        right: float = _WIDTH - _RIGHT,
    ):
        self.picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
        self.draw, self.font = ImageDraw.Draw(self.picture), ImageFont.load_default(_FONT)
        self.right, self.bottom = right, _HEIGHT - _BOTTOM
        self._x, self._y = x, y
        across, self.top = _RIGHT, 10
        for words, colour in legend:
            width = round(self.font.getlength(words))
            if across > _RIGHT and across + width > _WIDTH - _RIGHT:
                across, self.top = _RIGHT, self.top + 26
            self.text((across, self.top), words, colour)
            across += width + 20
        self.top += 38

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the picture, in pixels."""
        (left, right), (low, high) = self._x, self._y
        return (
            _LEFT + (x - left) / (right - left) * (self.right - _LEFT),
            self.top + (high - y) / (high - low) * (self.bottom - self.top),
        )

    def axes(self, x: Mapping[float, str], y: Mapping[float, str]) -> None:
        """Labels below and beside the plot, and a line for each of ``y``."""
        for value, label in y.items():
            down = self.at(self._x[0], value)[1]
            self.draw.line([(_LEFT, down), (self.right, down)], fill=_GRID)
            self.text((_LEFT - 8, down), label, _INK, "rm")
        for value, label in x.items():
            self.text((self.at(value, self._y[0])[0], self.bottom + 12), label, _INK, "mt")

    def text(self, place: tuple[float, float], words: str, colour: str, anchor: str = "la") -> None:
        self.draw.text(place, words, fill=colour, font=self.font, anchor=anchor)

    def dot(self, place: tuple[float, float], radius: int, **colours) -> None:
        x, y = place
        self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], **colours)


def loss_curve(losses: Sequence[float], tested: Mapping[int, float]) -> Image.Image:
    """The loss of every step, raw and smoothed, and ``tested``, {step: loss on fixed noises}, a picture 720 x 400."""
    shown = [*losses, *tested.values()]
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    legend = [("training loss", _INK), ("raw", _RAW), ("smoothed", _SMOOTH)]
    plot = _Plot((1, max(len(losses), 2)), (low, high), legend + [("on fixed noises", _RED)] * bool(tested))
    plot.axes(_counted(len(losses)), {loss: f"{loss:.3f}" for loss in np.linspace(low, high, 5)})
    plot.text((_WIDTH / 2, _HEIGHT - 6), "step", _INK, "mb")
    for values, colour, width in ((losses, _RAW, 1), (_smoothed(losses), _SMOOTH, 3)):
        points = [plot.at(step, loss) for step, loss in enumerate(values, 1)]
        if len(points) > 1:
            plot.draw.line(points, fill=colour, width=width, joint="curve")
        else:
            plot.dot(points[0], 3, fill=colour)
    dots = [plot.at(max(step, 1), loss) for step, loss in tested.items()]  # tested before the first step: at it
    plot.draw.line(dots, fill=_RED, width=1)
    for dot in dots:
        plot.dot(dot, 3, fill=_RED)
    return plot.picture


def spectrum(covariance: Covariance) -> Image.Image:
    """C's eigenvalues as shares of their mean, largest first, with the ridge, on a logarithmic scale, 720 x 400."""
    values = torch.linalg.eigvalsh(covariance.matrix()).flip(0)
    mean = max(float(values.mean()), torch.finfo(values.dtype).tiny)
    shares = (values / mean).clamp_min(_LEAST).tolist()
    ridge = max(covariance.ridge, _LEAST) if covariance.ridge else shares[-1]
    low = math.floor(math.log10(min(shares[-1], ridge)))
    high = max(math.ceil(math.log10(max(shares[0], ridge))), low + 1)
    words = "no ridge"
    if covariance.ridge:
        below = int((values < covariance.ridge * mean).sum())
        words = f"ridge {covariance.ridge:g}: {below} of {len(shares)} directions lie below it"
    legend = [("eigenvalues, shares of their mean", _SMOOTH), (words, _RED)]
    plot = _Plot((1, max(len(shares), 2)), (low, high), legend)
    decades = {decade: f"{10.0**decade:g}" for decade in range(low, high + 1)}
    plot.axes(_counted(len(shares)), decades)
    plot.text((_WIDTH / 2, _HEIGHT - 6), "direction", _INK, "mb")
    curve = [plot.at(number, math.log10(share)) for number, share in enumerate(shares, 1)]
    plot.draw.line(curve, fill=_SMOOTH, width=3, joint="curve")
    if covariance.ridge:
        plot.draw.line([plot.at(end, math.log10(ridge)) for end in (1, len(shares))], fill=_RED, width=2)
    return plot.picture


def similarities(points: Sequence[tuple[float, float]], best: int, words: str) -> Image.Image:
    """(CLIP-I, CLIP-T) of what was tried, the first a ring, and ``words`` on the best one, a picture 720 x 400.

    A curve goes through all that is as good as the best, by the harmonic mean.
    """
    corners = np.array([np.min(points, axis=0), np.max(points, axis=0)])
    margin = np.maximum((corners[1] - corners[0]) * 0.08, 0.002)
    (left, low), (right, high) = corners[0] - margin, corners[1] + margin
    plot = _Plot((left, right), (low, high), [("CLIP-T, to the prompts", _INK), (words, _RED)])
    across, up = ({x: f"{x:.3f}" for x in np.linspace(*ends)} for ends in ((left, right, 6), (low, high, 5)))
    plot.axes(across, up)
    plot.text((_WIDTH / 2, _HEIGHT - 6), "CLIP-I, to the photos", _INK, "mb")
    if (mean := harmonic_mean(*points[best])) > 0:
        alike = [
            (image, mean * image / (2 * image - mean)) for image in np.linspace(left, right, 200) if image > mean / 2
        ]
        plot.draw.line([plot.at(*pair) for pair in alike if low <= pair[1] <= high], fill=_RAW, width=2)
    for number, pair in enumerate(points):
        plot.dot(plot.at(*pair), 4, fill="white" if number == 0 else _SMOOTH, outline=_SMOOTH, width=2)
    plot.dot(plot.at(*points[best]), 7, outline=_RED, width=2)
    return plot.picture


def gate_curve(
    beta: float,
    temperature: float,
    words: Mapping[str, float],
    suggested: tuple[float, float] | None,
    picture: Image.Image | None,
) -> Image.Image:
    """The gate over the similarity of a word to the concept, with a dot for each of ``words``, 720 x 400.

    words: at most three with their similarities; the concept's own is 1. suggested: a range of beta, shown as a band.
    picture: shown at the side.
    """
    small = ImageOps.contain(picture.convert("RGB"), (150, 150)) if picture is not None else None
    low, high = min(-0.1, *words.values()) - 0.05, max(1.15, *words.values()) + 0.05

    def gate(similarity: float) -> float:
        return 1 / (1 + math.exp(min((beta - similarity) / temperature, 700)))

    legend = [(f"gate at beta {beta:.2f}, temperature {temperature:.2f}", _INK)]
    if suggested:
        legend.append((f"suggested beta {suggested[0]:.2f} to {suggested[1]:.2f}", _SMOOTH))
    dots = list(zip(words.items(), (_RED, _ORANGE, _GREEN), strict=False))
    legend += [(f"{_shortened(word)} {gate(similarity):.1%}", colour) for (word, similarity), colour in dots]
    plot = _Plot((low, high), (0, 1), legend, _WIDTH - _RIGHT - (small.width + 20 if small else 0))
    if small is not None:
        plot.picture.paste(small, (_WIDTH - _RIGHT - small.width, plot.top))
    if suggested:
        (x0, top), (x1, bottom) = plot.at(suggested[0], 1), plot.at(suggested[1], 0)
        plot.draw.rectangle([x0, top, x1, bottom], fill=_BAND)
    quarters = (0, 0.25, 0.5, 0.75, 1)
    plot.axes({x: f"{x:g}" for x in quarters}, {y: f"{y:.0%}" for y in quarters})
    plot.text(((_LEFT + plot.right) / 2, _HEIGHT - 6), "how like the concept a word is", _INK, "mb")
    x, top = plot.at(beta, 1)
    plot.draw.line([(x, top), plot.at(beta, 0)], fill=_INK)
    plot.text((x - 4, top + 2), "beta", _INK, "ra")
    curve = [plot.at(x, gate(x)) for x in np.linspace(low, high, 200).tolist()]
    plot.draw.line(curve, fill=_SMOOTH, width=3, joint="curve")
    for (_, similarity), colour in dots:
        plot.dot(plot.at(similarity, gate(similarity)), 7, fill=colour, outline="white", width=2)
    return plot.picture


def heat_map(names: Sequence[str], values: Sequence[Sequence[float]]) -> Image.Image:
    """A table of numbers in -1..1 with the same names for rows and columns; blue is high, red below 0."""
    font, cell = ImageFont.load_default(22), 76
    names = list(map(_shortened, names))
    side = round(max(map(font.getlength, names))) + 20
    picture = Image.new("RGB", (side + cell * len(names) + 8, side + cell * len(names) + 8), "white")
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(names):
        label = Image.new("RGB", (side, cell), "white")
        ImageDraw.Draw(label).text((10, cell / 2), name, fill=_INK, font=font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (side + cell * i, 0))
        draw.text((side - 10, side + cell * (i + 0.5)), name, fill=_INK, font=font, anchor="rm")
        for j, value in enumerate(values[i]):
            x, y = side + cell * j, side + cell * i
            paper, ink = _colours(value)
            draw.rectangle([x, y, x + cell - 3, y + cell - 3], fill=paper)
            draw.text((x + cell / 2, y + cell / 2), f"{value:.2f}", fill=ink, font=font, anchor="mm")
    return picture


def word_map(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Image.Image:
    """Texts with the number 0..1 of every word below it, the bluer the higher, and a heading above each; 640 wide."""
    font, small, pad, high = ImageFont.load_default(24), ImageFont.load_default(20), 8, 62
    width, across, down = 640, pad, pad
    texts, boxes = [], []  # (place, text) and (left, top, right, word, number)
    for heading, words in rows:
        texts.append(((pad, down), heading))
        across, down = pad, down + 36
        for word, number in words:
            label = _shortened(word)
            wide = round(max(font.getlength(label), small.getlength(f"{number:.2f}"))) + 2 * pad
            if across > pad and across + wide > width - pad:
                across, down = pad, down + high + 6
            boxes.append((across, down, across + wide, label, number))
            across += wide + 3
        down += high + 3 * pad
    picture = Image.new("RGB", (width, down - pad), "white")
    draw = ImageDraw.Draw(picture)
    for place, text in texts:
        draw.text(place, text, fill=_INK, font=font)
    for left, top, right, word, number in boxes:
        paper, ink = _colours(number)
        draw.rectangle([left, top, right, top + high], fill=paper)
        draw.text(((left + right) / 2, top + 18), word, fill=ink, font=font, anchor="mm")
        draw.text(((left + right) / 2, top + 45), f"{number:.2f}", fill=ink, font=small, anchor="mm")
    return picture


def _colours(value: float) -> tuple[tuple[int, ...], str]:
    """Of the paper and the ink for a number in -1..1."""
    shade = np.array(ImageColor.getrgb(_SMOOTH if value > 0 else _RED)) - 255
    paper = tuple((255 + shade * min(abs(value), 1)).astype(int).tolist())
    return paper, "white" if abs(value) > 0.5 else _INK


def heat_overlay(picture: Image.Image, heat: torch.Tensor) -> Image.Image:
    """A picture in grey under ``heat`` (height, width) in 0..1: blue is low, red in the middle, yellow high."""
    shade = Image.fromarray(heat.mul(255).round().byte().numpy()).resize(picture.size, Image.Resampling.BILINEAR)
    colours = ImageOps.colorize(shade, black="#10206b", mid=_RED, white="#fde725")
    return Image.blend(picture.convert("L").convert("RGB"), colours, 0.5)


def _shortened(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def as_image(picture: Image.Image) -> torch.Tensor:
    """IMAGE (1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def _counted(count: int) -> dict[float, str]:
    """Labels of some of the numbers from 1 to ``count``."""
    return {number: str(number) for number in sorted({round(number) for number in np.linspace(1, count, 6)})}


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over a window of a tenth of the curve around each step."""
    reach = max(len(losses) // 20, 1)
    return [float(np.mean(losses[max(i - reach, 0) : i + reach + 1])) for i in range(len(losses))]
