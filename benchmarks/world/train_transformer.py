"""Trains a transformer to paint what the demo model's UNet paints, from the same text encoder, which stays as it is.

    bash scripts/env.sh python -m benchmarks.world.train_transformer joint|cross [--steps 8000]

It is the UNet's pupil: what the UNet predicts is its aim, which varies less than a noise does. Halfway it must know
what the UNet knows in its middle: a linear reader reads it off (as Yu et al. 2025). So it learns from fewer pictures.
Goes on where it was left. samples-joint.png and samples-cross.png show how far it is.
"""

from __future__ import annotations

import argparse
import os
import threading
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import FOLDER
from .networks import TextEncoder, Vocabulary, as_pictures, make_unet, precision
from .pool import Pool
from .sampling import encode, paint
from .scenes import sheet
from .train_autoencoder import trained_vae
from .train_diffusion import BATCH, FALL, SHOWN, denoising_loss, newest
from .training import Training
from .transformers import BLOCKS, WIDTH, make_transformer

RATE, WARM, SIMPLE, SAVE_EVERY, SHOW_EVERY = 3e-3, 100, 1500, 25, 200
READING = 0.1  # what the reader's error counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=["joint", "cross"])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    vocabulary, vae = Vocabulary(), trained_vae()
    pool = Pool(vae, vocabulary)
    text, teacher = demo_model(vocabulary)
    pupil, middles = make_transformer(options.kind), Middles(teacher)
    middles.watch(pupil)
    reader = nn.Linear(WIDTH, teacher.middle_block[-1].out_channels)
    training = Training([pupil, reader], RATE, average=0.998, workers=options.workers)
    if (path := trained_path(options.kind)).exists():
        training.load(path)
    done, start, losses = training.steps, time.process_time(), []
    for step in range(done, options.steps):
        batches = [pool.batch(np.random.default_rng((6, step, k)), BATCH // options.workers, step < SIMPLE)
                   for k in range(options.workers)]  # fmt: skip

        def loss_of(models, worker, step=step, batches=batches) -> Tensor:
            batch = batches[worker]
            with torch.no_grad():
                encoding = text(batch.rows, batch.attributes, batch.class_rows)
            generator = torch.Generator().manual_seed(2 * step + worker)
            pupil, reader = models
            return denoising_loss(pupil, encoding, batch, generator, teacher) + READING * middles.error(reader)

        share = min(1, (step + 1) / WARM, (options.steps - step) / (FALL * options.steps))
        losses.append(training.step(loss_of, share))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            seconds = (time.process_time() - start) / (step + 1 - done)
            print(f"step {step + 1}  loss {np.mean(losses[-SAVE_EVERY:]):.4f}  {seconds:.2f} s/step", flush=True)
            training.save(path)
        if (step + 1) % SHOW_EVERY == 0 or step + 1 == options.steps:
            weights, _ = training.state_dicts()
            model = make_transformer(options.kind)
            model.load_state_dict(weights)
            latents = paint(model.to(precision()), encode(text, SHOWN), encode(text, [""] * len(SHOWN)), seed=0)
            back = vae.decode((latents * pool.std + pool.mean).to(precision()))
            sheet(list(as_pictures(back)), 8, zoom=1).save(FOLDER / f"samples-{options.kind}.png")


class Middles:
    """What teacher and pupil think of a picture halfway, (n, 36, width) each, as their last forwards left it."""

    def __init__(self, teacher: nn.Module):
        self._last = threading.local()  # every worker has its own
        teacher.middle_block[-1].register_forward_hook(
            lambda _module, _inputs, out: setattr(self._last, "taught", out.flatten(2).mT)
        )

    def watch(self, pupil: nn.Module) -> None:
        def keep(_module: nn.Module, _inputs: tuple, out) -> None:
            pictures = out[1] if isinstance(out, tuple) else out  # beside the text's
            last.learned = pictures.flatten(1, -2)

        last, blocks = self._last, pupil.joint_blocks if hasattr(pupil, "joint_blocks") else pupil.blocks
        blocks[BLOCKS // 2 - 1].register_forward_hook(keep)

    def error(self, reader: nn.Module) -> Tensor:
        return 1 - F.cosine_similarity(reader(self._last.learned).float(), self._last.taught.float(), dim=-1).mean()


def trained_path(kind: str):
    return FOLDER / f"transformer-{kind}.pt"


def demo_model(vocabulary: Vocabulary):
    """Text encoder and UNet as far as they are trained, frozen."""
    text, unet = TextEncoder(vocabulary), make_unet()
    for model, weights in zip((text, unet), newest()[0], strict=True):
        model.load_state_dict(weights)
        model.to(precision()).eval().requires_grad_(False)
    return text, unet


if __name__ == "__main__":
    main()
