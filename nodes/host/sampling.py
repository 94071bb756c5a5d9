"""Pictures sampled inside a node, as the host's text encoding, KSampler and VAE decoding in a row make them."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.sample
import torch
from torch import Tensor

from .model import default_resolution


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled; ``sampler`` and ``scheduler`` are the host's names, ``resolution`` pixels on a side,
    0 what the model is made for."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    resolution: int = 0

    def paint(self, model, clip, vae, text: str, negative: str, seed: int, count: int = 1) -> Tensor:
        """IMAGE (count, height, width, 3) in 0..1 of a prompt, on the CPU.

        Raises ValueError where the checkpoint had no text encoder or no VAE, and the host's cancel.
        """
        if clip is None or vae is None:
            missing, loader = ("text encoder", "Load CLIP") if clip is None else ("VAE", "Load VAE")
            raise ValueError(f"There is no {missing}: this checkpoint has none. Load one with {loader}.")
        conditionings = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in (text, negative)]
        return decoded(vae, self.sample(model, vae, *conditionings, seed, count)).cpu()

    def sample(self, model, vae, positive, negative, seed: int, count: int = 1) -> Tensor:
        """LATENT samples of the host's conditionings, (count, channels, height, width), or of one frame each."""
        side = (self.resolution or default_resolution(model)) // vae.spacial_compression_encode()
        empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(count, 4, side, side))
        noise = comfy.sample.prepare_noise(empty, seed)
        return comfy.sample.sample(
            model, noise, self.steps, self.cfg, self.sampler, self.scheduler, positive, negative, empty,
            disable_pbar=True, seed=seed,
        )  # fmt: skip


def decoded(vae, latents: Tensor) -> Tensor:
    """IMAGE of latents; of those with frames, which follow one another then, as the host's node has it."""
    return vae.decode(latents).flatten(0, -4)
