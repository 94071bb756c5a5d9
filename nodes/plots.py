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
_LEFT, _TOP, _RIGHT, _BOTTOM = 72, 40, 20, 48  # margins
_INK, _GRID, _RAW, _SMOOTH, _RED = "#202124", "#dadce0", "#a8c7fa", "#0b57d0", "#b3261e"
_BAND, _ORANGE, _GREEN = "#e8f0fe", "#b06000", "#137333"
_LEAST = 1e-8  # share of the mean; less is nothing, as in covariances once kept in fp32


def loss_curve(losses: Sequence[float], tested: Mapping[int, float]) -> Image.Image:
    """The loss of every step, raw and smoothed, and ``tested``, {step: loss on fixed noises}, a picture 720 x 400."""
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    shown = [*losses, *tested.values()]
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin

    def at(step: float, loss: float) -> tuple[float, float]:
        across = (step - 1) / max(len(losses) - 1, 1)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (high - loss) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    for loss in np.linspace(low, high, 5):
        (x0, y), (x1, _) = at(1, loss), at(len(losses), loss)
        draw.line([(x0, y), (max(x1, _WIDTH - _RIGHT), y)], fill=_GRID)
        draw.text((x0 - 8, y), f"{loss:.3f}", fill=_INK, font=font, anchor="rm")
    for step in sorted({round(step) for step in np.linspace(1, len(losses), 6)}):
        draw.text((at(step, low)[0], _HEIGHT - _BOTTOM + 8), str(step), fill=_INK, font=font, anchor="mt")
    draw.text((_WIDTH / 2, _HEIGHT - 6), "step", fill=_INK, font=font, anchor="mb")
    draw.text((_LEFT, 12), "training loss", fill=_INK, font=font)
    draw.text((_LEFT + 120, 12), "raw", fill=_RAW, font=font)
    draw.text((_LEFT + 160, 12), "smoothed", fill=_SMOOTH, font=font)
    if tested:
        draw.text((_LEFT + 245, 12), "on fixed noises", fill=_RED, font=font)
    for values, colour, width in ((losses, _RAW, 1), (_smoothed(losses), _SMOOTH, 3)):
        points = [at(step, loss) for step, loss in enumerate(values, 1)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=width, joint="curve")
        else:
            x, y = points[0]
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    dots = [at(max(step, 1), loss) for step, loss in tested.items()]  # what was tested before the first step is at it
    draw.line(dots, fill=_RED, width=1)
    for x, y in dots:
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_RED)
    return picture


