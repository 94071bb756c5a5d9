"""The concepts of a patched MODEL as they are at each time of the sampling schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...perfusion_core import ConceptSet
from .uses import STAGES, ConceptUse, concept_set

MANY_SETS = 128  # that are kept


class ConceptSets:
    """Those of the uses, by stage; the same set for the same settings."""

    def __init__(self, uses: Sequence[ConceptUse], joint: bool, zero_padded: bool):
        self._uses, self._joint, self._zero_padded = uses, joint, zero_padded
        self.scheduled = any(use.scheduled for use in uses)
        self._sets: dict[tuple, ConceptSet] = {}
        self._always: dict[bool, dict[str, ConceptSet]] = {}  # where nothing changes while sampling

    def at(self, percent: float, apart: bool = False) -> dict[str, ConceptSet]:
        """{stage: those in use there at a percent of the schedule}. apart: whether all of them act in a part of the
        picture only."""
        if self.scheduled:
            return {stage: self._set(percent, stage, apart) for stage in STAGES.values()}
        if apart not in self._always:
            self._always[apart] = {stage: self._set(0.0, stage, apart) for stage in STAGES.values()}
        return self._always[apart]

    def _set(self, percent: float, stage: str, apart: bool) -> ConceptSet:
        uses = [use.at(percent, stage) for use in self._uses]
        settings = apart, *((use.beta, use.temperature, use.strength) for use in uses)
        if settings not in self._sets:
            if len(self._sets) == MANY_SETS:  # some samplers never come to the same sigma again
                self._sets.clear()
            placed = [apart or use.mask is not None for use in self._uses]
            self._sets[settings] = concept_set(uses, self._joint, self._zero_padded, placed)
        return self._sets[settings]


def percent_of(model: torch.nn.Module, sigma: float) -> float:
    """How far the schedule is at a sigma, 0 to 1: the inverse of the host's percent_to_sigma, which falls."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if model.model_sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return (low + high) / 2
