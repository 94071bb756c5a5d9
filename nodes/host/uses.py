"""Concepts in use: what travels between the nodes and onto a patched model and text encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...perfusion_core import Concept, ConceptSet
from ...perfusion_core.edit import BETA, TEMPERATURE

KEY = "perfusion"  # under which everything of ours is kept on the host's objects


EASINGS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "slow start": lambda x: x * x,
    "slow end": lambda x: 1 - (1 - x) * (1 - x),
    "smooth": lambda x: x * x * (3 - 2 * x),
}
STAGES = {"input_blocks": "down", "middle_block": "middle", "output_blocks": "up"}  # of the UNet: ConceptUse's weight


def stages(layers: Iterable[str]) -> dict[str, str]:
    """{layer: "down", "middle" or "up"}: the UNet's stages; of blocks in a row their first, second and last third."""
    layers, names = list(layers), [*STAGES.values()]
    unet = [STAGES.get(layer.partition(".")[0]) for layer in layers]
    if all(unet):
        return dict(zip(layers, unet, strict=True))
    # Flux has two kinds of blocks, one after the other in the order of their names
    order = sorted(layers, key=lambda layer: (layer.partition(".")[0], *map(int, re.findall(r"\d+", layer))))
    return {layer: names[3 * order.index(layer) // len(order)] for layer in layers}


@dataclass(frozen=True)
class ConceptUse:
    """A concept with the settings of one use; key_lock goes from 0, the paper's local lock, to 1, its global one.

    Percents are of the sampling's schedule, 0 to 1, as in the host's nodes; outside of them the use does nothing. From
    one to the other beta and temperature go to their ends, if these are set. down, middle and up are what the strength
    is multiplied by in the UNet's stages. mask: (pictures, height, width) in 0..1, how much of the concept's look a
    spot gets; without one it acts everywhere. Raises ValueError when the end is not after the start.
    """

    concept: Concept
    beta: float = BETA
    temperature: float = TEMPERATURE
    strength: float = 1.0
    key_lock: float = 0.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    down: float = 1.0
    middle: float = 1.0
    up: float = 1.0
    beta_end: float | None = None
    temperature_end: float | None = None
    easing: str = "linear"
    mask: Tensor | None = field(default=None, compare=False, repr=False)
    training: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)  # to train on from here
    file: str | None = field(default=None, compare=False)  # which the concept is from, as in the Loader's list
    course: str | None = field(default=None, compare=False)  # the key of the training it is from, see trainings.py

    def __post_init__(self) -> None:
        if not self.start_percent < self.end_percent:
            raise ValueError(
                f"The use of {self.concept.name!r} ends at {self.end_percent:g} before it starts at "
                f"{self.start_percent:g}: set end_percent above start_percent."
            )

    def replace(self, **changes: Any) -> ConceptUse:
        return replace(self, **changes)

    @property
    def scheduled(self) -> bool:
        """Whether it changes while sampling."""
        return (self.start_percent, self.end_percent, self.beta_end, self.temperature_end) != (0, 1, None, None)

    @property
    def moving(self) -> bool:
        """Whether every step has settings of its own."""
        return (self.beta_end, self.temperature_end) != (None, None)

    def at(self, percent: float, stage: str) -> ConceptUse:
        """Its beta, temperature and strength at a percent of the schedule in a stage ("down", "middle" or "up")."""
        on = self.start_percent <= percent <= self.end_percent
        way = (percent - self.start_percent) / (self.end_percent - self.start_percent)
        way = EASINGS[self.easing](min(max(way, 0.0), 1.0))
        beta_end = self.beta if self.beta_end is None else self.beta_end
        temperature_end = self.temperature if self.temperature_end is None else self.temperature_end
        return ConceptUse(
            self.concept,
            self.beta + way * (beta_end - self.beta),
            self.temperature + way * (temperature_end - self.temperature),
            self.strength * getattr(self, stage) * on,
        )


def combine(earlier: Iterable[ConceptUse], later: Iterable[ConceptUse]) -> tuple[ConceptUse, ...]:
    """All uses that do anything; of two with the same trigger the later one counts."""
    by_trigger = {use.concept.trigger.lower(): use for use in (*earlier, *later)}
    return tuple(use for use in by_trigger.values() if use.strength != 0)


def clashes(uses: Iterable[ConceptUse]) -> list[str]:
    """What to say of concepts that do nothing since a later one has the same trigger."""
    said: list[str] = []
    by_trigger: dict[str, ConceptUse] = {}
    for use in uses:
        trigger = use.concept.trigger
        earlier = by_trigger.get(trigger.lower())
        by_trigger[trigger.lower()] = use
        if earlier and earlier.strength and use.strength:
            if earlier.concept.name == use.concept.name:
                said.append(f"{use.concept.name} is here twice: only the later settings count.")
            else:
                said.append(
                    f"{earlier.concept.name} and {use.concept.name} have the same trigger, {trigger}: only "
                    f"{use.concept.name} acts. Give one of them another trigger."
                )
    return said


def concept_set(
    uses: Sequence[ConceptUse], joint: bool = True, zero_padded: bool = False, placed: Sequence[bool] = ()
) -> ConceptSet:
    return ConceptSet(
        [use.concept for use in uses],
        betas=[use.beta for use in uses],
        temperatures=[use.temperature for use in uses],
        strengths=[use.strength for use in uses],
        joint=joint,
        zero_padded=zero_padded,
        placed=placed,
    )
