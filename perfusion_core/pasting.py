"""More pictures of a subject: cut out by its mask and pasted onto others (copy-paste, Ghiasi et al. 2021).

From few photos a concept also learns where in them its subject stands, and is lost where it comes second in a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import pack, rearrange
from torch import Tensor

_SEEN = 0.02  # of a mask; less is not the subject


def paste_subject(
    photo: Tensor,
    mask: Tensor,
    background: Tensor,
    generator: torch.Generator,
    scales: tuple[float, float] = (0.85, 1.15),
) -> tuple[Tensor, Tensor]:
    """The subject of a photo somewhere on a background: picture (height, width, 3) and mask (height, width) in 0..1.

    photo: (height, width, 3); mask: (height, width), white where the subject is; background: of any size, a part of it
    fills the picture. scales: how large the subject becomes, from the least to the most, 1 being as it is; it stays
    whole. Raises ValueError for a mask without a subject, or with nothing else.
    """
    size, seen = photo.shape[:2], mask > _SEEN
    if not seen.any() or seen.all():
        raise ValueError("The mask covers the whole photo." if seen.any() else "The mask is empty.")
    box = tuple(slice(int(held[0]), int(held[-1]) + 1) for held in (seen.any(d).nonzero()[:, 0] for d in (1, 0)))
    subject, _ = pack([photo[box], mask[box]], "h w *")
    subject = rearrange(subject, "h w c -> c h w")
    scale = torch.empty(()).uniform_(*scales, generator=generator).item()
    scale = min(scale, *(room / side for room, side in zip(size, subject.shape[1:], strict=True)))
    subject = _resized(subject, scale)
    *colours, alpha = subject
    picture, where = _filled(rearrange(background, "h w c -> c h w"), size, generator), torch.zeros(size).to(mask)
    rows, columns = _place(size, alpha.shape, generator)
    picture[:, rows, columns] = torch.lerp(picture[:, rows, columns], torch.stack(colours), alpha)
    where[rows, columns] = alpha
    return rearrange(picture, "c h w -> h w c"), where


def _filled(picture: Tensor, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """A part of a picture (channels, height, width), scaled so that it fills ``size``."""
    picture = _resized(picture, max(room / side for room, side in zip(size, picture.shape[1:], strict=True)), size)
    rows, columns = _place(picture.shape[1:], size, generator)
    return picture[:, rows, columns].clone()


def _resized(picture: Tensor, scale: float, least: Sequence[int] = (1, 1)) -> Tensor:
    size = [max(round(side * scale), low) for side, low in zip(picture.shape[1:], least, strict=True)]
    return F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _place(room: Sequence[int], size: Sequence[int], generator: torch.Generator) -> list[slice]:
    """Where something of a size goes in a room at least as large, by chance."""
    spare = [wide - side for wide, side in zip(room, size, strict=True)]
    starts = [int(torch.randint(more + 1, (), generator=generator)) for more in spare]
    return [slice(start, start + side) for start, side in zip(starts, size, strict=True)]
