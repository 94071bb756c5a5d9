"""Where in the picture words are looked at, recorded while ComfyUI samples.

q and k are read where the layers' projections return them, by object patches of to_q.forward and to_k.forward: edits
of keys, LoRA and other nodes' attention patches are in them, and the picture stays what it was, bit for bit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from einops import rearrange, reduce
from torch import Tensor

from .model import CrossAttention, apply_to_model, cross_attentions
from .regions import POSITIVE
from .sampling import Sampling
from .text import concept_uses, in_superclass_words, trigger_places
from .uses import KEY


class AttentionMaps:
    """How much of its attention every spot of the pictures gives to words, while a MODEL samples them.

    A map is the softmax over all tokens of q·k, added up over the word's tokens and averaged over heads, layers and
    the model's evaluations, of the positive prompt only.
    """

    def __init__(self, places: Mapping[str, Sequence[int]], tokens: int):
        """places: {word: its positions in the encoding of the positive prompt}, which has so many ``tokens``."""
        self._places, self._tokens = places, tokens
        self._sums: dict[int, Tensor] = {}  # by the side of a layer's square: (words, batch, side * side)
        self._count = 0
        self._running = threading.local()

    def watch(self, model):
        """A clone of the MODEL that is recorded here; its pictures have to be square."""
        model = model.clone()
        for attention in cross_attentions(model).values():
            for projection in ("to_q", "to_k"):
                name = f"{attention.path(projection)}.forward"
                patch = self._forward(attention, projection, model.object_patches.get(name))
                model.add_object_patch(name, patch)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{KEY}_attention", self._apply_model)
        return model

    def of_side(self, side: int) -> dict[str, Tensor]:
        """{word: (batch, side, side) in 0..1, on the CPU}."""
        maps = torch.zeros(())
        for small, sums in self._sums.items():
            square = rearrange((sums / self._count).cpu(), "words batch (h w) -> words batch h w", h=small)
            maps = maps + torch.nn.functional.interpolate(square, size=(side, side), mode="bilinear")
        return dict(zip(self._places, maps, strict=True))

    def _apply_model(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs  # noqa: B006
    ):  # fmt: skip
        kinds = transformer_options["cond_or_uncond"]
        rows = torch.tensor([kind == POSITIVE for kind in kinds]).repeat_interleave(x.shape[0] // len(kinds))
        words = kwargs.get("attention_mask")
        self._running.forward = _Forward(executor.class_obj, rows.nonzero()[:, 0].tolist(), x.shape[0], words)
        try:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            del self._running.forward

    def _forward(self, attention: CrossAttention, projection: str, foreign: Callable | None) -> Callable:
        """The forward of one projection; ``foreign`` is another patch of it, which then does the projecting."""
        name = attention.path(projection)

        @torch.compiler.disable
        def forward(x: Tensor) -> Tensor:
            running = self._running.forward
            module = comfy.utils.get_attr(running.model, name)
            projected = foreign(x) if foreign is not None else type(module).forward(module, x)
            if projection == "to_q":
                running.queries = projected
            elif running.rows:
                self._add(running, attention.family.by_text(projected, running.batch)[running.rows], attention)
            return projected

        return forward

    def _add(self, running: _Forward, keys: Tensor, attention: CrossAttention) -> None:
        words = None if running.words is None else running.words[running.rows]
        looks = attention.looks(running.model, running.queries[running.rows], keys, words)
        # the host repeats a prompt that is shorter than the negative
        repeated = [0] if attention.family.zero_padded else range(0, looks.shape[-1], self._tokens)
        shares = torch.stack([
            reduce(looks[..., [place + start for start in repeated for place in places]].sum(-1),
                   "batch heads spot -> batch spot", "mean")
            for places in self._places.values()
        ])  # (words, batch, spots)  # fmt: skip
        side = math.isqrt(shares.shape[-1])
        self._sums[side] = self._sums.get(side, 0) + shares
        self._count += 1


@dataclass
class _Forward:
    """One evaluation of a model: which rows of its batch are the positive prompt's, and the last layer's queries.

    words: (batch, tokens), 0 where attention leaves padding out.
    """

    model: torch.nn.Module
    rows: list[int]
    batch: int
    words: Tensor | None
    queries: Tensor | None = None


def paint_watched(
    model, clip, vae, sampling: Sampling, text: str, negative: str, seed: int, count: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """The pictures of a prompt, IMAGE (count, side, side, 3), and {trigger in it: its map (count, side, side)}."""
    tokens = clip.tokenize(text)
    maps = AttentionMaps(trigger_places(tokens), sum(map(len, next(iter(tokens.values())))))
    pictures = sampling.paint(maps.watch(model), clip, vae, text, negative, seed, count)
    return pictures, maps.of_side(pictures.shape[1])


def check_watchable(model, clip, text: str) -> None:
    """Raises ValueError when there is no trigger in the text, or one that the MODEL does not know."""
    cross_attentions(model)  # raises for a model without text cross-attention
    known = [use.concept.trigger for use in concept_uses(clip)]
    found = trigger_places(clip.tokenize(text))
    if not found:
        raise ValueError(f"There is no trigger in the prompt. This CLIP knows {', '.join(known)}: write one of them.")
    in_model = {use.concept.trigger.lower() for use in model.get_attachment(KEY) or ()}
    if foreign := [trigger for trigger in known if trigger.lower() in found.keys() - in_model]:
        raise ValueError(
            f"The CLIP knows {foreign[0]}, the model does not: connect MODEL and CLIP from the same Perfusion node."
        )


def without_concepts(model, clip):
    """The MODEL and the CLIP without Perfusion; this CLIP reads each trigger as its concept's superclass words."""
    uses = model.get_attachment(KEY) or ()
    return apply_to_model(model, [use.replace(strength=0.0) for use in uses]), in_superclass_words(clip)
