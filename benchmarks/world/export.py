"""Writes what is trained as a demo model: a file that nodes/host/demo_model.py loads.

    bash scripts/env.sh python -m benchmarks.world.export FILE

Weights as weights.py keeps them. The VAE's latents have mean 0 and std 1 per channel, as the UNet learned them, and the
token table has the words' rows alone: individuals' names are no words of the host.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perfusion_core.concept_file import safetensors_bytes, write_atomically

from .networks import TEXT, UNET, VAE, Vocabulary
from .pool import Pool, fingerprint, scale_path
from .train_autoencoder import trained_vae
from .train_diffusion import TRAINED
from .weights import stored

PREVIEWED = 512  # latents that the previews' colours are fitted on


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    vae, vocabulary = trained_vae(), Vocabulary()
    mean, std = torch.from_numpy(np.load(scale_path(fingerprint(vae))))
    latents = Pool(trained_vae(), vocabulary).latents(np.arange(PREVIEWED))
    normalise(vae, mean, std)
    text, unet = torch.load(TRAINED, weights_only=True)["models"][:2]
    parts = {"unet": unet, "text": with_host_names(text), "vae": vae.state_dict()}
    content = demo_model(parts, vocabulary, preview_colours(vae, latents))
    write_atomically(options.file, content)
    print(f"{options.file}: {len(content) / 2**20:.2f} MiB")


def demo_model(
    parts: dict[str, dict[str, Tensor]], vocabulary: Vocabulary, colours: tuple[list[list[float]], list[float]]
) -> bytes:
    """A file's bytes; ``parts``: weights of "unet", "text" and "vae"."""
    tensors = {"tokens": torch.tensor(vocabulary.ids, dtype=torch.int32)}
    for part, weights in parts.items():
        for name, weight in weights.items():
            tensors |= stored(f"{part}.{name}", weight)
    metadata = {
        "unet": UNET, "text": TEXT, "vae": VAE, "prediction": "v_prediction",
        "latent_rgb_factors": colours[0], "latent_rgb_factors_bias": colours[1],
    }  # fmt: skip
    return safetensors_bytes(tensors, {key: json.dumps(value) for key, value in metadata.items()})


@torch.no_grad()
def normalise(vae, mean: Tensor, std: Tensor) -> None:
    """Makes the means of its latents, of ``mean`` and ``std`` per channel, (16,) each, have mean 0 and std 1."""
    to_moments, from_latents = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    to_moments.weight[:channels] /= std[:, None, None, None]
    to_moments.bias[:channels] = (to_moments.bias[:channels] - mean) / std
    to_moments.bias[channels:] -= 2 * std.log()  # the log variance
    from_latents.bias += from_latents.weight[:, :, 0, 0] @ mean
    from_latents.weight *= std[:, None, None]


def with_host_names(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """A TextEncoder's weights as ComfyUI's text model names them, without those of individuals' names."""
    table = {"table.weight": "embeddings.token_embedding.weight"}
    return {
        table.get(name, name.removeprefix("transformer.")): weight
        for name, weight in text.items()
        if not name.startswith("naming.")
    }


@torch.no_grad()
def preview_colours(vae, latents: Tensor) -> tuple[list[list[float]], list[float]]:
    """Least squares from latent channels to red, green and blue in -1..1: factors (16, 3) and bias (3,)."""
    pictures = torch.cat([vae.decode(some).clamp(-1, 1) for some in latents.split(64)])
    colours = F.avg_pool2d(pictures, pictures.shape[-1] // latents.shape[-1]).movedim(1, -1).flatten(0, -2)
    channels = F.pad(latents.movedim(1, -1).flatten(0, -2), (0, 1), value=1.0)
    *factors, bias = torch.linalg.lstsq(channels.double(), colours.double()).solution.tolist()
    return factors, bias


if __name__ == "__main__":
    main()
