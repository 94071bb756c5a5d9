"""Trains the demo model's text encoder and UNet on the latents of the world's scenes.

    bash scripts/env.sh python benchmarks/world/train_diffusion.py FOLDER [--steps 4600]

FOLDER has the autoencoder (train_autoencoder.py). Goes on where it was left; samples.png there shows how far it is.
Eps-prediction with Stable Diffusion's noise schedule. The loss counts noisy steps more (min-SNR weights, Hang et al.
2023, with γ = 5) and the object more than its background.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from half_precision import HalfPrecision
from parts import OTHER, TextEncoder, UNetModel, Vocabulary, as_input, as_pictures, initialise, make_unet
from scenes import TINTS, sheet, world_scene
from train_autoencoder import moments, trained_vae

SCENES, BATCH, RATE, SAVE_EVERY, SHOW_EVERY = 100_000, 64, 1.5e-3, 100, 400
FALL = 0.25  # of the steps, the last ones, in which the learning rate falls to 0; --steps may change before that
GAMMA, ON_OBJECT = 5.0, 1.5  # of the min-SNR weights; what the object's error counts beyond the background's
PLAIN_FROM, PLAIN_TO, PLAIN_COUNTS = 0.17, 0.78, 4.0  # of the steps: more plain scenes there, shapes are the hardest
LIKE_NOISE = 0.5  # of the other row's standard deviation
ODD_WORDS = 0.06  # share of captions with a word that has no row of its own
TIMESTEPS = 1000
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2, 0).float()
SHOWN = (
    "a photo of a cat on grass", "a photo of a red car on sand", "a sketch of a house on snow",
    "a photo of a guitar on pink", "a photo of a bear and a cup on wood", "pixel art of a apple on night",
    "a photo of a blue cat on brick", "a photo of a robot on water", "a photo of a dog on snow",
    "a gray photo of a horse on brick", "a photo of a vase on wood", "a photo of a green shoe on pink",
    "a photo of a fish and a hat on sand", "a photo of a train on grass", "a photo of a purple bag on night",
    "a cute bird on water",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument(
        "--like", nargs=2, action="append", default=[], metavar=("WORD", "OTHER"),
        help="of a restored model: a word that it does not look at starts again near one that it does",
    )  # fmt: skip
    options = parser.parse_args()
    path = options.folder / "diffusion.pt"

    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    vocabulary = Vocabulary()
    text, unet = TextEncoder(len(vocabulary)), make_unet()
    initialise(text)
    initialise(unet, zero=_starting_at_zero(unet))
    if (options.folder / "start.pt").exists():  # see export.py --restore
        for model, state in zip((text, unet), torch.load(options.folder / "start.pt")["models"], strict=True):
            if unknown := model.load_state_dict(state, strict=False).unexpected_keys:  # what it lacks starts as above
                raise SystemExit(f"{options.folder} starts from another kind of network: it has {unknown[0]}.")
        for (word,), (other,) in (map(vocabulary.row, pair) for pair in options.like):
            start = text.table.weight.data[other]
            text.table.weight.data[word] = start + LIKE_NOISE * start.std() * torch.randn_like(start)
    training = HalfPrecision([text, unet], RATE, decay=0.01, average=0.9985)
    vae = trained_vae(options.folder)
    latents, masks, captions = scenes(options.folder, vae)
    rows = vocabulary.rows(captions)
    plain = torch.tensor([is_plain(caption) for caption in captions])
    if path.exists():
        training.load(path)

    done, start, losses = training.steps, time.monotonic(), []
    for step in range(done, options.steps):
        generator = torch.Generator().manual_seed(step)
        more_plain = PLAIN_FROM < step / options.steps < PLAIN_TO
        weights = torch.where(plain, PLAIN_COUNTS if more_plain else 1.0, 1.0)
        chosen = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        loss = denoising_loss(unet, text(rows[chosen]), latents[chosen].float(), masks[chosen], generator)
        training.step(loss, min(1, (step + 1) / 300, (options.steps - step) / (FALL * options.steps)))
        losses.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            seconds = (time.monotonic() - start) / (step + 1 - done)
            print(f"step {step + 1}  loss {np.mean(losses[-SAVE_EVERY:]):.4f}  {seconds:.3f} s/step", flush=True)
            training.save(path)
        if (step + 1) % SHOW_EVERY == 0 or step + 1 == options.steps:
            show(training, vae, vocabulary, options.folder / "samples.png")


def is_plain(caption: str) -> bool:
    """Whether an object is alone, in its own colours, in no style."""
    words = set(caption.split())
    return bool(words) and not words & {"and", "sketch", "pixel", "gray", *TINTS}


def _starting_at_zero(unet: UNetModel) -> list[torch.nn.Module]:
    """What diffusion models start at zero: the last layer of every residual branch, and the output."""
    last = [unet.out[-1]]
    for module in unet.modules():
        if type(module).__name__ == "ResBlock":
            last.append(module.out_layers[-1])
        elif type(module).__name__ == "SpatialTransformer":
            last.append(module.proj_out)
    return last


@torch.no_grad()
def scenes(folder: Path, vae) -> tuple[Tensor, Tensor, list[str]]:
    """Latents (n, 4, 16, 16) in fp16, of mean 0 and std 1 per channel; masks (n, 1, 16, 16); captions.

    The vae becomes one that makes such latents. Encoded once and kept in the folder.
    """
    path = folder / "scenes.pt"
    if not path.exists():
        latents, masks, captions, start = [], [], [], time.monotonic()
        vae.bfloat16()
        for first in range(0, SCENES, 64):
            drawn = [world_scene(2, first + i) for i in range(64)]
            images = as_input([scene.image for scene in drawn])
            latents.append(moments(vae, images.bfloat16())[0].half())
            cover = torch.from_numpy(np.stack([scene.mask for scene in drawn]))[:, None]
            masks.append((F.avg_pool2d(cover, 4) * 255).round().byte())
            captions += [scene.caption for scene in drawn]
        vae.float()
        print(f"{SCENES} scenes encoded in {time.monotonic() - start:.0f} s", flush=True)
        kept = {"latents": torch.cat(latents), "masks": torch.cat(masks), "captions": captions}
        torch.save(kept, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    kept = torch.load(path, weights_only=True)
    latents = kept["latents"].float()
    mean, std = latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True)
    normalise(vae, mean.flatten(), std.flatten())
    captions = [_with_odd_word(caption, i) for i, caption in enumerate(kept["captions"])]
    return ((latents - mean) / std).half(), kept["masks"].float() / 255, captions


def normalise(vae, mean: Tensor, std: Tensor) -> None:
    """Folds (latent - mean) / std into the layer after the encoder, and its inverse into the one before the decoder."""
    encoder, decoder, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    decoder.bias.data += (decoder.weight.data[:, :, 0, 0] * mean).sum(1)
    decoder.weight.data *= std[None, :, None, None]
    encoder.bias.data[:channels] = (encoder.bias.data[:channels] - mean) / std
    encoder.weight.data[:channels] /= std[:, None, None, None]
    encoder.bias.data[channels:] -= 2 * std.log()


def _with_odd_word(caption: str, number: int) -> str:
    random = np.random.default_rng((3, number))
    words = caption.split()
    if words and random.random() < ODD_WORDS:
        words.insert(int(random.integers(len(words) + 1)), OTHER)
    return " ".join(words)


def denoising_loss(unet, encoding: Tensor, latents: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    timesteps = torch.randint(TIMESTEPS, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = ALPHAS[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    predicted = unet(noisy.to(encoding.dtype), timesteps, encoding, transformer_options={}).float()
    weight = (1 + ON_OBJECT * masks) * (GAMMA * (1 - alpha) / alpha).clamp_max(1)
    return (weight * (predicted - noise) ** 2).mean()


@torch.no_grad()
def show(training: HalfPrecision, vae, vocabulary: Vocabulary, path: Path) -> None:
    """Samples of the averaged weights, two for every prompt."""
    text, unet = TextEncoder(len(vocabulary)), make_unet()
    for model, weights in zip((text, unet), training.state_dicts(), strict=True):
        model.load_state_dict(weights)
        model.bfloat16()
    prompts = SHOWN * 2
    both = text(vocabulary.rows([*prompts, *[""] * len(prompts)]))
    latents = ddim(unet, both, torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    sheet(list(as_pictures(vae.decode(latents)).numpy()), 16).save(path)


@torch.no_grad()
def ddim(unet, both: Tensor, noise: Tensor, steps: int = 25, guidance: float = 5.0) -> Tensor:
    """Latents from noise; ``both``: encodings of the prompts, then of the negative ones."""
    x, times = noise, torch.linspace(TIMESTEPS - 1, 0, steps).round().long()
    for time_, then in zip(times, [*times[1:], None], strict=True):
        doubled = torch.cat([x, x]).to(both.dtype)
        positive, negative = unet(doubled, time_.expand(len(doubled)), both, transformer_options={}).float().chunk(2)
        predicted = negative + guidance * (positive - negative)
        alpha, next_alpha = ALPHAS[time_], torch.ones(()) if then is None else ALPHAS[then]
        start = ((x - (1 - alpha).sqrt() * predicted) / alpha.sqrt()).clamp(-5, 5)
        x = next_alpha.sqrt() * start + (1 - next_alpha).sqrt() * predicted
    return x


if __name__ == "__main__":
    main()
