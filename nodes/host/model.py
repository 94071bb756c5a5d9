"""The edit inside ComfyUI's diffusion models; families/ says where in each.

to_k.forward and to_v.forward of every text cross-attention are object patches, which other nodes' attention patches,
weight patches, hooks, offloading and torch.compile leave alone. An APPLY_MODEL wrapper marks a forward, in which the
first layer that receives an encoding edits it for all layers; an OUTER_SAMPLE wrapper hands it the key lock of every
conditioning. Modules are looked up on the model that runs, never closed over: the host copies object patches onto other
instances of a model.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...perfusion_core import ConceptSet, EditedEncoding
from .families import FAMILIES, Family, family_of
from .uses import KEY, STAGES, ConceptUse, combine, concept_set, stages

ENCODING, KEYS = "perfusion_encoding", "perfusion_keys"  # in a conditioning's dict, see text.py
PREFIX = "diffusion_model."
MANY_SETS = 128  # that are kept
_MANY_ENCODINGS = 8  # in one forward that are kept, where other nodes give every layer one of its own


def apply_to_model(model, uses: Sequence[ConceptUse], joint: bool = True):
    """A clone of the MODEL that uses these concepts too, all of them merged as said last (see ConceptSet).

    Raises ValueError for a concept of another base model.
    """
    for use in uses:
        check_fits(use.concept, model)
    model = model.clone()
    uses = combine(model.get_attachment(KEY) or (), uses)
    model.set_attachments(KEY, uses)
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.APPLY_MODEL):
        model.remove_wrappers_with_key(kind, KEY)
    layers = cross_attentions(model)
    runtime = _Runtime(model, uses, joint) if uses else None
    for layer, stage in stages(layers).items():
        for projection, edit in (("to_k", EditedEncoding.key), ("to_v", EditedEncoding.value)):
            place = layers[layer].path(projection)
            name = f"{place}.forward"
            foreign = getattr(model.object_patches.get(name), "perfusion_foreign", model.object_patches.get(name))
            if runtime is not None:
                model.add_object_patch(name, runtime.forward(layer, stage, place, edit, foreign))
            elif foreign is not None:
                model.add_object_patch(name, foreign)
            else:
                model.object_patches.pop(name, None)
    if runtime is not None:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, runtime.outer_sample)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, runtime.apply_model)
    return model


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
        """The module path of "to_q", "to_k" or "to_v"."""
        return f"{self.name}.{self.family.projections[projection]}"

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


def cross_attentions(model) -> dict[str, CrossAttention]:
    """{layer: the MODEL's text cross-attention}, named as in concept files. Raises ValueError when it has none."""
    family = family_of(model)
    found = {
        name[len(PREFIX) :]: CrossAttention(name, module, family)
        for name, module in model.model.named_modules()
        if name.startswith(PREFIX) and family.attention.fullmatch(name[len(PREFIX) :])
    }
    if not found:
        raise ValueError(f"This {type(model.model).__name__} has no text cross-attention, which Perfusion needs.")
    return found


def encoding_width(model) -> int:
    """d, the width of the encoding that the layers receive. Raises ValueError when there is no text cross-attention."""
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
    expected = {layer: module.to_v.out_features for layer, module in cross_attentions(model).items()}
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


class _Runtime:
    """What one patched MODEL does while it samples. All state is the running forward's, per thread."""

    def __init__(self, model, uses: Sequence[ConceptUse], joint: bool):
        self._uses, self._joint, self._family = uses, joint, family_of(model)
        self._scheduled = any(use.scheduled for use in uses)
        self._sets: dict[tuple, ConceptSet] = {}
        self._own_model = weakref.ref(model.model)  # only for calls from outside sampling
        self._running = threading.local()

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        guider.conds = {name: [_with_key_lock(cond) for cond in conds] for name, conds in guider.conds.items()}
        return executor(*args, **kwargs)

    def apply_model(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs  # noqa: B006
    ):  # fmt: skip
        locks = kwargs.pop(KEY, None)
        if c_crossattn is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        model = executor.class_obj
        # cast here, as the model would: then the layers get this very tensor, unless another node changes it
        dtype = getattr(model, "manual_cast_dtype", None) or model.get_dtype()
        context = comfy.model_management.cast_to_device(c_crossattn, x.device, dtype)
        percent = _percent(model, t) if self._scheduled else 0.0
        for lock in locks or []:
            lock.receive(self._family, model.diffusion_model, context)
        with self._run(model, _Edits(self, percent, context, locks or [])):
            return executor(x, t, c_concat, context, control, transformer_options, **kwargs)

    def forward(self, layer: str, stage: str, name: str, edit: Callable, foreign: Callable | None) -> Callable:
        """The forward of the projection ``name``; ``foreign`` is another node's patch of it, which then projects."""

        @torch.compiler.disable
        def forward(x: Tensor) -> Tensor:
            model, edits = getattr(self._running, "forward", None) or (self._own_model(), _Edits(self, 0.0, x, []))

            def project(edited_input: Tensor) -> Tensor:
                if foreign is not None:
                    return foreign(edited_input)
                module = comfy.utils.get_attr(model, name)
                return type(module).forward(module, edited_input)

            return edit(edits.of(stage, x), layer, x, project)

        forward.perfusion_foreign = foreign
        return forward

    def concepts(self, percent: float, stage: str) -> ConceptSet:
        """Those in use at a percent of the schedule in a stage; the same set for the same settings."""
        uses = [use.at(percent, stage) for use in self._uses]
        settings = tuple((use.beta, use.temperature, use.strength) for use in uses)
        if settings not in self._sets:
            if len(self._sets) == MANY_SETS:  # some samplers never come to the same sigma again
                self._sets.clear()
            self._sets[settings] = concept_set(uses, self._joint, self._family.zero_padded)
        return self._sets[settings]

    @contextmanager
    def _run(self, model: torch.nn.Module, edits: _Edits):
        outer = getattr(self._running, "forward", None)
        self._running.forward = model, edits
        try:
            yield
        finally:
            self._running.forward = outer


class _Edits:
    """What the layers of one forward share: each encoding that they receive, as it is edited in each stage."""

    def __init__(self, runtime: _Runtime, percent: float, context: Tensor, locks: list[_KeyLock]):
        self._concepts = {stage: runtime.concepts(percent, stage) for stage in STAGES.values()}
        self._context, self._locks = context, locks if any(lock.cond is not None for lock in locks) else []
        self._edited: dict[tuple[int, ConceptSet], EditedEncoding] = {}

    def of(self, stage: str, x: Tensor) -> EditedEncoding:
        """The edit of what a layer received, which is the context unless another node has changed that."""
        concepts = self._concepts[stage]
        place = id(x), concepts  # a kept edit holds its source, so that no other tensor has the id
        if place not in self._edited:
            if len(self._edited) == _MANY_ENCODINGS:
                self._edited.pop(next(iter(self._edited)))
            self._edited[place] = EditedEncoding(concepts, x, self._keys(x))
        return self._edited[place]

    def _keys(self, x: Tensor) -> Tensor | None:
        if not self._locks:
            return None
        return (_key_context if x is self._context else _found_keys)(x, self._locks)


def _percent(model: torch.nn.Module, sigmas: Tensor) -> float:
    """How far the schedule is at these sigmas, 0 to 1: the inverse of the host's percent_to_sigma, which falls."""
    sigma, low, high = sigmas.max().item(), 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if model.model_sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return (low + high) / 2


class _KeyLock(comfy.conds.CONDRegular):
    """Carries an encoding beside what the key path sees in its place: (batch, tokens, 2 d), or None for no lock.

    Every conditioning carries one, or the host would not put those with and without into one batch. What the layers
    receive of the two is made once in a sampling run.
    """

    def __init__(
        self, cond: Tensor | None, conditioning: Mapping[str, Any] = {}, rows: int = 1, received: list | None = None
    ):
        super().__init__(cond)
        self.rows = rows  # that the conditioning has in the batch
        self._conditioning, self._received = conditioning, [] if received is None else received

    def _copy_with(self, cond):
        return _KeyLock(cond, self._conditioning, self.rows)

    def process_cond(self, batch_size, **kwargs):
        return _KeyLock(self.cond, self._conditioning, batch_size, self._received)

    def can_concat(self, other) -> bool:
        return isinstance(other, _KeyLock)

    def concat(self, others) -> list[_KeyLock]:
        return [self, *others]  # in the order of their rows in the batch

    def size(self) -> list[int]:
        return [1]

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


def _with_key_lock(cond: dict) -> dict:
    encoding = cond.get("cross_attn")
    if encoding is None:
        return cond
    keys = _locked_keys(cond, encoding)
    encoding = encoding.as_subclass(Tensor)  # the keys have arrived
    cond = {**cond, "cross_attn": encoding}
    lock = _KeyLock(None if keys is None else torch.cat([encoding, keys], dim=-1), cond)
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


def _key_context(context: Tensor, locks: list[_KeyLock]) -> Tensor:
    """What keys see, (batch, tokens, d): the context, with the rows of locked conditionings replaced."""
    if sum(lock.rows for lock in locks) != len(context):  # another node has made a batch of its own
        return _found_keys(context, locks)
    chunks = list(context.split([lock.rows for lock in locks]))
    for i, lock in enumerate(locks):
        if lock.cond is not None:
            chunks[i] = comfy.utils.repeat_to_batch_size(lock.encoding_and_keys(context)[1], lock.rows)
    return torch.cat(chunks)


def _found_keys(context: Tensor, locks: list[_KeyLock]) -> Tensor:
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
