"""A model with the paper's edit in the forward of its own projections, to compare whole pictures with.

It shares nothing with the model under test: weights of its own, no patches, no wrappers, and what keys see under a lock
is found by comparing whole encodings.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from comfyui_perfusion.nodes.host.model import apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import ConceptUse
from torch import Tensor

from test_model import NEGATIVE, PROMPT, encode, expected, sample, two_uses

TOY_PROMPT, CUP_PROMPT = "a <my-toy>", "a (<my-cup>:1.2) in the snow"
Pairs = Sequence[tuple[Tensor, Tensor]]  # encodings (1, tokens, d) with what the key path sees in place of each


class World:
    """A model with two concepts, the toy's keys locked all the way and the cup's half, and its reference."""

    def __init__(self, model, clip, reference):
        toy, cup = two_uses(model, clip)
        self.uses = [toy.replace(key_lock=1.0), cup.replace(key_lock=0.5)]
        self.model, self.reference, self.plain_clip = model, reference, clip
        self.clip = apply_to_clip(clip, self.uses)
        prompts = PROMPT, TOY_PROMPT, CUP_PROMPT, NEGATIVE
        self.positive, self.toy, self.cup, self.negative = (encode(self.clip, prompt) for prompt in prompts)
        self.locked = [(encode(self.clip, prompt)[0][0], self.keys(prompt, self.clip)) for prompt in prompts[:3]]

    def afresh(self) -> World:
        """The same for another test, with what tests change made anew; the encodings take long."""
        world = copy.copy(self)
        world.patched, world.clip = apply_to_model(self.model, self.uses), apply_to_clip(self.plain_clip, self.uses)
        edit_weights(self.reference, self.uses, self.locked)
        return world

    @staticmethod
    def keys(prompt: str, clip) -> Tensor:
        """What keys see of a prompt: half way from the toy's superclass word alone to both concepts'."""
        toy, both = (encode(clip, text)[0][0] for text in locked_prompts(prompt))
        return 0.5 * toy + 0.5 * both

    def paint(self, model, **settings) -> Tensor:
        return sample(model, self.positive, self.negative, **settings)


def locked_prompts(prompt: str) -> tuple[str, str]:
    """The prompt with the toy's superclass word, and with both."""
    toy = prompt.replace("<my-toy>", "teddy")
    return toy, toy.replace("<my-cup>", "cup")


def edit_weights(model, uses: Sequence[ConceptUse], locked: Pairs) -> None:
    """Makes to_k and to_v of the MODEL's torch modules compute the output-space formula; weights are read as they are
    when they run, with whatever other nodes have merged into them."""
    for layer, attention in cross_attentions(model).items():

        def keys_and_values(x: Tensor, layer=layer, attention=attention) -> tuple[Tensor, Tensor]:
            seen = torch.stack([_seen_by_keys(row, locked) for row in x])
            return expected(x, seen, attention.to_k.weight.float(), attention.to_v.weight.float(), uses, layer)

        attention.to_k.forward = lambda x, of=keys_and_values: of(x)[0].to(x.dtype)
        attention.to_v.forward = lambda x, of=keys_and_values: of(x)[1].to(x.dtype)


def _seen_by_keys(row: Tensor, locked: Pairs) -> Tensor:
    """What the key path sees in place of one row of the context, (tokens, d)."""
    for encoding, keys in locked:
        times, rest = divmod(len(row), encoding.shape[1])  # the host pads by repetition
        if not rest and torch.equal(row, encoding[0].to(row).repeat(times, 1)):
            return keys[0].to(row).repeat(times, 1)
    return row


def close(picture: Tensor, other: Tensor) -> bool:
    return ((picture - other).abs().max() / other.abs().max()).item() < 1e-4
