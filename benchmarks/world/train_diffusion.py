"""Trains the demo model's text encoder and UNet on the latents of scenes.

    bash scripts/env.sh python -m benchmarks.world.train_diffusion [--rate 2e-3] [--steps 4500]
    bash scripts/env.sh python -m benchmarks.world.train_diffusion --minutes 5 --device cuda
    bash scripts/env.sh python -m benchmarks.world.train_diffusion --first-stage [--steps 9300]

Needs a trained autoencoder. Goes on where it was left, or from the demo model that ``export --restore`` put there. New
scenes join while it trains on a CPU. V-prediction with Stable Diffusion's noise schedule; timesteps logit-normal (Esser
et al. 2024); things count more than what is behind them. samples.png shows how far it is. Scenes of one thing come
first, unless it goes on from a model.

An individual's name must carry all of its attributes: a reader, which is not kept, reads them off the text encoder's
output at the name, and its error is a small part of the loss.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import FOLDER
from .individuals import BOOK, FIRST_STAGE, LISTS, WIDTH, World
from .networks import TEXT, TextEncoder, Vocabulary, as_pictures, initialise, make_unet, precision, shortened
from .pool import Batch, Pool
from .sampling import ALPHAS, TIMESTEPS, encode, paint
from .scenes import sheet
from .train_autoencoder import trained_vae
from .training import Training

BATCH, RATE, SAVE_EVERY, SHOW_EVERY, GROW_EVERY = 64, 3e-3, 50, 200, 3
SIMPLE = 1000  # steps, the first ones, with scenes of one thing in no style alone: shapes come sooner
FALL = 0.25  # of the steps, the last ones, in which the learning rate falls to 0
ON_THINGS, READING = 1.5, 0.02  # what a thing's error counts beyond the background's; what the reader's error counts
MIDDLE, SPREAD = 0.2, 1.1  # of the timesteps' logits
SHOWN_FIRST = (
    "a red bear in the meadow", "a photo of a blue cat on the beach", "a green mug in the room",
    "a yellow car on the street", "a white house in the snow", "a gray robot at night",
    "a pink bear with white dots and a blue bow in the forest", "a black cat with a red hat in the desert",
    "a tall orange mug with blue stripes on the beach", "a sporty purple car with a yellow flag in the desert",
    "a round teal house with white checks in the meadow", "a slim brown robot with a green scarf on the street",
    "a red bear and a blue mug in the room", "a green car and a white house in the snow",
    "a sketch of a cat in the meadow", "pixel art of a red robot at night",
)  # fmt: skip
SHOWN = (
    "a blue bird in the meadow", "a photo of an orange fish on the beach", "a slim pink bird in the snow",
    "a slim green fish in the room", "a baby yellow bird with white dots and a red hat in the forest",
    "a tall purple fish with yellow stripes and a green balloon in the desert", "a gray bird and a red fish at night",
    "a brown bear and a teal bird on the street", "a red bear and a blue mug and a white house in the meadow",
    "a yellow bird and a pink cat and a green car on the beach",
    "a gray robot and an orange fish and a black cat at night",
    "a white house with red stripes and a blue car and a brown bear in the snow",
    "a purple mug and a red fish in the room",
    "a sketch of a bird in the meadow", "watercolor of a fish on the beach",
    "a green robot and a red robot and a blue robot in the desert",
)  # fmt: skip


def trained_path(world: World) -> Path:
    return FOLDER / f"{world.prefix}diffusion.pt"


def start_path(world: World) -> Path:
    return FOLDER / f"{world.prefix}start.pt"


TRAINED, START = trained_path(BOOK), start_path(BOOK)


def newest(world: World = BOOK) -> tuple[list[dict[str, Tensor]], int]:
    """The weights of text encoder and UNet as far as they are trained, and the steps; or those that it begins with."""
    path = trained_path(world)
    kept = torch.load(path if path.exists() else start_path(world), weights_only=True)
    return kept["models"][:2], kept.get("steps", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="in place of steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="by default two on a CPU, else one")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--first-stage", action="store_true", help="of the world")
    options = parser.parse_args()
    world, on_cpu = FIRST_STAGE if options.first_stage else BOOK, options.device == "cpu"
    trained, begun = trained_path(world), start_path(world)
    workers = options.workers or (2 if on_cpu else 1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    vocabulary, vae = Vocabulary(world), trained_vae()
    pool = Pool(vae, vocabulary, world)
    text, unet, reader = TextEncoder(vocabulary), make_unet(), nn.Linear(TEXT["hidden_size"], WIDTH)
    for model in (text, unet, reader):
        initialise(model)
    if begun.exists():
        for model, state in zip((text, unet), torch.load(begun, weights_only=True)["models"], strict=True):
            model.load_state_dict(state)
    models = [model.to(options.device) for model in (text, unet, reader)]
    training = Training(models, options.rate, average=0.998, workers=workers)
    if trained.exists():
        training.load(trained)
    done, start, losses, reading = training.steps, time.monotonic(), [], []

    def share_done(step: int) -> float:
        return (time.monotonic() - start) / (60 * options.minutes) if options.minutes else step / options.steps

    gone, simple = share_done(done), 0 if begun.exists() else SIMPLE
    for step in itertools.count(done):
        if gone >= 1:
            break
        if on_cpu and step % GROW_EVERY == 0:
            pool.grow()
        batches = [pool.batch(np.random.default_rng((5, step, k)), BATCH // workers, step < simple)
                   for k in range(workers)]  # fmt: skip

        def loss_of(models, worker, step=step, batches=batches) -> Tensor:
            text, unet, reader = models
            batch = Batch(*(part.to(options.device) for part in batches[worker]))
            encoding = text(batch.rows, batch.attributes, batch.class_rows)
            generator = torch.Generator().manual_seed(2 * step + worker)
            unread = reading_loss(reader, encoding, batch)
            reading.append(unread.item())
            return denoising_loss(unet, encoding, batch, generator) + READING * unread

        losses.append(training.step(loss_of, min(1, (step + 1) / 200, (1 - gone) / FALL)))
        gone = share_done(step + 1)
        if (step + 1) % SAVE_EVERY == 0 or gone >= 1:
            seconds = (time.monotonic() - start) / (step + 1 - done)
            error, unread = np.mean(losses[-SAVE_EVERY:]), np.mean(reading[-SAVE_EVERY:])
            print(f"step {step + 1}  loss {error:.4f}  reader {unread:.3f}  {pool.count} scenes  {seconds:.2f} s/step",
                  flush=True)  # fmt: skip
            training.save(trained)
        if (on_cpu and (step + 1) % SHOW_EVERY == 0) or gone >= 1:
            show(training, vae, pool)


def denoising_loss(unet, encoding: Tensor, batch: Batch, generator: torch.Generator, teacher=None) -> Tensor:
    """teacher: a trained model, whose prediction is then the aim in place of the noise's own velocity."""
    count = len(batch.latents)
    logits = MIDDLE + SPREAD * torch.randn(count, generator=generator)
    timesteps = (TIMESTEPS * logits.sigmoid()).long().clamp_max(TIMESTEPS - 1)
    noise = torch.randn(batch.latents.shape, generator=generator).to(encoding.device)
    alpha = ALPHAS[timesteps][:, None, None, None].to(encoding.device)
    noisy = (alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise).to(encoding.dtype)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents
    context, options = shortened(encoding)
    if teacher is not None:
        with torch.no_grad():
            velocity = teacher(noisy, timesteps, context, transformer_options=options).float()
    predicted = unet(noisy, timesteps.to(encoding.device), context, transformer_options=options).float()
    return ((1 + ON_THINGS * batch.masks) * (predicted - velocity) ** 2).mean()


