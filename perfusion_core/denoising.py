"""What a training looks at: the timesteps that it draws, and how much each part of a picture counts."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor | None, unmasked_weight: float = 0.0) -> Tensor:
    """Mean over all elements of w (prediction − target)^2, a scalar; the weight w is the mask over its own maximum.

    prediction, target: (batch, channels, height, width). mask: (batch, 1, height, width) or (batch, height, width), in
    0..1 and soft; its maximum is taken per image, so a faint mask counts as much as a strong one. None: w = 1.
    unmasked_weight: the least w, 0..1. Above 0 a subject's outline is learned as well, not only its inside.
    """
    error = (prediction - target) ** 2
    if mask is None:
        return error.mean()
    if mask.ndim == prediction.ndim - 1:
        mask = rearrange(mask, "batch ... -> batch 1 ...")
    if mask.ndim != prediction.ndim or mask.shape[0] not in (1, prediction.shape[0]):
        raise ValueError(
            f"The mask is {tuple(mask.shape)}, the prediction {tuple(prediction.shape)}: one mask per image."
        )
    weight = mask / mask.amax(tuple(range(1, mask.ndim)), keepdim=True).clamp_min(1e-6)
    return (weight.clamp_min(unmasked_weight) * error).mean()


def draw_timesteps(count: int, end: int, generator: torch.Generator, start: int = 0) -> Tensor:
    """(count,) timesteps from start to below end, uniform, each from its own of ``count`` equal parts of the range.

    So every batch sees both low and high noise. A higher start leaves out what has little noise: details, not shapes.
    Raises ValueError when nothing is left.
    """
    if not 0 <= start < end:
        raise ValueError(f"Timesteps go from 0 to below {end}; there are none from {start} on.")
    places = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return (start + places * (end - start)).long().clamp_max(end - 1)
