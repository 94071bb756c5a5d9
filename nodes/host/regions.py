"""Where in the picture a masked concept acts: its look joins what attention gives inside its mask.

Attention is linear in V, so what a concept adds to it is one number for each head and spot, how much the spot looks at
the concept's tokens, times its value output. V goes without that output; q and k are read where the projections return
them, and the product is added ahead of to_out, times the mask. Whatever computes attention in between is left alone.
How much a spot looks at a concept also says where the concept is (see apart.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from comfy.utils import repeat_to_batch_size
from einops import einsum, rearrange
from torch import Tensor

from ...perfusion_core import EditedEncoding
from .apart import Finder, in_three, within
from .key_lock import KeyLock

_AT_ONCE = 2**25  # attention scores
POSITIVE = 0  # in the host's cond_or_uncond


@dataclass
class Heard:
    """What the projections of one layer gave or received in this forward."""

    queries: Tensor | None = None
    keys: Tensor | None = None
    edited: EditedEncoding | None = None


@dataclass
class Regions:
    """The masks of the concepts in one forward, (pictures, frames, height, width) each or None for one that acts
    everywhere; frames may be 1 for all."""

    masks: Sequence[Tensor | None]
    latent: Sequence[int]  # spatial sizes of this forward's latents: height and width, or frames ahead of them
    whole: Sequence[int]  # of the picture that is sampled, of which an area's forward has a part
    locks: Sequence[KeyLock]
    batch: int
    words: Tensor | None = None  # (batch, tokens), 0 where attention leaves padding out
    kinds: Sequence[int] = ()  # the host's cond_or_uncond
    finder: Finder | None = None  # which is told where the concepts are looked at
    heard: dict[str, Heard] = field(default_factory=dict)
    _spots: dict[int, Tensor] = field(default_factory=dict)

    def added(self, layer: str, attention, model: torch.nn.Module) -> Tensor:
        """What masked concepts add to attention's result in a layer, (batch, spots, heads d)."""
        heard = self.heard.pop(layer)
        placed = [index for index, found in enumerate(heard.edited.concepts.placed) if found]
        outputs = heard.edited.concepts.value_outputs(layer, heard.queries)[placed]
        outputs = rearrange(outputs, "concept (heads d) -> concept heads d", heads=attention.heads)
        gates = heard.edited.gates[..., placed].to(outputs.dtype)
        step = max(1, _AT_ONCE // (attention.heads * heard.keys.shape[:2].numel()))
        shares = torch.cat([
            einsum(attention.looks(model, part, heard.keys, self.words).to(gates.dtype), gates,
                   "batch heads spot token, batch token concept -> batch heads spot concept")
            for part in heard.queries.split(step, dim=1)
        ], dim=2)  # fmt: skip
        if self.finder is not None:
            self._find(self.finder, shares, gates)
        where = self._where(shares.shape[2], shares)[..., placed]
        found = einsum(shares, where, outputs, "b heads spot c, b spot c, c heads d -> b spot heads d")
        return rearrange(found, "batch spot heads d -> batch spot (heads d)")

    def _find(self, finder: Finder, shares: Tensor, gates: Tensor) -> None:
        """Tells the finder, where it is known which part of which picture a row is: tiles and batches of other nodes
        are not told from each other."""
        rows = self._rows
        in_parts = tuple(self.latent) != tuple(self.whole) and any(area is None for _, area in rows)
        if len(rows) != len(self.kinds) or in_parts:
            return
        (height, _), frames = grid(self.latent, shares.shape[2])
        looks = rearrange(shares.mean(1), "batch (frames h w) c -> batch c frames h w", frames=frames, h=height)
        counts = [count for count, _ in rows]
        for kind, (_, area), part, open_ in zip(
            self.kinds, rows, looks.split(counts), gates.split(counts), strict=True
        ):
            if kind == POSITIVE:
                finder.add(part, open_, area)

    @property
    def _rows(self) -> list[tuple[int, Sequence[int] | None]]:
        """How many rows of the batch each conditioning has, and its area."""
        rows = [(lock.rows, lock.area) for lock in self.locks]
        return rows if sum(count for count, _ in rows) == self.batch else [(self.batch, None)]

    def _where(self, spots: int, like: Tensor) -> Tensor:
        """(batch, spots, concepts) in 0..1 for a layer with so many spots, where a tensor like this is."""
        if spots not in self._spots:
            size, frames = grid(self.latent, spots)
            self._spots[spots] = torch.stack([
                like.new_ones(self.batch, spots) if mask is None else
                torch.cat([repeat_to_batch_size(self._part(mask, area, (frames, *size)), count).flatten(1)
                           for count, area in self._rows]).to(like)
                for mask in self.masks
            ], dim=-1)  # fmt: skip
        return self._spots[spots]

    def _part(self, mask: Tensor, area: Sequence[int] | None, size: Sequence[int]) -> Tensor:
        """A mask as an area's layers see it, (pictures, *size)."""
        mask = mask[:, None]
        if area is not None:
            mask = F.interpolate(mask, in_three(self.whole), mode="area")[within(area)]
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
