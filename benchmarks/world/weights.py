"""Keeps what is trained in one small file of the repository, and goes on from it where no cache is.

    bash scripts/env.sh python -m benchmarks.world.weights save [FILE]
    bash scripts/env.sh python -m benchmarks.world.weights restore [FILE]    # then train on

Matrices are int8 with a scale per row, the rest fp16. Optimizers start anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .cache import FOLDER
from .pool import fingerprint, scale_path
from .train_autoencoder import TRAINED as AUTOENCODER
from .train_autoencoder import trained_vae

FILE = Path(__file__).with_name("weights.safetensors")
_DIFFUSION, _START = FOLDER / "diffusion.pt", FOLDER / "start.pt"
_PARTS = ("text", "unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["save", "restore"])
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    options = parser.parse_args()
    {"save": save, "restore": restore}[options.command](options.file)


def save(file: Path) -> None:
    """The averaged weights of all networks as far as they are trained."""
    vae = trained_vae()
    models, tensors = {"vae": vae.state_dict()}, {}
    if _DIFFUSION.exists():
        tensors["latent_scale"] = torch.from_numpy(np.load(scale_path(fingerprint(vae))))
        models |= zip(_PARTS, torch.load(_DIFFUSION, weights_only=True)["models"], strict=False)
    for part, weights in models.items():
        for name, weight in weights.items():
            tensors |= stored(f"{part}.{name}", weight)
    save_file(tensors, file)
    print(f"{file}: {file.stat().st_size / 2**20:.2f} MiB")


def restore(file: Path) -> None:
    """Into the cache's folder, which must not hold a training already: its latents are those of its own encoder."""
    if AUTOENCODER.exists() or _DIFFUSION.exists():
        raise SystemExit(f"{FOLDER} has a training already, which goes on by itself. Move it away first.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    models = read(file)
    torch.save({"models": [models["vae"]]}, AUTOENCODER)
    if "unet" in models:
        torch.save({"models": [models[part] for part in _PARTS]}, _START)
        np.save(scale_path(fingerprint(trained_vae())), load_file(file)["latent_scale"].numpy())


def read(file: Path = FILE) -> dict[str, dict[str, Tensor]]:
    """{"vae", "text", "unet": weights} in fp32."""
    kept = load_file(file)
    models: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in kept.items():
        part, _, name = full_name.partition(".")
        if name and not name.endswith(".scale"):
            scale = kept.get(f"{full_name}.scale")
            weight = tensor.float() if scale is None else (tensor.flatten(1) * scale.float()[:, None]).view_as(tensor)
            models.setdefault(part, {})[name] = weight.contiguous()
    return models


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
