"""The demo model in pure torch, and whom it is to learn. Faster than the host, and open to every method."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.world.export import FILE, as_it_was_trained, read
from benchmarks.world.individuals import CLASSES, Individual, individual
from benchmarks.world.networks import TextEncoder, Vocabulary, as_pictures, make_unet, make_vae, precision
from benchmarks.world.places import PLACES
from benchmarks.world.pool import FIRST, encoded, planned
from benchmarks.world.sampling import paint
from benchmarks.world.scenes import NAMES, Scene, caption, scene
from benchmarks.world.teach import CAPTIONS, PHOTOS, Model
from perfusion_core import Covariance, Wiring, cross_attention_layers

STEPS, GUIDANCE = 12, 2.5
STRONG_GUIDANCE = 5.0  # for what several things need, and what prompts name


class Painter(Model):
    """The networks of a demo model's file, frozen. The text encoder is fp32, the others in whatever is fast."""

    def __init__(self, file: Path = FILE):
        kept, vocabulary = load_file(file), Vocabulary()
        weights = read(kept)
        weights["text"] = as_it_was_trained(weights, kept["tokens"].tolist(), vocabulary.ids)
        self.text, self.unet, self.vae = TextEncoder(vocabulary), make_unet(), make_vae()
        for name, model in (("text", self.text), ("unet", self.unet), ("vae", self.vae)):
            model.load_state_dict(weights[name])
            model.eval().requires_grad_(False)
        self.unet.to(precision())
        self.vae.to(precision())

    guidance = GUIDANCE

    def strong(self) -> Painter:
        """The same with strong guidance."""
        other = copy.copy(self)
        other.guidance = STRONG_GUIDANCE
        return other

    def embedding(self, word: str) -> Tensor:
        """(d,), the input embedding of a word of one token."""
        (row,) = self.text.vocabulary.of(word)
        return self.text.table.weight[row].clone()

    def adapted(self) -> list[str]:
        """The names of the linear layers that a LoRA changes."""
        layers = cross_attention_layers(self.unet).values()
        return [name for projections in layers for name in projections]

    @cached_property
    def inverse_covariance(self) -> Tensor:
        """C^-1, (d, d), of the words of the world's captions."""
        covariance, random = Covariance(self.text.table.embedding_dim), np.random.default_rng(12)
        for first in range(0, CAPTIONS, 200):
            texts = []
            for number in range(first, first + 200):
                things, place, style = planned(FIRST + number)
                text = caption(things, place, style, random)
                for name, one in zip(NAMES, things, strict=False):
                    text = text.replace(name, one.kind)
                texts.append(text)
            encodings, _ = self.encode(texts, {})
            covariance.update(encodings, encodings.abs().amax(-1) > 0)
        return covariance.inverse().float()

    def paint(self, encodings: Tensor, seed: int, wiring: Wiring | None = None, keys: Tensor | None = None) -> Tensor:
        """Latents (n, 16, 12, 12) of encodings (n, 77, d), from noises that the seed says.

        wiring: an open one, which edits the prompts and the negative prompt; keys: what its keys see instead.
        """
        negative = self.encode([""] * len(encodings), {})[0].to(precision())
        keys = None if keys is None else keys.to(precision())
        return paint(self.unet, encodings.to(precision()), negative, seed, STEPS, self.guidance, wiring, keys)

    def latents(self, pictures: Sequence[np.ndarray]) -> Tensor:
        return encoded(self.vae, np.stack(pictures))

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> np.ndarray:
        """(n, 96, 96, 3)."""
        return as_pictures(self.vae.decode(latents.to(precision())))


@dataclass(frozen=True)
class Task:
    """An individual to learn, which no training scene shows: five photos of it, and places where it is not in these."""

    number: int
    one: Individual
    photos: tuple[Scene, ...]
    places: tuple[str, ...]

    @property
    def trigger(self) -> str:
        return NAMES[0]

    @property
    def superclass(self) -> str:
        return self.one.kind


def task(number: int) -> Task:
    random = np.random.default_rng((31, number))
    one = individual(random, CLASSES[number % len(CLASSES)], held_out=True)
    places = random.permutation(list(PLACES)).tolist()
    photos = [scene(100 * number + i, [one], place, "") for i, place in enumerate(places[:PHOTOS])]
    return Task(number, one, tuple(photos), tuple(places[PHOTOS:]))


def filled(sentence: str, words: Sequence[str] | Mapping[str, Tensor]) -> str:
    """With the words in place of its {}, one after the other."""
    for word in words:
        sentence = sentence.replace("{}", word, 1)
    return sentence
