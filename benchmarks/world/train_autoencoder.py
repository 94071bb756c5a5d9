"""Trains the demo model's autoencoder: 64x64x3 pictures to 16x16x4 latents and back.

    bash scripts/env.sh python benchmarks/world/train_autoencoder.py FOLDER            # then, while the rest trains:
    bash scripts/env.sh python benchmarks/world/train_autoencoder.py FOLDER --decoder  # the decoder alone, further

Goes on where it was left. The same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from half_precision import HalfPrecision
from parts import as_input, as_pictures, initialise, make_vae
from scenes import draw_scene, sheet

# steps, batch, learning rate at the start, which falls to 0
CYCLES = ((1000, 32, 2e-3), (1000, 16, 1e-3))
DECODER_CYCLES = ((1200, 16, 1.5e-3),)
SAVE_EVERY = 100
KL = 1e-5  # weight of the divergence, per latent number


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--decoder", action="store_true", help="train the decoder further, for the latents as they are")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    if options.decoder:
        vae = trained_vae(options.folder, decoder=False).requires_grad_(False)
        parts = [vae.decoder.requires_grad_(True), vae.post_quant_conv.requires_grad_(True)]
        vae.bfloat16()
        run(parts, DECODER_CYCLES, lambda images: decoder_loss(vae, images), options.folder / "decoder.pt")
    else:
        vae = make_vae()
        initialise(vae)
        run([vae], CYCLES, lambda images: reconstruction_loss(vae, images), options.folder / "autoencoder.pt")
    report(trained_vae(options.folder), options.folder / "autoencoder.png")


def run(
    models: Sequence, cycles: Sequence[tuple], loss_of: Callable[[Tensor], tuple[Tensor, Tensor]], path: Path
) -> None:
    training = HalfPrecision(models, rate=1.0, average=0.995)
    if path.exists():
        training.load(path)
    done, start = training.steps, time.monotonic()
    plan = [(step / steps, batch, rate) for steps, batch, rate in cycles for step in range(steps)]
    for step, (progress, batch, rate) in list(enumerate(plan))[done:]:
        torch.manual_seed(step)
        loss, error = loss_of(pictures(step * 32, batch))
        training.step(loss, rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress)))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == len(plan):
            seconds = (time.monotonic() - start) / (step + 1 - done)
            print(f"step {step + 1}  L1 {error.item():.4f}  {seconds:.3f} s/step", flush=True)
            training.save(path)


def trained_vae(folder: Path, decoder: bool = True):
    """As far as it is trained; ``decoder``: with the decoder that was trained further, if there is one."""
    vae = make_vae()
    vae.load_state_dict(torch.load(folder / "autoencoder.pt", weights_only=True)["models"][0])
    if decoder and (folder / "decoder.pt").exists():
        states = torch.load(folder / "decoder.pt", weights_only=True)["models"]
        for part, state in zip((vae.decoder, vae.post_quant_conv), states, strict=True):
            part.load_state_dict(state)
    return vae


@torch.no_grad()
def report(vae, path: Path) -> None:
    images = pictures(10**8, 64)
    latents = moments(vae, images)[0]
    back = vae.decode(latents)
    print(f"latents: std {latents.std():.3f}, mean {latents.mean():.3f}; L1 {F.l1_loss(back, images):.4f}; "
          f"PSNR {-10 * ((back - images) / 2).square().mean().log10():.2f} dB")  # fmt: skip
    sheet(list(as_pictures(torch.cat([images[:16], back[:16]])).numpy()), 16).save(path)


def pictures(first: int, count: int) -> Tensor:
    """(count, 3, 64, 64) in -1..1, scenes of the world by their numbers."""
    return as_input([draw_scene(np.random.default_rng((1, first + i))).image for i in range(count)])


def moments(vae, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, (batch, 4, 16, 16) each."""
    mean, log_variance = vae.quant_conv(vae.encoder(images)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decoder_loss(vae, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        latent = moments(vae, images.bfloat16())[0].float()
        latent += 0.1 * latent.std() * torch.randn_like(latent)  # sampled latents are not quite clean
    back = vae.decoder(vae.post_quant_conv(latent.bfloat16())).float()
    error = F.l1_loss(back, images)
    return error + F.mse_loss(back, images), error


def reconstruction_loss(vae, images: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = (part.float() for part in moments(vae, images.bfloat16()))
    latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    back = vae.decoder(vae.post_quant_conv(latent.bfloat16())).float()
    error = F.l1_loss(back, images)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return error + F.mse_loss(back, images) + KL * 16 * divergence, error


if __name__ == "__main__":
    main()
