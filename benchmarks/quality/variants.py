"""Perfusion in other forms, for the ablations: no gate, trained keys, an offset for a word, no word of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.world.teach import TRIGGER, Model, Photos
from perfusion_core import Concept, ConceptSet, EncodedPrompts, Training
from perfusion_core.captions import TEMPLATES
from perfusion_core.concept import OFFSET


class UngatedSet(ConceptSet):
    """A plain rank-1 edit, as in ROME: the gate is the similarity itself."""

    def gates(self, encoding: Tensor, words: Tensor | None = None) -> Tensor:
        targets = torch.stack([concept.target_input for concept in self.concepts])
        duals = torch.stack([concept.target_dual for concept in self.concepts])
        return encoding.float() @ duals.T / (targets * duals).sum(-1)

    def edit_input(self, encoding: Tensor, keys: bool = False, words: Tensor | None = None) -> Tensor:
        moved = torch.stack([c.superclass_input - c.target_input for c in self.concepts])
        moved = moved * torch.tensor(self.strengths)[:, None]
        return (encoding + self.gates(encoding) @ moved).to(encoding.dtype)


class FreeKeyTraining(Training):
    """Trains the key outputs, too, from W_K s on, instead of locking them."""

    def __init__(self, trainee: Photos, *args: Any):
        super().__init__(trainee, *args)
        self.key_outputs = {
            layer: nn.Parameter(to_k.weight.float() @ self.superclass_input)
            for layer, (to_k, _) in trainee.wiring.projections.items()
        }
        rate = self.settings.learning_rate_values
        self._optimizer.add_param_group({"params": list(self.key_outputs.values()), "lr": rate})

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {**super()._parameters(), **{f"key_output.{name}": key for name, key in self.key_outputs.items()}}

    def _live_concept(self, target: Tensor) -> Concept:
        return super()._live_concept(target).replace(key_outputs=self.key_outputs)

    def concept(self) -> Concept:
        keys = {layer: key.detach().clone() for layer, key in self.key_outputs.items()}
        return super().concept().replace(key_outputs=keys)


class UngatedTraining(Training):
    def _concept_set(self, target: Tensor) -> ConceptSet:
        return UngatedSet([self._live_concept(target)])


class PlainWordTraining(Training):
    """Trains values alone: the trigger is read as its superclass, so its keys are the superclass's."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.token_embeddings = {name: e.detach() for name, e in self.token_embeddings.items()}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {f"value_delta.{layer}": delta for layer, delta in self.value_deltas.items()}


class OffsetPhotos(Photos):
    """Nothing is learned through the text encoder, as with the node's *encode once*."""

    def superclass_embeddings(self) -> dict[str, Tensor]:
        return {OFFSET: torch.zeros(self.model.text.table.embedding_dim)}

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        sentences = [TEMPLATES[template].replace("{}", TRIGGER) for template in templates]
        return EncodedPrompts(*with_offset(self.model, sentences, self.kind, token_embeddings[OFFSET]))


def with_offset(model: Model, sentences: Sequence[str], kind: str, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Encodings (sentences, 77, d) in which TRIGGER is read as its class word, with the offset added there, and where
    it stands, (sentences,)."""
    (row,) = model.text.vocabulary.of(kind)
    with torch.no_grad():
        encodings, places = model.encode(sentences, {TRIGGER: model.text.table.weight[row]})
    there = torch.arange(encodings.shape[1]) == places[:, None]
    return encodings + there[..., None] * offset, places
