"""The demo model in pure torch: encodes sentences, denoises, paints. Faster than the host, and open to every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export import read_weights
from parts import OTHER, TextEncoder, Vocabulary, as_input, as_pictures, make_unet, make_vae, word_counts
from perfusion_core import EncodedPrompts, Wiring, cross_attention_layers, draw_timesteps, masked_mse, paste_subject
from perfusion_core.captions import TEMPLATES
from scenes import BACKGROUNDS, CONCEPTS, PHOTO_BACKGROUNDS, TUNING_CONCEPTS, Scene, draw_background, photos
from train_autoencoder import moments
from train_diffusion import ALPHAS, TIMESTEPS

SAMPLING_STEPS, GUIDANCE = 15, 3.5
PASTED, PASTED_ON = 100, 32  # pictures made of a concept's photos, and the empty backgrounds for them
_SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()


class Painter:
    """The networks, frozen. The text encoder is fp32, the UNet and the autoencoder bf16."""

    def __init__(self) -> None:
        weights = read_weights()
        self.vocabulary = Vocabulary()
        self.text, self.unet, self.vae = TextEncoder(len(self.vocabulary)), make_unet(), make_vae()
        for name, model in (("text", self.text), ("unet", self.unet), ("vae", self.vae)):
            model.load_state_dict(weights[name])
            model.eval().requires_grad_(False)
        self.unet.bfloat16()
        self.vae.bfloat16()

    def embedding(self, word: str) -> Tensor:
        """(d,), the input embedding of a word of one token."""
        (row,) = self.vocabulary.row(word)
        return self.text.table.weight[row].clone()

    def encode(self, sentences: Sequence[str], new: Mapping[str, Tensor] = {}) -> tuple[Tensor, Tensor]:
        """Encodings (sentences, 77, d), and where the first of the new words stands in each, (sentences,), or 0.

        new: {word: its input embedding (d,)}.
        """
        known = [_without(new, sentence) for sentence in sentences]
        rows = self.vocabulary.rows(known)
        embeddings = self.text.table(rows)
        first = [0] * len(sentences)
        for i, sentence in enumerate(sentences):
            before = known[i].split()
            for j, word in reversed(list(enumerate(sentence.split()))):
                if word in new:
                    first[i] = 1 + sum(len(self.vocabulary.row(other)) for other in before[:j])
                    place = torch.tensor(i), torch.tensor(first[i])
                    embeddings = torch.index_put(embeddings, place, new[word])
        return self.text.encode(embeddings, word_counts(rows)), torch.tensor(first)

    def noise_loss(
        self,
        unet,
        latents: Tensor,
        masks: Tensor | None,
        encoding: Tensor,
        generator: torch.Generator,
        timesteps: Tensor | None = None,
    ) -> Tensor:
        """The masked error of the predicted noise, a scalar; encoding (batch, 77, d) in the UNet's own dtype.

        timesteps: (batch,), or else drawn from all of them.
        """
        if timesteps is None:
            timesteps = torch.randint(TIMESTEPS, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = ALPHAS[timesteps][:, None, None, None]
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).bfloat16()
        return masked_mse(unet(noisy, timesteps, encoding, transformer_options={}).float(), noise, masks)

    @torch.no_grad()
    def paint(
        self,
        encodings: Tensor,
        noise: Tensor,
        wiring: Wiring | None = None,
        key_encodings: Tensor | None = None,
        unet=None,
    ) -> Tensor:
        """Pictures (n, 64, 64, 3) in 0..1 of encodings (n, 77, d) from noise (n, 4, 16, 16), by DPM-Solver++(2M).

        wiring: an open one, which edits the prompts and the negative prompt; key_encodings: what its keys see instead.
        """
        unet = unet or self.unet
        negative = self.encode([""])[0].expand(len(encodings), -1, -1)
        both = torch.cat([encodings, negative]).bfloat16()
        if wiring is not None:
            keys = None if key_encodings is None else torch.cat([key_encodings, negative]).bfloat16()
            wiring.prepare(both, keys)
        times = torch.linspace(TIMESTEPS - 1, 0, SAMPLING_STEPS + 1).round().long()[:-1]
        sigmas = [*_SIGMAS[times], torch.tensor(0.0)]
        x, before, last_step = noise * sigmas[0], None, None
        for i, time in enumerate(times):
            sigma, then = sigmas[i], sigmas[i + 1]
            doubled = (torch.cat([x, x]) / (1 + sigma**2).sqrt()).bfloat16()
            positive, plain = unet(doubled, time.expand(len(doubled)), both, transformer_options={}).float().chunk(2)
            denoised = x - sigma * (plain + GUIDANCE * (positive - plain))
            step = (sigma / then).log() if then else torch.tensor(torch.inf)
            blended = denoised
            if before is not None and then:
                blended = denoised + (denoised - before) * step / (2 * last_step)
            x = (then / sigma) * x - torch.expm1(-step) * blended
            before, last_step = denoised, step
        return as_pictures(self.vae.decode(x.bfloat16()).float())

    @torch.no_grad()
    def latents(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """Latents (n, 4, 16, 16) and masks (n, 1, 16, 16)."""
        images = as_input([scene.image for scene in scenes])
        masks = torch.from_numpy(np.stack([scene.mask for scene in scenes]))[:, None]
        return moments(self.vae, images.bfloat16())[0].float(), F.avg_pool2d(masks, 4)


def _without(new: Mapping[str, Tensor], sentence: str) -> str:
    return " ".join(OTHER if word in new else word for word in sentence.split())


@dataclass(frozen=True)
class Task:
    """A concept to learn: five photos of it, its superclass, and the trigger."""

    name: str
    superclass: str
    photos: tuple[Scene, ...]

    @property
    def trigger(self) -> str:
        return f"<{self.name}>"


def task(name: str, count: int = len(PHOTO_BACKGROUNDS)) -> Task:
    _, superclass = {**CONCEPTS, **TUNING_CONCEPTS}[name]
    return Task(name, superclass, tuple(photos(name, count)))


def pasted(photos: Sequence[Scene]) -> tuple[Scene, ...]:
    """What *Perfusion Paste Subject* makes of photos: the subject elsewhere on other backgrounds; mirrored, too."""
    kinds = [BACKGROUNDS[i % len(BACKGROUNDS)] for i in range(PASTED_ON)]
    empty = [torch.from_numpy(draw_background(kind, np.random.default_rng((8, i)))) for i, kind in enumerate(kinds)]
    made, generator = [], torch.Generator().manual_seed(0)
    for i in range(PASTED):
        scene = photos[i % len(photos)]
        background = empty[int(torch.randint(PASTED_ON, (), generator=generator))]
        picture, mask = paste_subject(
            torch.from_numpy(scene.image), torch.from_numpy(scene.mask), background, generator
        )
        for image, where in ((picture, mask), (picture.flip(1), mask.flip(1))):
            made.append(replace(scene, image=image.numpy(), mask=where.numpy()))
    return tuple(made)


class PainterTrainee:
    """The demo model and photos, as perfusion_core trains them, from ``min_timestep`` on.

    outside: what counts off the masks, 0..1.
    """

    def __init__(self, painter: Painter, task: Task, outside: float, min_timestep: int):
        self.painter, self.task, self._min_timestep = painter, task, min_timestep
        self._latents, masks = painter.latents(task.photos)
        self._masks = masks.clamp_min(outside)
        self.templates = [list(range(len(TEMPLATES)))] * len(task.photos)
        self.wiring = Wiring(painter.unet, cross_attention_layers(painter.unet))

    def superclass_embeddings(self) -> dict[str, Tensor]:
        return {"l": self.painter.embedding(self.task.superclass)}

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        sentences = [TEMPLATES[template].replace("{}", self.task.trigger) for template in templates]
        return EncodedPrompts(*self.painter.encode(sentences, {self.task.trigger: token_embeddings["l"]}))

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        context = prompts.encodings.bfloat16()
        self.wiring.prepare(context)
        latents, masks = self._latents[photos], self._masks[photos]
        timesteps = draw_timesteps(len(photos), TIMESTEPS, generator, self._min_timestep)
        return self.painter.noise_loss(self.painter.unet, latents, masks, context, generator, timesteps)
