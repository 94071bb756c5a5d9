"""The edit inside ComfyUI's UNet.

to_k.forward and to_v.forward of every text cross-attention are object patches, which other nodes' attention patches,
weight patches, hooks, offloading and torch.compile leave alone. Per forward an APPLY_MODEL wrapper edits the encoding
once for all layers; an OUTER_SAMPLE wrapper hands every conditioning's key lock to it. Modules are looked up on the
model that runs, never closed over: the host copies object patches onto other instances of a model.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import comfy.conds
import comfy.model_management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...perfusion_core import ConceptSet, EditedEncoding
from ...perfusion_core.concept import BASE_MODELS
from .uses import KEY, STAGES, ConceptUse, combine, concept_set

ENCODING, KEYS = "perfusion_encoding", "perfusion_keys"  # in a conditioning's dict, see text.py
PREFIX = "diffusion_model."
MANY_SETS = 128  # that are kept


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
    runtime = _Runtime(model.model, uses, joint) if uses else None
    for layer in cross_attentions(model):
        for projection, edit in (("to_k", EditedEncoding.key), ("to_v", EditedEncoding.value)):
            name = f"{PREFIX}{layer}.{projection}.forward"
            foreign = getattr(model.object_patches.get(name), "perfusion_foreign", model.object_patches.get(name))
            if runtime is not None:
                model.add_object_patch(name, runtime.forward(layer, projection, edit, foreign))
            elif foreign is not None:
                model.add_object_patch(name, foreign)
            else:
                model.object_patches.pop(name, None)
    if runtime is not None:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, runtime.outer_sample)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, runtime.apply_model)
    return model


def without_concepts(model):
    """The MODEL as it was before Perfusion's nodes."""
    return apply_to_model(model, [use.replace(strength=0.0) for use in model.get_attachment(KEY) or ()])


def cross_attentions(model) -> dict[str, torch.nn.Module]:
    """{layer: module} of the MODEL's text cross-attentions, named as in concept files."""
    return {
        name[len(PREFIX) :]: module
        for name, module in model.model.named_modules()
        if name.startswith(PREFIX) and name.endswith(".attn2") and hasattr(module, "to_k")
    }


def encoding_width(model) -> int:
    """d, the width of the text encoding that the MODEL takes. Raises ValueError when it has no text cross-attention."""
    layers = cross_attentions(model)
    if not layers:
        raise ValueError(
            f"Perfusion needs a model with text cross-attention: SD1.x, SD2.x or SDXL. This one is "
            f"{type(model.model).__name__}."
        )
    return next(iter(layers.values())).to_k.in_features


def base_model(model) -> str:
    """ "sd1", "sd2", "sdxl" or "demo", else a name made of the encoding's width."""
    width = encoding_width(model)
    return BASE_MODELS.get(width, f"width-{width}")


def default_resolution(model) -> int:
    """Pixels on a side of the pictures that the MODEL is made for."""
    return {"sdxl": 1024, "demo": 64}.get(base_model(model), 512)


def check_fits(concept, model) -> None:
    """Raises ValueError, with the reason, when the concept was trained for another architecture than this MODEL's."""
    width = encoding_width(model)
    if concept.dim != width:
        raise ValueError(
            f"The concept {concept.name!r} was trained for {concept.base_model} (text encoding {concept.dim} wide); "
            f"this model is {base_model(model)} ({width} wide). Load a {concept.base_model} checkpoint, or train the "
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

    def __init__(self, base_model: torch.nn.Module, uses: Sequence[ConceptUse], joint: bool):
        self._uses, self._joint = uses, joint
        self._scheduled = any(use.scheduled for use in uses)
        self._sets: dict[tuple, ConceptSet] = {}
        self._own_model = weakref.ref(base_model)  # only for calls from outside sampling
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
        with self._run(model, _Edits(self, percent, context, locks or [])):
            return executor(x, t, c_concat, context, control, transformer_options, **kwargs)

    def forward(self, layer: str, projection: str, edit: Callable, foreign: Callable | None) -> Callable:
        """The forward of one projection; ``foreign`` is another node's patch of it, which then does the projecting."""
        name, stage = f"{PREFIX}{layer}.{projection}", STAGES.get(layer.partition(".")[0], "middle")

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
            self._sets[settings] = concept_set(uses, self._joint)
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
    """What the layers of one forward share: the encoding as it is edited in each stage of the UNet."""

    def __init__(self, runtime: _Runtime, percent: float, context: Tensor, locks: list[_KeyLock]):
        self._concepts = {stage: runtime.concepts(percent, stage) for stage in STAGES.values()}
        self._context, self._locks = context, locks if any(lock.cond is not None for lock in locks) else []
        keys = _key_context(context, locks) if self._locks else None
        edited = {one: EditedEncoding(one, context, keys) for one in set(self._concepts.values())}
        self._stages = {stage: edited[one] for stage, one in self._concepts.items()}

    def of(self, stage: str, x: Tensor) -> EditedEncoding:
        """The edit of what a layer received, which is the context unless another node has changed that."""
        if x is self._context or not self._locks:
            return self._stages[stage]
        return EditedEncoding(self._concepts[stage], x, _found_keys(x, self._locks))


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

    Every conditioning carries one, or the host would not put those with and without into one batch.
    """

    def __init__(self, cond: Tensor | None, rows: int = 1):
        super().__init__(cond)
        self.rows = rows  # that the conditioning has in the batch

    def process_cond(self, batch_size, **kwargs):
        return _KeyLock(self.cond, batch_size)

    def can_concat(self, other) -> bool:
        return isinstance(other, _KeyLock)

    def concat(self, others) -> list[_KeyLock]:
        return [self, *others]  # in the order of their rows in the batch

    def size(self) -> list[int]:
        return [1]

    def encoding_and_keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Each (batch, tokens, d), of the context's kind and length: the host pads by repetition."""
        both = self.cond.to(context)
        return both.repeat(1, context.shape[1] // both.shape[1], 1).chunk(2, dim=-1)


def _with_key_lock(cond: dict) -> dict:
    encoding = cond.get("cross_attn")
    if encoding is None:
        return cond
    keys = _locked_keys(cond, encoding)
    lock = _KeyLock(None if keys is None else torch.cat([encoding, keys], dim=-1))
    return {**cond, "model_conds": {**cond.get("model_conds", {}), KEY: lock}}


def _locked_keys(cond: dict, encoding: Tensor) -> Tensor | None:
    if hasattr(encoding, KEY):
        return getattr(encoding, KEY)
    local, keys = cond.get(ENCODING), cond.get(KEYS)
    if local is None or keys is None:
        return None
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
    """The same for rows in any order and number: each that is a locked conditioning's encoding is replaced."""
    found = context
    for lock in locks:
        if lock.cond is not None and context.shape[1] % lock.cond.shape[1] == 0:
            encoding, keys = lock.encoding_and_keys(context)
            same = (context[:, None] == encoding).flatten(2).all(-1)  # (batch, lock's batch)
            found = torch.where(same.any(1)[:, None, None], keys[same.int().argmax(1)], found)
    return found
