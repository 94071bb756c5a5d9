"""Teaches individuals that no scene shows by Perfusion, and asks for them elsewhere: how near is it to the oracle?

    bash scripts/env.sh python -m benchmarks.world.teach [--individuals 12] [--set steps=800] [--sheet OUT.png]

Five photos with masks, each in another place; then pictures in the three places left. A picture counts when the
individual is the nearest among 101 of its class to the reader. Beside it the oracle: pictures by its true name.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perfusion_core import (
    Concept,
    ConceptSet,
    Covariance,
    EncodedPrompts,
    Training,
    TrainingSettings,
    Wiring,
    cross_attention_layers,
    draw_timesteps,
    masked_mse,
)
from perfusion_core.captions import TEMPLATES

from .individuals import CLASSES, Individual, individual
from .networks import END, TextEncoder, Vocabulary, as_pictures, make_unet, precision, shortened
from .oracle import verdict
from .places import PLACES
from .pool import FIRST, Pool, encoded, planned
from .reader import trained_reader
from .sampling import ALPHAS, TIMESTEPS, encode, paint
from .scenes import NAMES, Scene, caption, scene, sheet
from .train_autoencoder import trained_vae
from .train_diffusion import newest

TRIGGER = NAMES[0]
PHOTOS, CAPTIONS = 5, 4000
SETTINGS = TrainingSettings(batch_size=4, accumulation=1, learning_rate_values=0.02, key_freedom=1.0)
OUTSIDE, MIN_TIMESTEP = 0.3, 250  # what counts off the masks; the least timestep that is trained on


class Model:
    """The networks as far as they are trained, frozen: the text encoder fp32, the others in whatever is fast."""

    zero_padded = False  # whether a norm behind the keys makes whole ones of zeros (see ConceptSet)

    def __init__(self) -> None:
        self.vae, vocabulary = trained_vae(), Vocabulary()
        self.pool = Pool(self.vae, vocabulary)
        self.text, self.unet = TextEncoder(vocabulary), make_unet()
        trained, self.steps = newest()
        for model, weights in zip((self.text, self.unet), trained, strict=True):
            model.load_state_dict(weights)
            model.eval().requires_grad_(False)
        self.unet.to(precision())

    def encode(self, sentences: Sequence[str], new: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encodings (sentences, 77, d), and where TRIGGER stands, (sentences,). new: {name: its embedding (d,)}."""
        rows = self.text.vocabulary.rows(sentences)
        words = self.text.table(rows.clamp_min(0))
        for name, embedding in new.items():
            words = torch.where((rows == -1 - NAMES.index(name))[..., None], embedding, words)
        return self.text.encode(words, (rows != END).sum(1)), (rows == -1).float().argmax(1)

    def wiring(self, concepts: ConceptSet | None = None) -> Wiring:
        return Wiring(self.unet, cross_attention_layers(self.unet), concepts)

    def covariance(self) -> Covariance:
        """Of the encodings of captions' words, names included."""
        covariance, random = Covariance(self.text.table.embedding_dim), np.random.default_rng(12)
        for first in range(0, CAPTIONS, 200):
            plans = [planned(FIRST + first + i) for i in range(200)]
            texts = [caption(*plan, random) for plan in plans]
            with torch.no_grad():
                encodings = encode(self.text, texts, [things for things, _, _ in plans])
            covariance.update(encodings, encodings.abs().amax(-1) > 0)
        return covariance

    def loss(
        self, unet, latents: Tensor, masks: Tensor, encodings: Tensor, generator: torch.Generator,
        outside: float = OUTSIDE, least: int = MIN_TIMESTEP, wiring: Wiring | None = None,
    ) -> Tensor:  # fmt: skip
        """The masked error of the velocity, a scalar, at timesteps from ``least`` on; encodings (batch, 77, d)."""
        context, options = shortened(encodings.to(precision()))
        if wiring is not None:
            wiring.prepare(context)
        timesteps = draw_timesteps(len(latents), TIMESTEPS, generator, least)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = ALPHAS[timesteps][:, None, None, None]
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).to(precision())
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        predicted = unet(noisy, timesteps, context, transformer_options=options).float()
        return masked_mse(predicted, velocity, masks, outside)

    def latents(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """(n, 16, 12, 12), of mean 0 and std 1, of pictures (96, 96, 3), uint8."""
        return self.pool.normal(encoded(self.vae, np.stack(pictures)))

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> np.ndarray:
        return as_pictures(self.vae.decode((latents * self.pool.std + self.pool.mean).to(precision())))


class Photos:
    """An individual's photos, as perfusion_core trains on them."""

    def __init__(
        self, model: Model, scenes: Sequence[Scene], outside: float = OUTSIDE, least: int = MIN_TIMESTEP
    ):  # fmt: skip
        self.model, self.kind, self._chosen = model, scenes[0].things[0].kind, (outside, least)
        self.latents = model.latents([shown.image for shown in scenes])
        masks = torch.from_numpy(np.stack([shown.masks[0] for shown in scenes])).float()[:, None] / 255
        self.masks = F.avg_pool2d(masks, 8)
        self.templates = [list(range(len(TEMPLATES)))] * len(scenes)
        self.wiring, self.zero_padded = model.wiring(), model.zero_padded

    def superclass_embeddings(self) -> dict[str, Tensor]:
        (row,) = self.model.text.vocabulary.of(self.kind)
        return {"l": self.model.text.table.weight[row].clone()}

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        sentences = [TEMPLATES[template].replace("{}", TRIGGER) for template in templates]
        return EncodedPrompts(*self.model.encode(sentences, {TRIGGER: token_embeddings["l"]}))

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        latents, masks = self.latents[photos], self.masks[photos]
        given = latents, masks, prompts.encodings, generator
        return self.model.loss(self.model.unet, *given, *self._chosen, self.wiring)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--individuals", type=int, default=12)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of perfusion_core's settings")
    parser.add_argument("--sheet", type=Path, help="two photos of each individual, and under them every way's picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model, reader, settings = Model(), trained_reader(), changed(SETTINGS, options.set)
    print(f"the model after {model.steps} steps; {settings}", flush=True)
    inverse = model.covariance().inverse().float()
    random, asked, photos, shown = np.random.default_rng(13), [], [], {}
    for index in range(options.individuals):
        one = individual(random, CLASSES[index % len(CLASSES)], held_out=True)
        places = random.permutation(list(PLACES))
        scenes = [scene(i, [one], place, "") for i, place in enumerate(places[:PHOTOS])]
        concept = taught(trainee := Photos(model, scenes), inverse, settings)
        photos += [trainee.latents[:2]]
        asked += [(one, place) for place in places[PHOTOS:]]
        for way, latents in painted(model, one, places[PHOTOS:], concept, options.betas, index).items():
            shown.setdefault(way, []).append(latents)
    for way, parts in shown.items():
        shares = verdict(reader, model.pictures(torch.cat(parts)), asked)
        print(f"{way:12}", *(f"{name} {share:4.0%}" for name, share in shares.items()), flush=True)
    if options.sheet:
        rows = [[part[k] for part in photos] for k in (0, 1)] + [
            [part[0] for part in parts] for parts in shown.values()
        ]
        pictures = [picture for row in rows for picture in model.pictures(torch.stack(row))]
        sheet(pictures, options.individuals, zoom=1).save(options.sheet)


def taught(photos: Photos, inverse: Tensor, settings: TrainingSettings) -> Concept:
    training = Training(photos, inverse, TRIGGER, photos.kind, "demo", settings)
    with photos.wiring:
        losses = [training.step() for _ in range(settings.steps)]
    print(f"{photos.kind}: loss {np.mean(losses[:50]):.4f} to {np.mean(losses[-50:]):.4f}", flush=True)
    return training.concept()


def painted(
    model: Model, one: Individual, places: Sequence[str], concept: Concept, betas: Sequence[float], seed: int
) -> dict[str, Tensor]:
    """{way: latents of the individual in each place}."""
    prompts = [f"a photo of {TRIGGER} {PLACES[place]}" for place in places]
    untold = encode(model.text, [""] * len(prompts)).to(precision())
    named = encode(model.text, prompts, [(one,)] * len(prompts)).to(precision())
    own = model.encode(prompts, {TRIGGER: concept.token_embeddings["l"]})[0].to(precision())
    genuine = [scene(100 + i, [one], place, "").image for i, place in enumerate(places)]
    ways = {
        "genuine": model.latents(genuine),
        "by its name": paint(model.unet, named, untold, seed),
    }
    for beta in betas:
        with model.wiring(ConceptSet([concept], beta)) as wiring:
            ways[f"beta {beta}"] = paint(model.unet, own, untold, seed, wiring=wiring)
    return ways


def changed(settings: TrainingSettings, changes: Sequence[str]) -> TrainingSettings:
    """Settings with ``name=value`` put in place of their own."""
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(settings)}
    given = dict(change.split("=", 1) for change in changes)
    return replace(settings, **{name: kinds[name](value) for name, value in given.items()})


if __name__ == "__main__":
    main()