def spectrum(covariance: Covariance) -> Image.Image:
    """C's eigenvalues as shares of their mean, largest first, with the ridge, on a logarithmic scale, 720 x 400."""
    values = torch.linalg.eigvalsh(covariance.matrix()).flip(0)
    mean = max(float(values.mean()), torch.finfo(values.dtype).tiny)
    shares = (values / mean).clamp_min(_LEAST).tolist()
    ridge = max(covariance.ridge, _LEAST) if covariance.ridge else shares[-1]
    low = math.floor(math.log10(min(shares[-1], ridge)))
    high = max(math.ceil(math.log10(max(shares[0], ridge))), low + 1)
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)

    def at(direction: float, share: float) -> tuple[float, float]:
        across = (direction - 1) / max(len(shares) - 1, 1)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (high - math.log10(share)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    for decade in range(low, high + 1):
        (x0, y), (x1, _) = at(1, 10.0**decade), at(len(shares), 10.0**decade)
        draw.line([(x0, y), (x1, y)], fill=_GRID)
        draw.text((x0 - 8, y), f"{10.0**decade:g}", fill=_INK, font=font, anchor="rm")
    for direction in sorted({round(number) for number in np.linspace(1, len(shares), 6)}):
        draw.text((at(direction, ridge)[0], _HEIGHT - _BOTTOM + 8), str(direction), fill=_INK, font=font, anchor="mt")
    draw.text((_WIDTH / 2, _HEIGHT - 6), "direction", fill=_INK, font=font, anchor="mb")
    draw.text((_LEFT, 12), "eigenvalues, shares of their mean", fill=_SMOOTH, font=font)
    draw.line([at(number, share) for number, share in enumerate(shares, 1)], fill=_SMOOTH, width=3, joint="curve")
    words = "no ridge"
    if covariance.ridge:
        below = int((values < covariance.ridge * mean).sum())
        words = f"ridge {covariance.ridge:g}: {below} of {len(shares)} directions lie below it"
        draw.line([at(1, ridge), at(len(shares), ridge)], fill=_RED, width=2)
    draw.text((_WIDTH - _RIGHT, 12), words, fill=_RED, font=font, anchor="ra")
    return picture


def similarities(points: Sequence[tuple[float, float]], best: int, words: str) -> Image.Image:
    """(CLIP-I, CLIP-T) of what was tried, the first a ring, and ``words`` on the best one, a picture 720 x 400.

    A curve goes through all that is as good as the best, by the harmonic mean.
    """
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    corners = np.array([np.min(points, axis=0), np.max(points, axis=0)])
    margin = np.maximum((corners[1] - corners[0]) * 0.08, 0.002)
    (left, low), (right, high) = corners[0] - margin, corners[1] + margin

    def at(image: float, text: float) -> tuple[float, float]:
        return (
            _LEFT + (image - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (high - text) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    for text in np.linspace(low, high, 5):
        (x0, y), (x1, _) = at(left, text), at(right, text)
        draw.line([(x0, y), (x1, y)], fill=_GRID)
        draw.text((x0 - 8, y), f"{text:.3f}", fill=_INK, font=font, anchor="rm")
    for image in np.linspace(left, right, 6):
        draw.text((at(image, low)[0], _HEIGHT - _BOTTOM + 8), f"{image:.3f}", fill=_INK, font=font, anchor="mt")
    draw.text((_WIDTH / 2, _HEIGHT - 6), "CLIP-I, to the photos", fill=_INK, font=font, anchor="mb")
    draw.text((_LEFT, 12), "CLIP-T, to the prompts", fill=_INK, font=font)
    draw.text((_WIDTH - _RIGHT, 12), words, fill=_RED, font=font, anchor="ra")
    if (mean := harmonic_mean(*points[best])) > 0:
        alike = [
            (image, mean * image / (2 * image - mean)) for image in np.linspace(left, right, 200) if image > mean / 2
        ]
        draw.line([at(*pair) for pair in alike if low <= pair[1] <= high], fill=_RAW, width=2)
    for number, pair in enumerate(points):
        x, y = at(*pair)
        box = [x - 4, y - 4, x + 4, y + 4]
        draw.ellipse(box, fill="white" if number == 0 else _SMOOTH, outline=_SMOOTH, width=2)
    x, y = at(*points[best])
    draw.ellipse([x - 7, y - 7, x + 7, y + 7], outline=_RED, width=2)
    return picture


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
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, 68, _HEIGHT - _BOTTOM
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    if picture is not None:
        small = ImageOps.contain(picture.convert("RGB"), (150, 150))
        right -= small.width + 20
        canvas.paste(small, (_WIDTH - _RIGHT - small.width, top))
    low, high = min(-0.1, *words.values()) - 0.05, max(1.15, *words.values()) + 0.05

    def at(similarity: float) -> tuple[float, float]:
        gate = 1 / (1 + math.exp(min((beta - similarity) / temperature, 700)))
        return left + (similarity - low) / (high - low) * (right - left), bottom - gate * (bottom - top)

    draw.text((left, 12), f"gate at beta {beta:.2f}, temperature {temperature:.2f}", fill=_INK, font=font)
    if suggested:
        (x0, _), (x1, _) = map(at, suggested)
        draw.rectangle([x0, top, x1, bottom], fill=_BAND)
        label = f"suggested beta {suggested[0]:.2f} to {suggested[1]:.2f}"
        draw.text((_WIDTH - _RIGHT, 12), label, fill=_SMOOTH, font=font, anchor="ra")
    for gate in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - gate * (bottom - top)
        draw.line([(left, y), (right, y)], fill=_GRID)
        draw.text((left - 8, y), f"{gate:.0%}", fill=_INK, font=font, anchor="rm")
    for tick in (0, 0.25, 0.5, 0.75, 1):
        draw.text((at(tick)[0], bottom + 8), f"{tick:g}", fill=_INK, font=font, anchor="mt")
    draw.line([(at(beta)[0], top), (at(beta)[0], bottom)], fill=_INK)
    draw.text((at(beta)[0] - 4, top + 2), "beta", fill=_INK, font=font, anchor="ra")
    draw.text(((left + right) / 2, _HEIGHT - 6), "how like the concept a word is", fill=_INK, font=font, anchor="mb")
    draw.line([at(x) for x in np.linspace(low, high, 200).tolist()], fill=_SMOOTH, width=3, joint="curve")
    across = left
    for (word, similarity), colour in zip(words.items(), (_RED, _ORANGE, _GREEN), strict=False):
        x, y = at(similarity)
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], fill=colour, outline="white", width=2)
        label = f"{_shortened(word)} {(bottom - y) / (bottom - top):.1%}"
        draw.text((across, 36), label, fill=colour, font=font)
        across += font.getlength(label) + 24
    return canvas


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> Image.Image:
    """Numbers in -1..1 with a name for every row and column; blue is high, red below 0."""
    font, cell = ImageFont.load_default(14), 48
    rows, columns = [list(map(_shortened, names)) for names in (rows, columns)]
    side, top = (round(max(font.getlength(name) for name in names)) + 16 for names in (rows, columns))
    picture = Image.new("RGB", (side + cell * len(columns) + 8, top + cell * len(rows) + 8), "white")
    draw = ImageDraw.Draw(picture)
    for j, name in enumerate(columns):
        label = Image.new("RGB", (top, cell), "white")
        ImageDraw.Draw(label).text((8, cell / 2), name, fill=_INK, font=font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (side + cell * j, 0))
    for i, name in enumerate(rows):
        draw.text((side - 8, top + cell * (i + 0.5)), name, fill=_INK, font=font, anchor="rm")
        for j, value in enumerate(values[i]):
            shade = np.array(ImageColor.getrgb(_SMOOTH if value > 0 else _RED)) - 255
            colour = tuple((255 + shade * min(abs(value), 1)).astype(int).tolist())
            x, y = side + cell * j, top + cell * i
            draw.rectangle([x, y, x + cell - 2, y + cell - 2], fill=colour)
            ink = "white" if abs(value) > 0.5 else _INK
            draw.text((x + cell / 2, y + cell / 2), f"{value:.2f}", fill=ink, font=font, anchor="mm")
    return picture


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


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over a window of a tenth of the curve around each step."""
    reach = max(len(losses) // 20, 1)
    return [float(np.mean(losses[max(i - reach, 0) : i + reach + 1])) for i in range(len(losses))]
