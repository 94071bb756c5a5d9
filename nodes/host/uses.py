"""Concepts in use: what travels between the nodes and onto a patched model and text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...perfusion_core import Concept, ConceptSet
from ...perfusion_core.edit import BETA, TEMPERATURE

KEY = "perfusion"  # under which everything of ours is kept on the host's objects


@dataclass(frozen=True)
class ConceptUse:
    """A concept with the settings of one use; key_lock goes from 0, the paper's local lock, to 1, its global one."""

    concept: Concept
    beta: float = BETA
    temperature: float = TEMPERATURE
    strength: float = 1.0
    key_lock: float = 0.0
    training: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)  # to train on from here

    def replace(self, **changes: Any) -> ConceptUse:
        return replace(self, **changes)


def combine(earlier: Iterable[ConceptUse], later: Iterable[ConceptUse]) -> tuple[ConceptUse, ...]:
    """All uses that do anything; of two with the same trigger the later one counts."""
    by_trigger = {use.concept.trigger.lower(): use for use in (*earlier, *later)}
    return tuple(use for use in by_trigger.values() if use.strength != 0)


def concept_set(uses: Sequence[ConceptUse], joint: bool = True) -> ConceptSet:
    return ConceptSet(
        [use.concept for use in uses],
        betas=[use.beta for use in uses],
        temperatures=[use.temperature for use in uses],
        strengths=[use.strength for use in uses],
        joint=joint,
    )
