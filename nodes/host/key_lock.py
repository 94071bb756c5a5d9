"""What keys see in the place of each conditioning's encoding, on its way through the host into a forward's batch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

from .families import Family
from .uses import KEY

ENCODING, KEYS = "perfusion_encoding", "perfusion_keys"  # in a conditioning's dict, see text.py


class KeyLock(comfy.conds.CONDRegular):
    """Carries an encoding beside what the key path sees in its place: (batch, tokens, 2 d), or None for no lock.

    Every conditioning carries one, or the host would not put those with and without into one batch. What the layers
    receive of the two is made once in a sampling run.
    """

    def __init__(
        self, cond: Tensor | None, conditioning: Mapping[str, Any] = {}, rows: int = 1, received: list | None = None
    ):
        super().__init__(cond)
        self.rows = rows  # that the conditioning has in the batch
        self.area: Sequence[int] | None = None  # its sizes and its starts along the latents' dimensions
        self._conditioning, self._received = conditioning, [] if received is None else received

    def _copy_with(self, cond):
        return KeyLock(cond, self._conditioning, self.rows)

    def process_cond(self, batch_size, area=None, **kwargs):
        lock = KeyLock(self.cond, self._conditioning, batch_size, self._received)
        lock.area = area
        return lock

    def can_concat(self, other) -> bool:
        return isinstance(other, KeyLock)

    def concat(self, others) -> list[KeyLock]:
        return [self, *others]  # in the order of their rows in the batch

    def size(self) -> list[int]:
        return [1]

    @property
    def identity(self) -> tuple[int, int]:
        """The same for one conditioning in all forwards of a sampling run."""
        return id(self._received), self.rows

    def receive(self, family: Family, diffusion_model: torch.nn.Module, context: Tensor) -> None:
        """Makes, where that is not done, what the layers get of both encodings: of the context's kind."""
        if self.cond is None or (self._received and self._received[0].dtype == context.dtype):
            return
        both = self.cond.to(context).chunk(2, dim=-1)
        received = [family.received(diffusion_model, encoding, self._conditioning) for encoding in both]
        self._received[:] = [torch.cat(received, dim=-1)]

    def encoding_and_keys(self, context: Tensor, step: int = 1) -> tuple[Tensor, Tensor] | None:
        """Each (batch, tokens, d), of the context's kind and length: the host pads by repetition. None when lengths do
        not fit. step: of every second token, for one."""
        both = self._received[0][:, ::step].to(context)
        times, rest = divmod(context.shape[1], both.shape[1])
        return None if rest else both.repeat(1, times, 1).chunk(2, dim=-1)


def with_key_lock(cond: dict) -> dict:
    encoding = cond.get("cross_attn")
    if encoding is None:
        return cond
    keys = _locked_keys(cond, encoding)
    encoding = encoding.as_subclass(Tensor)  # the keys have arrived
    cond = {**cond, "cross_attn": encoding}
    lock = KeyLock(None if keys is None else torch.cat([encoding, keys], dim=-1), cond)
    return {**cond, "model_conds": {**cond.get("model_conds", {}), KEY: lock}}


def _locked_keys(cond: dict, encoding: Tensor) -> Tensor | None:
    local, keys = cond.get(ENCODING), cond.get(KEYS)
    if local is None or keys is None:
        return getattr(encoding, KEY, None)
    tokens = local.shape[1]
    if encoding.shape[1] < tokens or not torch.equal(encoding[:, :tokens], local.expand_as(encoding[:, :tokens])):
        logging.warning(
            "Perfusion: a conditioning was changed after it was encoded (averaged, zeroed); its key lock is local."
        )
        return None
    return torch.cat([keys.expand_as(encoding[:, :tokens]), encoding[:, tokens:]], dim=1)  # ConditioningConcat appends


def key_context(context: Tensor, locks: list[KeyLock]) -> Tensor:
    """What keys see, (batch, tokens, d): the context, with the rows of locked conditionings replaced."""
    if sum(lock.rows for lock in locks) != len(context):  # another node has made a batch of its own
        return found_keys(context, locks)
    chunks = list(context.split([lock.rows for lock in locks]))
    for i, lock in enumerate(locks):
        if lock.cond is not None:
            chunks[i] = comfy.utils.repeat_to_batch_size(lock.encoding_and_keys(context)[1], lock.rows)
    return torch.cat(chunks)


def found_keys(context: Tensor, locks: list[KeyLock]) -> Tensor:
    """The same for rows in any order and number: each that is a locked conditioning's encoding is replaced.

    Or its every second token: NegPip lays tokens for keys and for values in turn, and takes them apart for attention.
    """
    found = context
    for lock, step in itertools.product(locks, (1, 2)):
        if lock.cond is not None and (fitting := lock.encoding_and_keys(context, step)):
            encoding, keys = fitting
            same = (context[:, None] == encoding).flatten(2).all(-1)  # (batch, lock's batch)
            found = torch.where(same.any(1)[:, None, None], keys[same.int().argmax(1)], found)
    return found
