"""Keeps the concepts of one picture apart: where the picture shows one, the looks of the others do not act.

A spot of the second subject also looks at the first one's word, and gets its look. How much every spot looks at each
concept's word is known in every evaluation of the model (see regions.py). Ahead of the next one each spot is given to
the concept that it looks at most, counted by what is usual for that concept in this picture: one that is looked at from
everywhere gets no more than its part. There the values of the others do not act.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

APART = "perfusion_apart"  # the settings among what is attached to a MODEL
_PRESENT = 0.25  # how open a concept's gate is at least on some word of a prompt that names it
_SUBJECT = 0.3  # of the strongest look, above which a spot of a concept's part is its subject
_MANY_RUNS = 4  # whose regions are kept


class Found(NamedTuple):
    """LATENT samples, and where each trigger's concept is, (concepts, pictures, frames, height, width) in 0..1."""

    samples: Tensor
    triggers: Sequence[str]
    regions: Tensor


@dataclass(frozen=True)
class KeepApart:
    """strength: how much of the others' looks is kept out, 0..1; until end_percent, 0..1, of the schedule."""

    strength: float = 1.0
    end_percent: float = 1.0
    runs: deque[Found] = field(default_factory=lambda: deque(maxlen=_MANY_RUNS), compare=False, repr=False)

    def remember(self, samples: Tensor, triggers: Sequence[str], finder: Finder) -> None:
        """A sampling run has ended with these samples."""
        if (regions := finder.found()) is not None:
            self.runs.append(Found(samples.to("cpu", copy=True), triggers, regions))

    def found_in(self, samples: Tensor) -> Found | None:
        """What was found in the run that gave these samples; None when that is not known."""
        for found in reversed(self.runs):
            if found.samples.shape == samples.shape and torch.equal(found.samples.to(samples), samples):
                return found
        return None


class Finder:
    """Where the concepts are in the pictures of one sampling run."""

    def __init__(self, whole: Sequence[int], given: Sequence[Tensor | None]):
        """whole: spatial sizes of the latents. given: each concept's region (pictures, frames, height, width), or None
        where that is to be found."""
        self._whole, self._given = in_three(whole), given
        self._sigma: float | None = None
        self._looks: Tensor | None = None  # (pictures, concepts, *whole), summed over the layers at this sigma
        self._before: Tensor | None = None  # those of the sigma before

    def begin(self, sigma: float) -> None:
        """An evaluation of the model begins. Several at one sigma count as one, since the host may divide a batch."""
        if sigma != self._sigma:
            self._sigma, self._before, self._looks = sigma, self._looks, None

    def add(self, looks: Tensor, gates: Tensor, area: Sequence[int] | None) -> None:
        """How much a layer's spots look at each concept: (pictures, concepts, frames, height, width) of the whole
        picture or of an area. gates: (pictures, tokens, concepts) of the prompt."""
        looks = looks * (gates.amax(1) > _PRESENT)[..., None, None, None]
        if self._looks is None:
            self._looks = looks.new_zeros(*looks.shape[:2], *self._whole)
        part = self._looks[within(area)]
        part += F.interpolate(looks, part.shape[2:], mode="trilinear")

    def masks(self, strength: float) -> list[Tensor | None]:
        """For each concept (pictures, frames, height, width) in 0..1, how far it acts; None for everywhere."""
        if self._before is None:
            return list(self._given)
        regions = self._regions(self._before)
        allowed = 1 - strength * (regions.sum(1, keepdim=True) - regions).clamp(0, 1)
        return [other if mask is None else mask for mask, other in zip(self._given, allowed.unbind(1), strict=True)]

    def found(self) -> Tensor | None:
        """Where the concepts' subjects are, as in ``Found``; None before anything was seen."""
        looks = self._before if self._looks is None else self._looks
        return None if looks is None else self._regions(looks, _SUBJECT).transpose(0, 1).cpu()

    def _regions(self, looks: Tensor, least: float = 0.0) -> Tensor:
        """(pictures, concepts, *whole), 1 where a concept is and is looked at more than ``least`` of the most. One that
        the prompt does not name is nowhere."""
        most = looks.amax((2, 3, 4), keepdim=True)
        free = torch.tensor([mask is None for mask in self._given], device=looks.device)[:, None, None, None]
        relative = (looks / looks.mean((2, 3, 4), keepdim=True)).nan_to_num(0.0) * free
        regions = torch.zeros_like(looks).scatter_(1, relative.argmax(1, keepdim=True), 1.0) * (looks > least * most)
        taken = torch.zeros_like(regions[:, :1])
        for index, mask in enumerate(self._given):
            if mask is not None:
                mask = F.interpolate(mask[:, None].to(looks), self._whole, mode="area")[:, 0]
                regions[:, index] = comfy.utils.repeat_to_batch_size(mask, len(looks)) * (most[:, index] > 0)
                taken = taken.maximum(regions[:, index, None])
        return regions * torch.where(free, 1 - taken, 1.0)


def in_three(sizes: Sequence[int]) -> tuple[int, ...]:
    """Frames, height and width of latents, of which pictures have one frame."""
    return (1,) * (3 - len(sizes)) + tuple(sizes)


def within(area: Sequence[int] | None) -> tuple[Any, ...]:
    """What takes an area of the host's, sizes and then starts, out of whole latents' frames, height and width."""
    area = area or ()
    sizes, starts = area[: len(area) // 2], area[len(area) // 2 :]
    return (..., *(slice(start, start + size) for size, start in zip(sizes, starts, strict=True)))
