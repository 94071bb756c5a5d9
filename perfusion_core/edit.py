"""The gated rank-1 edit of cross-attention's keys and values, for any number of concepts, in input space.

Symbols: e encoding of one token (d); i_j target input of concept j; a_j = C^-1 i_j its dual; s_j superclass encoding;
E_jk = i_j · a_k; g gate; t strength; W a layer's projection; δ_j the layer's value delta.

    sim_j = e · a_j                             similarity in the C^-1 metric
    p     = sim E^-1                            coordinates of e's projection onto span{i_j}, paper appendix B
    g_j   = σ((p_j − β_j) / τ_j)                gate, paper eq. 3
    e'    = e + Σ_j t_j (g_j s_j − p_j i_j)     what to_k and to_v receive
    K, V  = W_K e',  W_V e' + Σ_j t_j g_j δ_j

A concept of key freedom f moves what to_k receives only by 1 − f of that: at f = 0 the key is locked to the superclass
(the paper), at 1 it is the trigger's own.

For one concept p is sim / E, as in the paper. Among several the paper's gates see sim_j / E_jj all the same, so alike
ones open on each other's triggers; p_j is what of e only concept j explains, and 0 on the others' encodings.

Where strengths differ, p is taken with each concept counting by its strength (``_coordinates``): one at 0 is as if
absent, and two alike ones at different strengths do not tear the encoding apart.

W is never read, so merged, offloaded, quantised or biased weights are right by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from .concept import Concept
from .device import precise, sent

BETA, TEMPERATURE = 0.7, 0.15  # for inference with local key lock; paper and reproductions
_RANK_TOLERANCE = 1e-6  # below this share of overlap two targets count as the same direction


class ConceptSet:
    """Concepts that act together, with their settings; computes what their joint edit does to an encoding.

    betas, temperatures and strengths are numbers or one per concept: beta is the similarity at which the gate is half
    open (1 is the concept's own encoding), temperature (> 0) how softly it opens, strength scales the whole edit
    (0 returns inputs untouched). joint: the exact projection onto all targets; otherwise each concept is projected as
    if it were alone, p_j = sim_j / E_jj (the paper's approximation), which counts twice what alike concepts share, and
    lets them act on each other's triggers.
    zero_padded: tokens whose encoding is zero are padding, on which no gate opens: a norm behind W_K would make a whole
    superclass key of any share. placed: for each concept whether its value output acts in a part of the picture only:
    ``edit_value`` leaves these out, for the caller to add what attention makes of them (see ``value_outputs``).
    Raises ValueError for settings out of range or concepts of different widths.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        betas: float | Sequence[float] = BETA,
        temperatures: float | Sequence[float] = TEMPERATURE,
        strengths: float | Sequence[float] = 1.0,
        joint: bool = True,
        zero_padded: bool = False,
        placed: Sequence[bool] = (),
    ):
        if not concepts:
            raise ValueError("A concept set needs at least one concept.")
        if len({concept.dim for concept in concepts}) > 1:
            widths = ", ".join(f"{concept.name} {concept.dim}" for concept in concepts)
            raise ValueError(f"These concepts are for different models (widths of their encodings: {widths}).")
        self.concepts = tuple(concepts)
        self.betas = _per_concept(betas, "betas", concepts)
        self.temperatures = _per_concept(temperatures, "temperatures", concepts)
        self.strengths = _per_concept(strengths, "strengths", concepts)
        self.joint, self.zero_padded = joint, zero_padded
        self.placed = tuple(placed) or (False,) * len(concepts)
        if min(self.temperatures) < 1e-6 or min(self.strengths) < 0:
            raise ValueError(
                f"Temperatures must be above 0 and strengths not below, got {self.temperatures} and {self.strengths}."
            )
        self.active = any(self.strengths)  # whether the edit changes anything at all
        self.free_keys = any(concept.key_outputs is not None for concept in concepts)  # in place of the superclass's
        self.one_input = not self.free_keys and not any(concept.key_freedom for concept in concepts)  # of to_k and to_v
        with torch.inference_mode(False):  # a set may outlive the mode it was made in
            self._targets = torch.stack([precise(concept.target_input) for concept in concepts])  # (concepts, d)
            self._duals = torch.stack([precise(concept.target_dual) for concept in concepts])  # (concepts, d)
            self._energies = einsum(self._targets, self._duals, "j d, k d -> j k")  # E_jk = i*_j · a_k
        self._layers: dict[tuple[Any, ...], Tensor] = {}
        self._on: dict[tuple[Any, ...], _Coefficients] = {}

    @property
    def targets(self) -> Tensor:
        """(concepts, d): the i*."""
        return self._targets

    def coordinates(self, encoding: Tensor) -> Tensor:
        """p, how much of each concept is in each token: (batch, tokens, d) -> (batch, tokens, concepts)."""
        with _full_precision(encoding.device):
            c = self._coefficients(encoding)
            return c.coordinates(encoding.to(c.duals.dtype))

    def gates(self, encoding: Tensor, words: Tensor | None = None) -> Tensor:
        """How open each concept's gate is for each token, in 0..1: (batch, tokens, d) -> (batch, tokens, concepts).

        words: (batch, tokens), False where a token is padding and no gate opens.
        """
        with _full_precision(encoding.device):
            c = self._coefficients(encoding)
            return _only(words, self._open(encoding, c.gates(c.coordinates(encoding.to(c.duals.dtype)))))

    def edit_input(self, encoding: Tensor, keys: bool = False, words: Tensor | None = None) -> Tensor:
        """e', what to_v (and, with ``keys``, to_k) receives: (batch, tokens, d) -> the same shape and dtype.

        The two differ only for concepts with some key freedom, or with key outputs of their own, which ``edit_key``
        then adds. words: (batch, tokens), False where a token is padding and stays as it is.
        """
        if not self.active:
            return encoding
        with _full_precision(encoding.device):
            c = self._coefficients(encoding)
            e = encoding.to(c.duals.dtype)
            coordinates = c.coordinates(e)
            weights = torch.cat([coordinates, self._open(encoding, c.gates(coordinates))], dim=-1)
            weights = _only(words, weights)
            return (e + weights @ (c.key_directions if keys else c.directions)).to(encoding.dtype)

    def edit_value(self, value: Tensor, gates: Tensor, layer: str) -> Tensor:
        """V of ``layer``: (batch, tokens, d_out) with sum_j t_j g_j δ_j added; gates as ``gates`` returns them.

        Without those of ``placed`` concepts: attention being linear in V, attention(V + t g δ) is attention(V) +
        t attention(g) δ, so that the second part can be added where the concept is to act.
        """
        return self._add(value, gates, layer, "value_deltas") if self.active else value

    def edit_key(self, key: Tensor, gates: Tensor, layer: str) -> Tensor:
        """K of ``layer``, likewise, with the key outputs of the concepts that bring their own."""
        return self._add(key, gates, layer, "key_outputs") if self.active and self.free_keys else key

    def add_to_values(self, output: Tensor, gates: Tensor, layer: str, start: int, width: int) -> None:
        """Of joint attention, where the text's rows come first and values stand beside queries and keys: adds
        sum_j t_j g_j δ_j to these rows and columns of ``output`` (batch, rows, columns), in place, and leaves the rest.
        """
        if self.active:
            values = output[:, : gates.shape[1], start : start + width]
            values.copy_(self.edit_value(values, gates, layer))

    def value_outputs(self, layer: str, like: Tensor) -> Tensor:
        """(concepts, d_out), t_j δ_j of ``layer``, where a tensor like this is and in at least fp32."""
        return self._stacked(layer, "value_deltas", like)

    def overlap(self) -> Tensor:
        """How alike the targets are, (concepts, concepts): their Gram matrix in the C^-1 metric, 1 on the diagonal."""
        scale = self._energies.diagonal().rsqrt()
        return einsum(self._energies, scale, scale, "j k, j, k -> j k").to(self.concepts[0].target_input.dtype)

    def _open(self, encoding: Tensor, gates: Tensor) -> Tensor:
        return gates * encoding.any(-1, keepdim=True) if self.zero_padded else gates

    def _add(self, output: Tensor, gates: Tensor, layer: str, attribute: str) -> Tensor:
        with _full_precision(output.device):
            rows = self._stacked(layer, attribute, output)
            if attribute == "value_deltas" and any(self.placed):
                gates = gates * self._coefficients(gates).everywhere
            return output + (gates.to(rows.dtype) @ rows).to(output.dtype)

    def _stacked(self, layer: str, attribute: str, output: Tensor) -> Tensor:
        """The layer's outputs times the strengths, (concepts, d_out), where ``output`` is and in at least fp32."""
        place = layer, attribute, output.device, output.dtype
        if (rows := self._layers.get(place)) is not None:
            return rows
        found = [(getattr(concept, attribute) or {}).get(layer) for concept in self.concepts]
        like = next((vector for vector in found if vector is not None), None)
        if like is None:
            raise KeyError(f"None of {[concept.name for concept in self.concepts]} has an output for {layer}.")
        with torch.inference_mode(False):
            rows = torch.stack([torch.zeros_like(like) if vector is None else vector for vector in found])
            rows = rows.to(output.device, torch.promote_types(torch.float32, output.dtype))
            rows = einsum(_numbers(self.strengths, rows), rows, "concept, concept d -> concept d")
        if not rows.requires_grad:  # what is in training changes, and belongs to one graph
            self._layers[place] = rows
        return rows

    def _coefficients(self, encoding: Tensor) -> _Coefficients:
        """The matrices of the edit where ``encoding`` is, in at least fp32."""
        place = encoding.device, torch.promote_types(torch.float32, encoding.dtype)
        if place in self._on:
            return self._on[place]
        with torch.inference_mode(False):
            strengths = _numbers(self.strengths, self._targets)
            duals = self._duals / self._energies.diagonal()[:, None]  # of no scale of C's, which fp32 may not hold
            if self.joint and len(self.concepts) > 1:
                duals = _coordinates(self._energies, strengths).T @ duals
            removed = einsum(-strengths, self._targets, "concept, concept d -> concept d")
            superclasses = torch.stack([precise(concept.superclass_input) for concept in self.concepts])
            added = einsum(strengths, superclasses, "concept, concept d -> concept d")
            locked = _numbers([concept.key_outputs is None for concept in self.concepts], added)[:, None]
            held = _numbers([1 - concept.key_freedom for concept in self.concepts], added)[:, None]
            coefficients = _Coefficients(
                duals=duals.to(*place),
                directions=torch.cat([removed, added]).to(*place),
                key_directions=torch.cat([held * removed, held * added * locked]).to(*place),
                betas=_numbers(self.betas, added).to(*place),
                temperatures=_numbers(self.temperatures, added).to(*place),
                everywhere=(1 - _numbers(self.placed, added)).to(*place),
            )
        if not coefficients.directions.requires_grad:  # else it belongs to one graph
            self._on[place] = coefficients
        return coefficients


@dataclass(frozen=True)
class _Coefficients:
    duals: Tensor  # (concepts, d), of which e makes p; alone it is a_j / E_jj
    directions: Tensor  # (2 concepts, d), what each coordinate p, 1 for e = i_j, and each gate add to the encoding
    key_directions: Tensor  # (2 concepts, d), as far as keys are locked; without s where a concept brings its own keys
    betas: Tensor  # (concepts,)
    temperatures: Tensor  # (concepts,)
    everywhere: Tensor  # (concepts,), 0 for those of ``placed``, else 1

    def coordinates(self, e: Tensor) -> Tensor:
        return einsum(e, self.duals, "... d, concept d -> ... concept")

    def gates(self, coordinates: Tensor) -> Tensor:
        return torch.sigmoid((coordinates - self.betas) / self.temperatures)


class EditedEncoding:
    """What one forward pass shares between all its layers: the edited inputs and the gates, computed once.

    key_encoding is what the key path sees in place of ``encoding`` (global key lock); both (batch, tokens, d).
    words: (batch, tokens), False where a token is padding, which stays as it is.
    Layers hand over the tensor they received. If it is not ``encoding`` itself, something in between has changed it,
    and it is edited as it arrives.
    """

    def __init__(
        self,
        concepts: ConceptSet,
        encoding: Tensor,
        key_encoding: Tensor | None = None,
        words: Tensor | None = None,
    ):
        self.concepts = concepts
        self.source = encoding
        self.value_input = concepts.edit_input(encoding, words=words)
        self.gates = concepts.gates(encoding, words)
        seen = encoding if key_encoding is None or not concepts.active else key_encoding
        if seen is encoding and concepts.one_input:
            self.key_input, self.key_gates = self.value_input, self.gates
        else:
            self.key_input = concepts.edit_input(seen, keys=True, words=words)
            self.key_gates = concepts.gates(seen, words)

    def is_of(self, x: Tensor) -> bool:
        """Whether ``x`` is the encoding itself."""
        return is_same(x, self.source)

    def key(self, layer: str, x: Tensor, to_k: Callable[[Tensor], Tensor]) -> Tensor:
        """K of ``layer`` (batch, tokens, d_out), where ``to_k`` projects an input."""
        if not self.is_of(x):
            return self.concepts.edit_key(to_k(self.concepts.edit_input(x, keys=True)), self.concepts.gates(x), layer)
        return self.concepts.edit_key(to_k(self.key_input), self.key_gates, layer)

    def value(self, layer: str, x: Tensor, to_v: Callable[[Tensor], Tensor]) -> Tensor:
        """V of ``layer`` (batch, tokens, d_out), where ``to_v`` projects an input."""
        if not self.is_of(x):
            return self.concepts.edit_value(to_v(self.concepts.edit_input(x)), self.concepts.gates(x), layer)
        return self.concepts.edit_value(to_v(self.value_input), self.gates, layer)

    def key_and_value(self, layer: str, x: Tensor, to_kv: Callable[[Tensor], Tensor]) -> Tensor:
        """K of ``layer`` and behind it V, (batch, tokens, 2 d_out), where ``to_kv`` projects an input to both."""
        key = self.key(layer, x, lambda e: to_kv(e).chunk(2, dim=-1)[0])
        value = self.value(layer, x, lambda e: to_kv(e).chunk(2, dim=-1)[1])
        return torch.cat([key, value], dim=-1)


def is_same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are one, or views of the same memory, as some models make of an encoding for every layer."""
    return x is y or (x.data_ptr() == y.data_ptr() and (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype))


def _only(words: Tensor | None, weights: Tensor) -> Tensor:
    return weights if words is None else weights * words[..., None]


def _numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """A tensor of the dtype of ``like`` and where it is."""
    return sent(torch.tensor(values, dtype=like.dtype), like.device)


def _per_concept(setting: float | Sequence[float], name: str, concepts: Sequence[Concept]) -> tuple[float, ...]:
    values = (float(setting),) * len(concepts) if isinstance(setting, (int, float)) else tuple(map(float, setting))
    if len(values) != len(concepts):
        raise ValueError(f"{name} has {len(values)} numbers for {len(concepts)} concepts.")
    if not all(-1e6 < value < 1e6 for value in values):
        raise ValueError(f"{name} must be finite numbers, got {values}.")
    return values


def _coordinates(energies: Tensor, strengths: Tensor) -> Tensor:
    """(concepts, concepts), which makes p of sim_j / E_jj; for equal strengths it is diag(E) E^-1.

    With N the normalised E and R = diag(t / max t): R^½ (R^½ N R^½ + I − R)^-1 R^-½, the projection in which a weaker
    concept's coordinate is held back; one of strength 0 sees itself alone, and no other sees it. Where targets
    coincide, the pseudo-inverse shares the coordinate between them.
    """
    present = strengths > 0
    share = torch.where(present, strengths / strengths.max(), 1).sqrt()  # R^½
    size = energies.diagonal().sqrt()
    system = einsum(energies, share / size, share / size, "j k, j, k -> j k")
    system = torch.where(present[:, None] & present, system, 0)
    system = system - system.diagonal().diag() + torch.eye(len(strengths), dtype=system.dtype)
    inverse = torch.linalg.pinv(system, rtol=_RANK_TOLERANCE)
    coordinates: Tensor = einsum(inverse, share * size, 1 / (share * size), "j k, j, k -> j k")
    return coordinates


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Gates are steep: half precision similarities, as under autocast, would move them."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
