"""Concepts in models of joint attention, where text and picture are one sequence: by the values of the text's rows.

Their word is read as its superclass, with an offset added, so its keys are nearly the superclass's. A wrapper around
every forward computes the gates, of what the text encoder gave; then object patches of the projections that give values
add t g δ to the text's rows. Queries, keys and the picture's rows stay as they are.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...perfusion_core import ConceptSet, Values
from .adapter import network_dtype
from .families import Family, family_of
from .schedule import ConceptSets, percent_of
from .uses import ConceptUse

PREFIX = "diffusion_model."


def value_layers(model) -> dict[str, Values]:
    """{layer, as in concept files: where its values are} of a MODEL of joint attention. Raises ValueError when there
    are none."""
    family, found = family_of(model), {}
    for name, module in model.model.named_modules():
        for pattern, columns in family.joint.values.items():
            if match := re.fullmatch(PREFIX.replace(".", r"\.") + pattern, name):
                found[match.group(1)] = Values(name, *columns(module))
    if not found:
        raise ValueError(
            f"This model has none of {family.title}'s layers: a node pack has put a network of its own there. Load it "
            "with ComfyUI's own loader."
        )
    return found


def check_possible(family: Family, uses: Sequence[ConceptUse]) -> None:
    """Raises ValueError for settings that need keys of the text's own, or attention to it alone."""
    for use in uses:
        if use.strength and use.key_lock:
            raise ValueError(
                f"key_lock is not for {family.title}: there words have no keys of their own that a concept could hold, "
                f"only values are changed. Set key_lock of {use.concept.trigger} to 0."
            )
        if use.strength and use.mask is not None:
            raise ValueError(refusal(family, "A mask for a concept"))


def refusal(family: Family, what: str) -> str:
    """That something is not for a family of joint attention, with the reason."""
    return (
        f"{what} is not for {family.title}: there text and picture share one attention, in which Perfusion does not "
        "see how much a spot looks at a word."
    )


class JointRuntime:
    """What one patched MODEL of joint attention does while it samples."""

    def __init__(self, model, uses: Sequence[ConceptUse], joint: bool):
        self._family = family_of(model)
        self._sets = ConceptSets(uses, joint, self._family.zero_padded)
        self._own_model = weakref.ref(model.model)  # only for calls from outside sampling
        self._running = threading.local()

    def apply_model(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs  # noqa: B006
    ):  # fmt: skip
        if c_crossattn is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if self._family.joint.moved_by_references and kwargs.get("ref_latents"):
            raise ValueError(
                f"Concepts do not work beside reference pictures in {self._family.title}, which stand ahead of the "
                "text. Take the pictures or the concept away."
            )
        model = executor.class_obj
        context = comfy.model_management.cast_to_device(c_crossattn, x.device, network_dtype(model))
        percent = percent_of(model, t.max().item()) if self._sets.scheduled else 0.0
        before = getattr(self._running, "forward", None)
        self._running.forward = _Forward(model, self._family, context, self._sets.at(percent))
        try:
            return executor(x, t, c_concat, context, control, transformer_options, **kwargs)
        finally:
            self._running.forward = before

    def forward(self, layer: str, stage: str, values: Values, foreign: Callable | None) -> Callable:
        """The forward of a projection that gives values; ``foreign`` is another node's patch, which then projects."""

        @torch.compiler.disable
        def forward(x: Tensor) -> Tensor:
            now = getattr(self._running, "forward", None)
            module = comfy.utils.get_attr(self._own_model() if now is None else now.model, values.projection)
            output = foreign(x) if foreign is not None else type(module).forward(module, x)
            if now is not None:
                now.add(output, layer, stage, values)
            return output

        forward.perfusion_foreign = foreign
        return forward


class _Forward:
    """What the layers of one forward share: how open the gates are on the text's rows."""

    def __init__(self, model: torch.nn.Module, family: Family, context: Tensor, concepts: Mapping[str, ConceptSet]):
        self.model, self._family, self._context, self._concepts = model, family, context, concepts
        self._gates: dict[ConceptSet, Tensor] = {}

    def add(self, output: Tensor, layer: str, stage: str, values: Values) -> None:
        concepts = self._concepts[stage]
        if concepts not in self._gates:
            self._gates[concepts] = concepts.gates(self._context, self._words)
        concepts.add_to_values(output, self._gates[concepts], layer, values.start, values.width)

    @cached_property
    def _words(self) -> Tensor | None:
        return self._family.joint.words(self._context)
