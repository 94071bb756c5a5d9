"""A learned concept as a value: what it looks like, where it goes, and for which model."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OFFSET = "offset"
BASE_MODELS = {192: "demo", 768: "sd1", 1024: "sd2", 2048: "sdxl"}  # by width of the text encoding
_FORBIDDEN_IN_TRIGGER = r"[\s()\[\]{}:,\\\"]"
# of prompts: LoRAs and embeddings by name, weights, and "'s" at the end
_SYNTAX = r"(?i)<[^<>]*:[^<>]*>|\bembedding:\S+|:\s*[+-]?[\d.]+\s*(?=[)\]}>|]|$)|['\u2019]s\W*$"
# invisible, but of no category that says so
_BLANK = "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept taught to a text-to-image model (Tewel et al. 2023).

    d is the width of the text encoding that cross-attention receives, d_out that of one layer's projections.

    token_embeddings: per text encoder, as ComfyUI names their tokens (l, g, h), the input embedding of the trigger. Or,
    as OFFSET alone, what is added to the encoding of the superclass word that is read in the trigger's place.
    target_input: i*, (d,), the encoding of the trigger.
    target_dual: C^-1 i*, (d,), which is all that the gate and the projection need of the covariance C.
    superclass_input: s, (d,), the encoding of the superclass word; keys are locked to W_K s.
    value_deltas: per layer, (d_out,), what the value output has beyond W_V s.
    key_outputs: per layer, (d_out,), free key outputs in place of W_K s; only imported concepts have them.
    key_freedom: how far keys are the trigger's own, in 0..1: 0 locks them to W_K s, as in the paper.
    """

    name: str
    trigger: str
    superclass: str
    base_model: str
    token_embeddings: Mapping[str, Tensor]
    target_input: Tensor
    target_dual: Tensor
    superclass_input: Tensor
    value_deltas: Mapping[str, Tensor]
    key_outputs: Mapping[str, Tensor] | None = None
    key_freedom: float = 0.0
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Words are kept in one of Unicode's forms, NFC, in which the same letters are the same characters."""
        for name in ("name", "trigger", "superclass"):
            object.__setattr__(self, name, unicodedata.normalize("NFC", getattr(self, name)))

    @property
    def dim(self) -> int:
        """d, the width of the text encoding."""
        return self.target_input.shape[0]

    @property
    def has_offset(self) -> bool:
        """Whether it is read as its superclass word, with an offset added, in place of an embedding of its own."""
        return OFFSET in self.token_embeddings

    def similarity(self, encoding: Tensor) -> Tensor:
        """e C^-1 i* / i* C^-1 i*, (..., d) -> (...): where encodings stand on the scale of the gate, i* at 1."""
        dual = self.target_dual.double()
        return encoding.double() @ dual / (self.target_input.double() @ dual)

    @property
    def superclass_similarity(self) -> float:
        """Where the superclass word stands on the scale of the gate."""
        return self.similarity(self.superclass_input).item()

    def replace(self, **changes: Any) -> Concept:
        return dataclasses.replace(self, **changes)

    def problem(self) -> str | None:
        """What makes this concept unusable, in words for its owner; None when it is sound."""
        if problem := trigger_problem(self.trigger):
            return problem
        if not self.superclass.strip():
            return "it has no superclass; a concept needs the plain word it is a kind of"
        if not self.token_embeddings:
            return "it has no token embedding"
        if self.has_offset and len(self.token_embeddings) > 1:
            return "it has an offset and token embeddings, of which only one can be"
        if not self.value_deltas:
            return "it has no value outputs for any layer"
        if self.key_outputs is not None and self.key_outputs.keys() != self.value_deltas.keys():
            return "its key outputs and value outputs are not for the same layers"
        if not 0 <= self.key_freedom <= 1:
            return f"its key freedom is {self.key_freedom}, expected a number from 0 to 1"
        for label, tensor in self.tensors().items():
            if tensor.ndim != 1 or tensor.numel() == 0:
                return f"{label} has shape {tuple(tensor.shape)}, expected one vector"
            if not tensor.is_floating_point():
                return f"{label} is {tensor.dtype}, expected floating point numbers"
            if not torch.isfinite(tensor).all():
                return f"{label} holds NaN or infinity: the training has diverged or the file is damaged"
        for label, tensor in {"target_dual": self.target_dual, "superclass_input": self.superclass_input}.items():
            if tensor.shape != self.target_input.shape:
                return f"{label} has {tensor.numel()} numbers, target_input has {self.dim}"
        if self.target_input.double() @ self.target_dual.double() <= 0:
            return "its target input and dual do not belong together (i* C^-1 i* must be positive)"
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the concept under the name it has in a concept file."""
        named = {f"token_embedding.{encoder}": tensor for encoder, tensor in self.token_embeddings.items()}
        named |= {
            "target_input": self.target_input,
            "target_dual": self.target_dual,
            "superclass_input": self.superclass_input,
        }
        named |= {f"value_delta.{layer}": tensor for layer, tensor in self.value_deltas.items()}
        named |= {f"key_output.{layer}": tensor for layer, tensor in (self.key_outputs or {}).items()}
        return named


def plain_words(superclass: str) -> str:
    """A superclass in plain words, in form NFC: without the punctuation and syntax of prompts. "(red dog:1.2)." is
    "red dog". Empty when it holds no word."""
    text = re.sub(_SYNTAX, " ", unicodedata.normalize("NFC", superclass))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # invisible
    # letters, with their marks, and numbers; hyphens and apostrophes where they are part of a word
    kept = "".join(c if c in "-'\u2019" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for part in kept.split() if (word := part.strip("-'\u2019")))


def trigger_problem(trigger: str) -> str | None:
    """Why ``trigger`` cannot stand in a prompt; None when it can."""
    if not trigger:
        return "the trigger is empty; use one such as <my-teddy>"
    if found := re.search(_FORBIDDEN_IN_TRIGGER, trigger):
        shown = "a space" if found.group().isspace() else found.group()
        return f"the trigger {trigger!r} contains {shown}, which prompts use for themselves; use one such as <my-teddy>"
    for character in trigger:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs") or re.match(_BLANK, character):
            return (
                f"the trigger {trigger!r} contains an invisible character (U+{ord(character):04X}), which nobody would "
                "type in a prompt; type it anew, such as <my-teddy>"
            )
    return None
