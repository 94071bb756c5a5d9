"""IMAGE and MASK in one form, whatever shapes and numbers other nodes hand on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

_CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGB and alpha
_OVERSHOOT = 0.5  # beyond 0 and 1, as sharp scaling leaves it


def batches_of(images: Sequence[Tensor]) -> list[Tensor]:
    """Batches (photos, height, width, 3 or 4). Raises ValueError for what is no IMAGE."""
    return [_in_unit_range(_channels_last(batch)) for batch in images]


def photos_of(images: Sequence[Tensor]) -> list[Tensor]:
    """Photos (height, width, 3 or 4) of batches. Raises ValueError for what is no IMAGE."""
    return [photo for batch in batches_of(images) for photo in batch]


def masks_of(masks: Sequence[Tensor]) -> list[Tensor]:
    """Masks (height, width) of batches; what reaches beyond 1 is divided by its maximum. Raises ValueError."""
    return [mask for batch in masks for mask in _flat(batch)]


def _channels_last(batch: Tensor) -> Tensor:
    """(photos, height, width, 3 or 4)"""
    found = batch
    if batch.ndim == 3:
        if batch.shape[-1] in _CHANNELS:
            found = rearrange(batch, "h w c -> 1 h w c")
        elif batch.shape[0] not in (2, 3, 4):  # photos or channels?
            found = rearrange(batch, "n h w -> n h w 1")
    elif batch.ndim == 4 and batch.shape[-1] not in _CHANNELS and batch.shape[1] in _CHANNELS:
        found = rearrange(batch, "n c h w -> n h w c")
    if found.ndim != 4 or found.shape[-1] not in _CHANNELS or 0 in found.shape[1:]:
        raise ValueError(
            f"An IMAGE has the shape {tuple(batch.shape)}, which can be read in more than one way or in none. Expected "
            "(photos, height, width, 3). Look at the node that makes it."
        )
    if found.shape[-1] < 3:  # grey
        found = torch.cat([repeat(found[..., 0], "n h w -> n h w 3"), found[..., 1:]], -1)
    return found


def _in_unit_range(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.float() / 255
    images = images.float()
    low, high = (bound.item() for bound in images.nan_to_num(0, 0, 0).aminmax()) if images.numel() else (0, 1)
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return images
    if low >= 0 and high <= 255 and torch.equal(images, images.round()):
        return images / 255
    raise ValueError(
        f"An IMAGE of the shape {tuple(images.shape)} holds numbers from {low:.4g} to {high:.4g}. Expected 0 to 1, or "
        "whole numbers from 0 to 255. Look at the node that makes it."
    )


def _flat(batch: Tensor) -> Tensor:
    """(masks, height, width)"""
    found = batch
    if batch.ndim == 2:
        found = rearrange(batch, "h w -> 1 h w")
    elif batch.ndim == 3 and batch.shape[-1] == 1:
        found = rearrange(batch, "h w 1 -> 1 h w")
    elif batch.ndim == 4 and batch.shape[1] == 1:
        found = rearrange(batch, "n 1 h w -> n h w")
    elif batch.ndim == 4 and (batch.shape[-1] == 1 or (batch.shape[-1] == 3 and (batch == batch[..., :1]).all())):
        found = batch[..., 0]
    if found.ndim != 3 or 0 in found.shape[1:]:
        raise ValueError(
            f"A MASK has the shape {tuple(batch.shape)}. Expected (masks, height, width). Look at the node that makes "
            "it, or put Convert Image to Mask behind it."
        )
    found = found.float()
    known = found.nan_to_num(0, 0, 0)
    if known.numel() and known.min() < -_OVERSHOOT:
        raise ValueError(
            f"A MASK of the shape {tuple(batch.shape)} holds numbers from {known.min():.4g} to {known.max():.4g}. "
            "Expected 0 to 1, white where the subject is. Look at the node that makes it."
        )
    return found / known.amax((1, 2), keepdim=True).clamp(min=1)
