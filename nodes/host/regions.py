"""Where in the picture a masked concept acts: its look joins what attention gives inside its mask.

Attention is linear in V, so what a concept adds to it is one number for each head and spot, how much the spot looks at
the concept's tokens, times its value output. V goes without that output; q and k are read where the projections return
them, and the product is added ahead of to_out, times the mask. Whatever computes attention in between is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import comfy.utils
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor

from ...perfusion_core import EditedEncoding
from .key_lock import KeyLock

_AT_ONCE = 2**25  # attention scores


@dataclass
class Heard:
    """What the projections of one layer gave or received in this forward."""

    queries: Tensor | None = None
    keys: Tensor | None = None
    edited: EditedEncoding | None = None


@dataclass
class Regions:
    """The masks of the concepts in one forward, (pictures, height, width) each or None for one that acts everywhere."""

    masks: Sequence[Tensor | None]
    latent: Sequence[int]  # spatial sizes of this forward's latents: height and width, or frames ahead of them
    whole: Sequence[int]  # of the picture that is sampled, of which an area's forward has a part
    locks: Sequence[KeyLock]
    batch: int
    words: Tensor | None = None  # (batch, tokens), 0 where attention leaves padding out
    heard: dict[str, Heard] = field(default_factory=dict)
    _spots: dict[int, Tensor] = field(default_factory=dict)

    def added(self, layer: str, attention, model: torch.nn.Module) -> Tensor:
        """What masked concepts add to attention's result in a layer, (batch, spots, heads d)."""
        heard = self.heard.pop(layer)
        placed = [index for index, mask in enumerate(self.masks) if mask is not None]
        outputs = heard.edited.concepts.value_outputs(layer, heard.queries)[placed]
        outputs = rearrange(outputs, "concept (heads d) -> concept heads d", heads=attention.heads)
        gates = heard.edited.gates[..., placed].to(outputs.dtype)
        step = max(1, _AT_ONCE // (attention.heads * heard.keys.shape[:2].numel()))
        shares = torch.cat([
            einsum(attention.looks(model, part, heard.keys, self.words).to(gates.dtype), gates,
                   "batch heads spot token, batch token concept -> batch heads spot concept")
            for part in heard.queries.split(step, dim=1)
        ], dim=2)  # fmt: skip
        where = self._where(shares.shape[2], shares)[..., placed]
        found = einsum(shares, where, outputs, "b heads spot c, b spot c, c heads d -> b spot heads d")
        return rearrange(found, "batch spot heads d -> batch spot (heads d)")

    def _where(self, spots: int, like: Tensor) -> Tensor:
        """(batch, spots, concepts) in 0..1 for a layer with so many spots, where a tensor like this is."""
        if spots not in self._spots:
            size, frames = grid(self.latent, spots)
            rows = [(lock.rows, lock.area) for lock in self.locks]
            if sum(count for count, _ in rows) != self.batch:  # another node has made a batch of its own
                rows = [(self.batch, None)]
            self._spots[spots] = torch.stack([
                torch.ones(self.batch, spots) if mask is None else
                torch.cat([repeat(comfy.utils.repeat_to_batch_size(self._part(mask, area, size), count),
                                  "batch h w -> batch (frames h w)", frames=frames) for count, area in rows])
                for mask in self.masks
            ], dim=-1).to(like)  # fmt: skip
        return self._spots[spots]

    def _part(self, mask: Tensor, area: Sequence[int] | None, size: tuple[int, int]) -> Tensor:
        """A mask as an area's layers see it, (pictures, *size)."""
        mask = mask[:, None]
        if area is not None:
            *_, height, width = area[: len(area) // 2]
            *_, top, left = area[len(area) // 2 :]
            mask = F.interpolate(mask, tuple(self.whole[-2:]), mode="area")
            mask = mask[..., top : top + height, left : left + width]
        return F.interpolate(mask, size, mode="area")[:, 0]


def grid(latent: Sequence[int], spots: int) -> tuple[tuple[int, int], int]:
    """(rows, columns) and frames of a layer with so many spots, in which latents of spatial sizes are halved, rounded
    up, as often as it takes. Raises ValueError when that fits nowhere."""
    *time, height, width = latent
    candidates = [(height, width)]
    while candidates[-1] != (1, 1):
        candidates.append(tuple(-(-side // 2) for side in candidates[-1]))
    for frames in (*time, 1):
        for rows, columns in candidates:
            if rows * columns * frames == spots:
                return (rows, columns), frames
    raise ValueError(
        f"A concept has a mask, and this model has a layer of {spots} spots, which are no rows and columns of latents "
        f"of {' x '.join(map(str, latent))}. A node that merges tokens does that: take it or the mask away."
    )
