"""The edit inside ComfyUI's diffusion models; families/ says where in each, runtime.py what happens while they sample.

to_k.forward and to_v.forward of every text cross-attention are object patches, which other nodes' attention patches,
weight patches, hooks, offloading and torch.compile leave alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from einops import einsum, rearrange
from torch import Tensor

from ...perfusion_core import ValueWiring, Wiring
from .apart import APART, KeepApart
from .families import FAMILIES, Family, family_of
from .joint import PREFIX, JointRuntime, check_possible, refusal, value_layers
from .runtime import Runtime
from .uses import KEY, ConceptUse, combine, stages

_JOINT = "perfusion_joint"  # how concepts are merged, among what is attached to a MODEL


def apply_to_model(model, uses: Sequence[ConceptUse], joint: bool | None = True):
    """A clone of the MODEL that uses these concepts too, all of them merged as said last (see ConceptSet).

    joint: None leaves it as it is. Raises ValueError for a concept of another base model.
    """
    for use in uses:
        check_fits(use.concept, model)
    model = model.clone()
    uses = combine(model.get_attachment(KEY) or (), uses)
    joint = model.get_attachment(_JOINT) is not False if joint is None else joint
    model.set_attachments(KEY, uses)
    model.set_attachments(_JOINT, joint)
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.APPLY_MODEL):
        model.remove_wrappers_with_key(kind, KEY)
    (_patch_values if family_of(model).joint else _patch_projections)(model, uses, joint)
    return model


def _patch_projections(model, uses: Sequence[ConceptUse], joint: bool) -> None:
    layers = cross_attentions(model)
    runtime = Runtime(model, uses, joint, model.get_attachment(APART)) if uses else None
    for layer, stage in stages(layers).items():
        attention = layers[layer]
        for projection in ("to_q", "to_k", "to_v", "to_out"):
            forward = None
            if runtime is not None and projection in ("to_k", "to_v"):
                forward = partial(runtime.forward, layer, stage, attention, projection)
            elif runtime is not None and runtime.is_placed:
                forward = partial(runtime.beside, layer, attention, projection)
            _patch(model, attention.path(projection), forward)
    if runtime is not None:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, runtime.outer_sample)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, runtime.apply_model)


def _patch_values(model, uses: Sequence[ConceptUse], joint: bool) -> None:
    check_possible(family_of(model), uses)
    layers = value_layers(model)
    runtime = JointRuntime(model, uses, joint) if uses else None
    for layer, stage in stages(layers).items():
        forward = None if runtime is None else partial(runtime.forward, layer, stage, layers[layer])
        _patch(model, layers[layer].projection, forward)
    if runtime is not None:
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, runtime.apply_model)


def _patch(model, path: str, forward: Callable[[Callable | None], Callable] | None) -> None:
    """Gives a module another forward, made around what other nodes have put there. None: takes ours away."""
    name = f"{path}.forward"
    foreign = getattr(model.object_patches.get(name), "perfusion_foreign", model.object_patches.get(name))
    patch = foreign if forward is None else forward(foreign)
    if patch is not None:
        model.add_object_patch(name, patch)
    else:
        model.object_patches.pop(name, None)


def keep_apart(model, apart: KeepApart, uses: Sequence[ConceptUse] = ()):
    """A clone of the MODEL whose concepts are kept apart, also those that are applied later; ``uses`` are applied."""
    if (family := family_of(model)).joint:
        raise ValueError(refusal(family, "Perfusion Keep Apart"))
    model = model.clone()
    model.set_attachments(APART, apart)
    return apply_to_model(model, uses, joint=None)


def concepts_on(model) -> tuple[ConceptUse, ...]:
    """Those that the MODEL has of Perfusion's nodes."""
    return model.get_attachment(KEY) or ()


def without_concepts(model):
    """The MODEL as it was before Perfusion's nodes."""
    return apply_to_model(model, [use.replace(strength=0.0) for use in concepts_on(model)])


