"""Trains the demo model's autoencoder: 96x96x3 pictures to 12x12x16 latents and back.

    bash scripts/env.sh python -m benchmarks.world.train_autoencoder [--steps 4000] [--decoder] [--critic]

Goes on where it was left; autoencoder.png beside it shows how far it is. Three steps of four take pieces of 48x48
around the things, where eyes and stripes are. ``--critic`` asks for what a reader sees as well, without which eyes and
small patterns are blurred. ``--decoder`` trains the decoder further, for latents as a model samples them.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import FOLDER, painted
from .individuals import BOOK, FIRST_STAGE, World
from .networks import as_input, as_pictures, initialise, make_vae, precision
from .reader import CRITIC, Reader, likeness_loss, trained_reader
from .scenes import sheet
from .training import Training

PICTURES, PIECE, RATE, SAVE_EVERY, SHOW_EVERY = 6000, 48, 3e-3, 50, 200
FALL = 0.3  # of the steps, the last ones, in which the learning rate falls to 0
EDGES, HUES, LIKENESS, KL = 1.0, 2.0, 0.4, 1e-4
NOISE, SAMPLED = 0.03, 0.15  # of the latents, in units of their std; those that a model samples are not quite clean
TRAINED, DECODER = FOLDER / "autoencoder.pt", FOLDER / "decoder.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decoder", action="store_true")
    parser.add_argument("--critic", action="store_true", help="with the eyes of reader.py's critic, too")
    parser.add_argument("--first-stage", action="store_true", help="of the world")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    world = FIRST_STAGE if options.first_stage else BOOK
    pictures, masks = painted(PICTURES, world=world)
    vae, path = make_vae(), TRAINED
    initialise(vae)
    if options.decoder:
        vae, path = trained_vae(), DECODER
        vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)
    critic = trained_reader(CRITIC).to(precision()).requires_grad_(False) if options.critic else None
    training = Training([vae], options.rate, average=0.99, workers=options.workers)
    if path.exists():
        training.load(path)
    done, start, losses = training.steps, time.monotonic(), []
    for step in range(done, options.steps):
        random = np.random.default_rng((3, step))
        batch = whole(pictures, random, 4) if step % 4 == 3 else pieces(pictures, masks, random, 16)
        parts = as_input(batch).chunk(options.workers)

        def loss_of(models, worker, parts=parts) -> Tensor:
            return reconstruction_loss(models[0], parts[worker], critic, SAMPLED if options.decoder else NOISE)

        share = min(1, (step + 1) / 100, (options.steps - step) / (FALL * options.steps))
        losses.append(training.step(loss_of, share))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            seconds = (time.monotonic() - start) / (step + 1 - done)
            print(f"step {step + 1}  loss {np.mean(losses[-SAVE_EVERY:]):.4f}  {seconds:.2f} s/step", flush=True)
            training.save(path)
        if (step + 1) % SHOW_EVERY == 0 or step + 1 == options.steps:
            report(trained_vae(), world)


def pieces(pictures: np.ndarray, masks: np.ndarray, random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 48, 48, 3), each around a pixel of a thing."""
    out = np.empty((count, PIECE, PIECE, 3), np.uint8)
    for index, number in enumerate(random.integers(len(pictures), size=count)):
        rows, columns = np.nonzero(masks[number] > 127)
        pixel = random.integers(len(rows))
        corner = np.array([rows[pixel], columns[pixel]]) - random.integers(8, PIECE - 8, size=2)
        top, left = corner.clip(0, pictures.shape[1] - PIECE)
        out[index] = pictures[number, top : top + PIECE, left : left + PIECE]
    return out


def whole(pictures: np.ndarray, random: np.random.Generator, count: int) -> np.ndarray:
    return pictures[random.integers(len(pictures), size=count)]


def reconstruction_loss(vae, images: Tensor, critic: Reader | None = None, noise: float = NOISE) -> Tensor:
    """L1 of the pictures, their edges and their hues, what the critic sees, and the latents' divergence."""
    mean, log_variance = moments(vae, images.to(precision()))
    latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    latent = latent + noise * mean.detach().std() * torch.randn_like(mean)
    back = vae.decoder(vae.post_quant_conv(latent)).float()
    mean, log_variance = mean.float(), log_variance.float()
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    loss = picture_loss(back, images) + KL * divergence
    return (
        loss
        if critic is None
        else loss + LIKENESS * likeness_loss(critic, back.to(precision()), images.to(precision()))
    )


def picture_loss(back: Tensor, images: Tensor) -> Tensor:
    across = F.l1_loss(back.diff(dim=-1), images.diff(dim=-1)) + F.l1_loss(back.diff(dim=-2), images.diff(dim=-2))
    off = F.avg_pool2d(back - images, 4)
    hues = (off - off.mean(1, keepdim=True)).abs().mean()  # else red and green come last
    return F.l1_loss(back, images) + F.mse_loss(back, images) + EDGES * across + HUES * hues


def moments(vae, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, (batch, 16, 12, 12) each."""
    mean, log_variance = vae.quant_conv(vae.encoder(images)).chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 10)


def trained_vae():
    """As far as it is trained, with the decoder that was trained further, if there is one."""
    vae = make_vae()
    for path in (TRAINED, DECODER):
        if path.exists():
            vae.load_state_dict(torch.load(path, weights_only=True)["models"][0])
    return vae


@torch.no_grad()
def report(vae, world: World) -> None:
    pictures, masks = painted(24, first=10**8, world=world)
    images = as_input(pictures)
    latents = moments(vae, images)[0]
    back = vae.decode(latents)
    error = ((back.clamp(-1, 1) - images) / 2).square().mean(1)
    on_things = error[torch.from_numpy(masks > 127)].mean()
    print(f"latents: std {latents.std():.3f}; PSNR {-10 * error.mean().log10():.2f} dB, "
          f"on the things {-10 * on_things.log10():.2f} dB", flush=True)  # fmt: skip
    both = [row for k in (0, 12) for row in (*pictures[k : k + 12], *as_pictures(back)[k : k + 12])]
    sheet(both, 12, zoom=1).save(FOLDER / "autoencoder.png")


if __name__ == "__main__":
    main()
