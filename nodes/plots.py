"""Pictures of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 720, 400
_LEFT, _TOP, _RIGHT, _BOTTOM = 72, 40, 20, 48  # margins
_INK, _GRID, _RAW, _SMOOTH = "#202124", "#dadce0", "#a8c7fa", "#0b57d0"


def loss_curve(losses: Sequence[float]) -> Image.Image:
    """The loss of every step, raw and smoothed, as a picture 720 x 400."""
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    low, high = min(losses), max(losses)
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
    for values, colour, width in ((losses, _RAW, 1), (_smoothed(losses), _SMOOTH, 3)):
        points = [at(step, loss) for step, loss in enumerate(values, 1)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=width, joint="curve")
        else:
            x, y = points[0]
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    return picture


def as_image(picture: Image.Image) -> torch.Tensor:
    """IMAGE (1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over a window of a tenth of the curve around each step."""
    reach = max(len(losses) // 20, 1)
    return [float(np.mean(losses[max(i - reach, 0) : i + reach + 1])) for i in range(len(losses))]