@dataclass(frozen=True)
class CrossAttention:
    """A text cross-attention of a model. Its projections have the UNet's names here, whatever its family calls them."""

    name: str  # module path in the host's BaseModel
    module: torch.nn.Module
    family: Family

    def path(self, projection: str) -> str:
        """The module path of "to_q", "to_k", "to_v" or "to_out"."""
        return f"{self.name}.{self.family.projections[projection]}"

    @property
    def is_fused(self) -> bool:
        """Whether one projection gives keys and behind them values."""
        return self.to_k is self.to_v

    @property
    def width(self) -> int:
        """Of one token's key or value."""
        return self.to_q.out_features

    @property
    def to_q(self) -> torch.nn.Module:
        return getattr(self.module, self.family.projections["to_q"])

    @property
    def to_k(self) -> torch.nn.Module:
        return getattr(self.module, self.family.projections["to_k"])

    @property
    def to_v(self) -> torch.nn.Module:
        return getattr(self.module, self.family.projections["to_v"])

    @property
    def heads(self) -> int:
        return getattr(self.module, self.family.heads)

    def split(self, model: torch.nn.Module, projection: str, projected: Tensor) -> Tensor:
        """What the heads in this BaseModel see of what "to_q" or "to_k" gave: (batch, n, heads d) -> (batch, heads, n,
        d)."""
        projected, name = projected[..., : self.width], self.family.norms.get(projection)
        norm = comfy.utils.get_attr(model, f"{self.name}.{name}") if name else torch.nn.Identity()
        if self.family.whole_norms:
            projected = norm(projected)
        heads = rearrange(projected, "batch n (heads d) -> batch heads n d", heads=self.heads)
        return heads if self.family.whole_norms else norm(heads)

    def looks(self, model: torch.nn.Module, queries: Tensor, keys: Tensor, words: Tensor | None = None) -> Tensor:
        """How much each spot looks at each token, (batch, heads, spots, tokens) in fp32, from what the two gave.

        words: (batch, tokens), 0 where attention leaves padding out.
        """
        q, k = self.split(model, "to_q", queries).float(), self.split(model, "to_k", keys).float()
        scores = einsum(q, k, "batch heads spot d, batch heads token d -> batch heads spot token") * q.shape[-1] ** -0.5
        if words is not None:
            scores = scores + words[:, None, None].to(scores).log()
        return scores.softmax(-1)


def cross_attentions(model) -> dict[str, CrossAttention]:
    """{layer: the MODEL's text cross-attention}, named as in concept files. Raises ValueError when it has none."""
    family = family_of(model)
    if family.joint:
        raise ValueError(refusal(family, "A map of attention"))
    found = {
        name[len(PREFIX) :]: CrossAttention(name, module, family)
        for name, module in model.model.named_modules()
        if name.startswith(PREFIX) and re.fullmatch(family.attention, name[len(PREFIX) :])
    }
    if not found:
        raise ValueError(f"This {type(model.model).__name__} has no text cross-attention, which Perfusion needs.")
    return found


def value_widths(model) -> dict[str, int]:
    """{layer, as in concept files: the width of a token's value}. Raises ValueError for a MODEL of no known family."""
    if family_of(model).joint:
        return {layer: values.width for layer, values in value_layers(model).items()}
    return {layer: attention.width for layer, attention in cross_attentions(model).items()}


def wiring_of(model) -> Wiring:
    """The edit in the MODEL's network, to train with."""
    if family_of(model).joint:
        return ValueWiring(model.model, value_layers(model))
    layers = cross_attentions(model)
    names = {layer: (attention.path("to_k"), attention.path("to_v")) for layer, attention in layers.items()}
    return Wiring(model.model, names)


def encoding_width(model) -> int:
    """d, the width of the encoding that concepts are told by. Raises ValueError for a MODEL of no known family."""
    if joint := family_of(model).joint:
        value_layers(model)  # raises for another network
        return model.model.diffusion_model.get_submodule(joint.reads).in_features
    return next(iter(cross_attentions(model).values())).to_k.in_features


def base_model(model) -> str:
    """The family's name, as in concept files; of unknown UNets a name made of the encoding's width."""
    family = family_of(model)
    return f"width-{encoding_width(model)}" if family.name == "unet" else family.name


def default_resolution(model) -> int:
    """Pixels on a side of the pictures that the MODEL is made for."""
    return family_of(model).resolution


def check_fits(concept, model) -> None:
    """Raises ValueError, with the reason, when the concept was trained for another architecture than this MODEL's."""
    width, name = encoding_width(model), base_model(model)
    of_another = concept.base_model != name and concept.base_model in {family.name for family in FAMILIES}
    if concept.dim != width or of_another:
        raise ValueError(
            f"The concept {concept.name!r} was trained for {concept.base_model} (text encoding {concept.dim} wide); "
            f"this model is {name} ({width} wide). Load a {concept.base_model} checkpoint, or train the "
            "concept again on this one."
        )
    expected = value_widths(model)
    for kind, outputs in (("value", concept.value_deltas), ("key", concept.key_outputs or concept.value_deltas)):
        found = {layer: tensor.shape[0] for layer, tensor in outputs.items()}
        if found == expected:
            continue
        missing, foreign = expected.keys() - found.keys(), found.keys() - expected.keys()
        if missing:
            detail = f"it lacks {len(missing)} of the model's {len(expected)} layers, such as {min(missing)}"
        elif foreign:
            detail = f"it has {len(foreign)} layers more than the model, such as {min(foreign)}"
        else:
            layer = min(layer for layer in expected if found[layer] != expected[layer])
            detail = f"its {kind} output for {layer} has {found[layer]} numbers, the layer has {expected[layer]}"
        raise ValueError(
            f"The concept {concept.name!r} does not fit this model: {detail}. Use the checkpoint family it was trained "
            "on, or get the file anew if it is damaged."
        )
