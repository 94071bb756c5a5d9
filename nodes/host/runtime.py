"""What one patched MODEL does while it samples: an encoding is edited by the first layer that receives it, for all.

An APPLY_MODEL wrapper marks a forward; an OUTER_SAMPLE wrapper hands it the key lock of every conditioning, and keeps
what stays the same over the steps. Modules are looked up on the model that runs, never closed over: the host copies
object patches onto other instances of a model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...perfusion_core import ConceptSet, EditedEncoding
from ...perfusion_core.edit import is_same
from .adapter import network_dtype
from .apart import Finder, KeepApart
from .families import Family, family_of
from .kept import Run
from .key_lock import KeyLock, found_keys, key_context, with_key_lock
from .regions import Heard, Regions
from .schedule import ConceptSets, percent_of
from .uses import KEY, ConceptUse

_MANY_ENCODINGS = 8  # in one forward that are kept, where other nodes give every layer one of its own
_EDITS = {"to_k": EditedEncoding.key, "to_v": EditedEncoding.value}
_ROUNDING = 0.01  # of the largest number, within which a projection gives the same once more


class _Running(threading.local):
    """What is going on in this thread."""

    run: Run | None = None
    whole: Sequence[int] = ()  # spatial sizes of the latents that are sampled
    finder: Finder | None = None  # where concepts are kept apart
    forward: _Forward | None = None

    @contextmanager
    def during(self, **changes: Any):
        before = {name: getattr(self, name) for name in changes}
        self.__dict__.update(changes)
        try:
            yield
        finally:
            self.__dict__.update(before)


class Runtime:
    """What one patched MODEL does while it samples."""

    def __init__(self, model, uses: Sequence[ConceptUse], joint: bool, apart: KeepApart | None = None):
        self._uses, self._family = uses, family_of(model)
        self._apart = apart if len(uses) > 1 and apart is not None and apart.strength > 0 else None
        self._sets = ConceptSets(uses, joint, self._family.zero_padded)
        self._masks = [None if use.mask is None else use.mask[:, None] for use in uses]  # of one frame
        self._own_model = weakref.ref(model.model)  # only for calls from outside sampling
        self._running = _Running()

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        guider.conds = {name: [with_key_lock(cond) for cond in conds] for name, conds in guider.conds.items()}
        hooked = any(cond.get("hooks") for conds in guider.conds.values() for cond in conds)  # they change weights
        run = None if hooked or any(use.moving for use in self._uses) else Run()
        whole = args[0].shape[2:]
        finder = None if self._apart is None else Finder(whole, self._masks)
        with self._running.during(run=run, whole=whole, finder=finder):
            try:
                samples = executor(*args, **kwargs)
                if finder is not None:
                    self._apart.remember(samples, [use.concept.trigger for use in self._uses], finder)
                return samples
            finally:
                if run is not None:
                    run.end()

    def apply_model(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs  # noqa: B006
    ):  # fmt: skip
        locks = kwargs.pop(KEY, None)
        if c_crossattn is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        model = executor.class_obj
        # cast here, as the model would: then the layers get this very tensor, unless another node changes it
        context = comfy.model_management.cast_to_device(c_crossattn, x.device, network_dtype(model))
        finder = self._running.finder
        timed = self._sets.scheduled or finder is not None
        sigma = t.max().item() if timed else 0.0
        percent = percent_of(model, sigma) if timed else 0.0
        if finder is not None and percent > self._apart.end_percent:
            finder = None
        for lock in locks or []:
            lock.receive(self._family, model.diffusion_model, context)
        projecting = self._family if self._family.in_forward else None
        concepts = self._sets.at(percent, finder is not None)
        forward = _Forward(model, projecting, context, concepts, locks or [], self._running.run)
        masks = self._masks
        if finder is not None:
            finder.begin(sigma)
            masks = finder.masks(self._apart.strength)
        if finder is not None or any(mask is not None for mask in masks):
            sizes, words = (x.shape[2:], self._running.whole or x.shape[2:]), kwargs.get("attention_mask")
            kinds = transformer_options.get("cond_or_uncond", ())
            forward.regions = Regions(masks, *sizes, locks or [], x.shape[0], words, kinds, finder)
        with self._running.during(forward=forward):
            return executor(x, t, c_concat, context, control, transformer_options, **kwargs)

    @property
    def is_placed(self) -> bool:
        """Whether a concept acts in a part of the picture only."""
        return self._apart is not None or any(mask is not None for mask in self._masks)

    def forward(self, layer: str, stage: str, attention, projection: str, foreign: Callable | None) -> Callable:
        """The forward of "to_k" or "to_v"; ``foreign`` is another node's patch of it, which then projects."""
        edit = EditedEncoding.key_and_value if attention.is_fused else _EDITS[projection]
        project = self._projecting(layer, stage, attention.path(projection), edit, foreign)

        @torch.compiler.disable
        def forward(x: Tensor) -> Tensor:
            now = self._running.forward or _Forward(self._own_model(), None, x, self._sets.at(0.0), [], None)
            by_text = self._family.by_text(x, len(now.context))
            output = project(now, by_text)
            if now.regions is not None:
                heard = now.regions.heard.setdefault(layer, Heard())
                heard.edited = now.edited(stage, by_text)
                if edit is not EditedEncoding.value:
                    heard.keys = output
            return self._family.by_text(output, len(x))

        forward.perfusion_foreign = foreign
        return forward

    def beside(self, layer: str, attention, projection: str, foreign: Callable | None) -> Callable:
        """The forward of "to_q", which is listened to, or of "to_out", which also gets what masked concepts add."""
        path = attention.path(projection)

        @torch.compiler.disable
        def forward(x: Tensor) -> Tensor:
            now = self._running.forward
            regions, model = (None, self._own_model()) if now is None else (now.regions, now.model)
            if regions is not None and projection == "to_out" and layer in regions.heard:
                x = x + regions.added(layer, attention, model).to(x.dtype)
            module = comfy.utils.get_attr(model, path)
            output = foreign(x) if foreign is not None else type(module).forward(module, x)
            if regions is not None and projection == "to_q":
                regions.heard[layer] = Heard(queries=output)
            return output

        forward.perfusion_foreign = foreign
        return forward

    def _projecting(
        self, layer: str, stage: str, path: str, edit: Callable, foreign: Callable | None
    ) -> Callable[[_Forward, Tensor], Tensor]:
        def project(now: _Forward, x: Tensor) -> Tensor:
            if foreign is not None:
                return edit(now.edited(stage, x), layer, x, foreign)
            kept = now.kept if now.kept is not None and now.owns(x) else None
            output = None if kept is None else kept.get(path)
            if output is None:
                output = edit(now.edited(stage, x), layer, x, now.projection(path))
                if kept is not None:
                    kept.put(path, output)
            return output

        return project