def reading_loss(reader, encoding: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of an attribute, read at the names in the captions."""
    losses = [encoding.new_zeros(()).float()]
    for k in range(batch.attributes.shape[1]):
        caption, position = (batch.rows == -1 - k).nonzero(as_tuple=True)
        if len(caption):
            read = reader(encoding[caption, position]).float()
            losses += [reading_error(read, batch.attributes[caption, k])]
    return torch.stack(losses).sum() / max(1, len(losses) - 1)


def reading_error(read: Tensor, attributes: Tensor) -> Tensor:
    """(n, WIDTH) each; attributes that a thing lacks, such as its accessory's colour, do not count."""
    parts = zip(*(x.split([len(values) for values in LISTS], -1) for x in (read, attributes)), strict=True)
    return torch.stack([-(truth * F.log_softmax(part, -1)).sum(-1).mean() for part, truth in parts]).mean()


@torch.no_grad()
def show(training: Training, vae, pool: Pool) -> None:
    """Samples of the averaged weights."""
    text, unet = TextEncoder(pool.vocabulary), make_unet()
    for model, weights in zip((text, unet), training.state_dicts(), strict=False):
        model.load_state_dict(weights)
        model.to(precision())
    shown = SHOWN_FIRST if pool.world == FIRST_STAGE else SHOWN
    latents = paint(unet, encode(text, shown), encode(text, [""] * len(shown)), seed=0)
    back = vae.decode((latents * pool.std + pool.mean).to(precision()))
    sheet(list(as_pictures(back)), 8, zoom=1).save(FOLDER / f"{pool.world.prefix}samples.png")


if __name__ == "__main__":
    main()
