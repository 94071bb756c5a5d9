"""Writes what is trained as the demo model's file, which nodes/host/demo_model.py loads, and goes on from it.

    bash scripts/env.sh python -m benchmarks.world.export [--first-stage] [--file FILE]
    bash scripts/env.sh python -m benchmarks.world.export --restore [--file FILE]    # where no cache is; then train on

Matrices are int8 with a scale per row, the rest fp16. The VAE's latents have mean 0 and std 1 per channel, as the UNet
learned them. The token table has the words' rows alone. Individuals' names are no words of the host, which leaves
aside what the file has of them. The covariance of the new text encoder is made along.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from perfusion_core.concept_file import safetensors_bytes, write_atomically

from .cache import FOLDER
from .individuals import BOOK, FIRST_STAGE, World
from .networks import TEXT, UNET, VAE, Vocabulary
from .pool import Pool, fingerprint, scale_path
from .train_autoencoder import TRAINED as AUTOENCODER
from .train_autoencoder import trained_vae
from .train_diffusion import start_path, trained_path

REPO = Path(__file__).resolve().parents[2]
FILE = REPO / "nodes" / "demo_model.safetensors"
PREVIEWED = 512  # latents that the previews' colours are fitted on
_TABLE, _HOSTS_TABLE = "table.weight", "embeddings.token_embedding.weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--restore", action="store_true")
    parser.add_argument("--first-stage", action="store_true", help="of the world")
    options = parser.parse_args()
    (restore if options.restore else export)(options.file, FIRST_STAGE if options.first_stage else BOOK)


def export(file: Path, world: World = BOOK) -> None:
    vae, vocabulary = trained_vae(), Vocabulary(world)
    mean, std = torch.from_numpy(np.load(scale_path(fingerprint(vae))))
    latents = Pool(trained_vae(), vocabulary, world).latents(np.arange(PREVIEWED))
    normalise(vae, mean, std)
    text, unet = torch.load(trained_path(world), weights_only=True)["models"][:2]
    parts = {"unet": unet, **as_the_host_has_it(text), "vae": vae.state_dict()}
    content = demo_model(parts, vocabulary, preview_colours(vae, latents))
    write_atomically(file, content)
    print(f"{file}: {len(content) / 2**20:.2f} MiB")
    if file == FILE:
        subprocess.run([sys.executable, REPO / "scripts" / "make" / "demo_covariance.py"], check=True)


def restore(file: Path, world: World = BOOK) -> None:
    """Into the cache's folder, which must not hold a training already: its latents are those of its own encoder."""
    models = read(kept := load_file(file))
    begun = trained_path(world).exists() or start_path(world).exists()
    if begun or (AUTOENCODER.exists() and not _is_the_autoencoder(models["vae"])):
        raise SystemExit(f"{FOLDER} has a training already, which goes on by itself. Move it away first.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save({"models": [models["vae"]]}, AUTOENCODER)
    text = as_it_was_trained(models, kept["tokens"].tolist(), Vocabulary(world).ids)
    torch.save({"models": [text, models["unet"]]}, start_path(world))


def _is_the_autoencoder(weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, weights[name]) for name, weight in trained_vae().state_dict().items())


def read(kept: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"unet", "text", "naming", "vae": weights} in fp32 of the file's tensors."""
    models: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in kept.items():
        part, _, name = full_name.partition(".")
        if name and not name.endswith(".scale"):
            scale = kept.get(f"{full_name}.scale")
            weight = tensor.float() if scale is None else (tensor.flatten(1) * scale.float()[:, None]).view_as(tensor)
            models.setdefault(part, {})[name] = weight.contiguous()
    return models


def demo_model(
    parts: dict[str, dict[str, Tensor]], vocabulary: Vocabulary, colours: tuple[list[list[float]], list[float]]
) -> bytes:
    """A file's bytes; ``parts``: weights of "unet", "text" and "vae"."""
    tensors = {"tokens": torch.tensor(vocabulary.ids, dtype=torch.int32)}
    for part, weights in parts.items():
        for name, weight in weights.items():
            tensors |= stored(f"{part}.{name}", weight)
    metadata = {
        "unet": UNET, "text": TEXT, "vae": VAE,
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


def as_the_host_has_it(text: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A TextEncoder's weights as ComfyUI's text model names them, and apart from them those of individuals' names."""
    parts: dict[str, dict[str, Tensor]] = {"text": {}, "naming": {}}
    for name, weight in text.items():
        if name.startswith("naming."):
            parts["naming"][name.removeprefix("naming.")] = weight
        else:
            parts["text"][_HOSTS_TABLE if name == _TABLE else name.removeprefix("transformer.")] = weight
    return parts


def as_it_was_trained(
    models: dict[str, dict[str, Tensor]], known: Sequence[int], tokens: Sequence[int]
) -> dict[str, Tensor]:
    """The TextEncoder's weights for a vocabulary of ``tokens``; those not ``known`` begin as all unknown words are."""
    text = dict(models["text"])
    table = text.pop(_HOSTS_TABLE)
    rows = [known.index(token) if token in known else len(known) for token in [*tokens, None]]
    return {
        _TABLE: table[rows],
        **{f"transformer.{name}": weight for name, weight in text.items()},
        **{f"naming.{name}": weight for name, weight in models["naming"].items()},
    }


@torch.no_grad()
def preview_colours(vae, latents: Tensor) -> tuple[list[list[float]], list[float]]:
    """Least squares from latent channels to red, green and blue in -1..1: factors (16, 3) and bias (3,)."""
    pictures = torch.cat([vae.decode(some).clamp(-1, 1) for some in latents.split(64)])
    colours = F.avg_pool2d(pictures, pictures.shape[-1] // latents.shape[-1]).movedim(1, -1).flatten(0, -2)
    channels = F.pad(latents.movedim(1, -1).flatten(0, -2), (0, 1), value=1.0)
    *factors, bias = torch.linalg.lstsq(channels.double(), colours.double()).solution.tolist()
    return factors, bias


def stored(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What the file holds of a weight: itself, and its scale (rows,) if it is kept as int8."""
    if weight.ndim < 2:
        return {name: weight.half()}
    rows = weight.float().flatten(1)
    scale = (rows.abs().amax(1) / 127).half().clamp_min(torch.finfo(torch.float16).smallest_normal)
    steps = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {name: steps.view(weight.shape), f"{name}.scale": scale}


if __name__ == "__main__":
    main()