class _Forward:
    """What the layers of one forward share: each encoding that they receive, as it is edited in each stage.

    family: the model's where the forward projects the context first, None where layers receive the context itself.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: Family | None,
        context: Tensor,
        concepts: Mapping[str, ConceptSet],
        locks: list[KeyLock],
        run: Run | None,
    ):
        self.context, self.kept = context, None
        self.regions: Regions | None = None  # where some concepts have masks
        self.model, self._family, self._concepts = model, family, concepts
        self._own = context if family is None else None  # what layers receive of the context
        self._locks = locks if any(lock.cond is not None for lock in locks) else []
        self._edited: list[EditedEncoding] = []
        self._projections: dict[str, Callable[[Tensor], Tensor]] = {}
        if run is not None:
            self._projections = run.projections(model)
            weights = getattr(model, "current_weight_patches_uuid", None)
            made_of = model, weights, *concepts.values(), *(lock.identity for lock in self._locks)
            self.kept = run.keys_and_values(context, made_of, self._locks)

    def projection(self, path: str) -> Callable[[Tensor], Tensor]:
        """What the module at a path of the model does by itself, without any patch."""
        found = self._projections.get(path)
        if found is None:
            module = comfy.utils.get_attr(self.model, path)
            found = self._projections[path] = partial(type(module).forward, module)
        return found

    def edited(self, stage: str, x: Tensor) -> EditedEncoding:
        """The edit of what a layer received, which is the context unless another node has changed that."""
        concepts = self._concepts[stage]
        # a kept edit holds its source, so that no other tensor is in the same place
        found = next((edited for edited in self._edited if edited.concepts is concepts and edited.is_of(x)), None)
        if found is None:
            if len(self._edited) == _MANY_ENCODINGS:
                self._edited.pop(0)
            found = EditedEncoding(concepts, x, self._keys(x), self._words(x))
            self._edited.append(found)
        return found

    def owns(self, x: Tensor) -> bool:
        """Whether ``x`` is what layers receive of the context: itself, or its projection."""
        if self._own is not None and is_same(x, self._own):
            return True
        if self._family is None:
            return False
        received = self._received
        if x.shape != received.shape or (x - received).abs().amax() > _ROUNDING * received.abs().amax():
            return False
        self._own = x
        return True

    @cached_property
    def _received(self) -> Tensor:
        """What layers receive of the context, made once in a run where that can be kept."""
        if self.kept is not None and self.kept.received is not None:
            return self.kept.received
        received = self._family.received(self.model.diffusion_model, self.context, {})
        if self.kept is not None:
            self.kept.received = received
        return received

    def _keys(self, x: Tensor) -> Tensor | None:
        if not self._locks:
            return None
        return (key_context if self.owns(x) else found_keys)(x, self._locks)

    def _words(self, x: Tensor) -> Tensor | None:
        """Where words are, of padding that was zero ahead of the projection."""
        if self._family is None or not self._family.zero_padded or not self.owns(x):
            return None
        return self.context.any(-1)
