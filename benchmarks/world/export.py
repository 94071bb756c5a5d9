"""Writes the trained demo model to the file that comes with the pack, nodes/demo_model.safetensors.

    bash scripts/env.sh python benchmarks/world/export.py FOLDER [--file PATH]
    bash scripts/env.sh python benchmarks/world/export.py FOLDER --restore  # the other way, to train further from it

FOLDER has what the trainings left: autoencoder.pt, decoder.pt, diffusion.pt and scenes.pt. Weights of two or more
dimensions are kept as int8 with an fp16 scale per output row, the others in fp16. Equal weights give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from parts import TEXT, UNET, VAE, Vocabulary
from train_autoencoder import trained_vae
from train_diffusion import scenes

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from perfusion_core.concept_file import safetensors_bytes, write_atomically

FILE = ROOT / "nodes" / "demo_model.safetensors"
PREVIEWED = 512  # latents that the previews' colours are fitted on


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--restore", action="store_true", help="fill FOLDER with what the trainings start from")
    options = parser.parse_args()
    if options.restore:
        restore(options.file, options.folder)
        return

    vae = trained_vae(options.folder)
    latents, _, _ = scenes(options.folder, vae)  # the vae now makes latents of mean 0 and std 1
    text, unet = torch.load(options.folder / "diffusion.pt", weights_only=True)["models"]
    parts = {"unet": unet, "text": with_host_names(text), "vae": vae.state_dict()}

    tensors, errors = {"tokens": torch.tensor(Vocabulary().ids, dtype=torch.int32)}, {}
    for part, weights in parts.items():
        for name, weight in weights.items():
            tensors |= (kept := stored(f"{part}.{name}", weight))
            errors[f"{part}.{name}"] = relative_error(weight, *kept.values())
    factors, bias = preview_colours(vae, latents[:PREVIEWED].float())
    metadata = {"unet": UNET, "text": TEXT, "vae": VAE, "latent_rgb_factors": factors, "latent_rgb_factors_bias": bias}
    content = safetensors_bytes(tensors, {key: json.dumps(value) for key, value in metadata.items()})
    write_atomically(options.file, content)
    worst = max(errors, key=lambda name: errors[name])
    print(f"{options.file}: {len(content) / 2**20:.2f} MiB, relative error at most {errors[worst]:.4f} ({worst})")


def restore(file: Path, folder: Path) -> None:
    """The autoencoder, and start.pt, from which train_diffusion.py starts; optimizers start anew."""
    weights = read_weights(file)
    text, known = weights["text"], load_file(file)["tokens"].tolist()
    text["table.weight"] = for_vocabulary(text["table.weight"], known)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"models": [weights["vae"]]}, folder / "autoencoder.pt")
    torch.save({"models": [weights["text"], weights["unet"]]}, folder / "start.pt")


def for_vocabulary(table: Tensor, known: list[int]) -> Tensor:
    """A token table with rows for ``known`` tokens and one for all others, for those of the vocabulary instead.

    Rows that are new start by chance.
    """
    rows, generator = dict(zip(known, table, strict=False)), torch.Generator().manual_seed(0)
    new = (rows.get(i, table.std() * torch.randn(table.shape[1:], generator=generator)) for i in Vocabulary().ids)
    return torch.stack([*new, table[-1]])


def read_weights(path: Path = FILE) -> dict[str, dict[str, Tensor]]:
    """{"unet", "text", "vae": the weights for parts.py's networks}, as the host loads them, in fp32."""
    kept = load_file(path)
    weights: dict[str, dict[str, Tensor]] = {"unet": {}, "text": {}, "vae": {}}
    for full_name, tensor in kept.items():
        part, _, name = full_name.partition(".")
        if part in weights and not name.endswith(".scale"):
            scale = kept.get(f"{full_name}.scale")
            weight = tensor.float() if scale is None else (tensor.flatten(1) * scale.float()[:, None]).view_as(tensor)
            weights[part][name] = weight.half().float()
    table = weights["text"].pop("embeddings.token_embedding.weight")
    weights["text"] = {"table.weight": table, **{f"transformer.{k}": v for k, v in weights["text"].items()}}
    return weights


def with_host_names(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """A TextEncoder's weights as ComfyUI's text model names them."""
    table = {"table.weight": "embeddings.token_embedding.weight"}
    return {table.get(name, name.removeprefix("transformer.")): weight for name, weight in text.items()}


def stored(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What the file holds of a weight: itself, and its scale (rows,) if it is kept as int8."""
    if weight.ndim < 2:
        return {name: weight.half()}
    rows = weight.float().flatten(1)
    scale = (rows.abs().amax(1) / 127).half()
    smallest = torch.finfo(torch.float16).smallest_normal
    steps = rows / scale.float().clamp_min(smallest)[:, None]
    return {name: steps.round().clamp(-127, 127).to(torch.int8).view(weight.shape), f"{name}.scale": scale}


def relative_error(weight: Tensor, kept: Tensor, scale: Tensor | None = None) -> float:
    restored = kept.float() if scale is None else (kept.flatten(1) * scale.float()[:, None]).view_as(weight)
    return ((restored - weight).norm() / weight.norm().clamp_min(1e-12)).item()


@torch.no_grad()
def preview_colours(vae, latents: Tensor) -> tuple[list[list[float]], list[float]]:
    """Least squares from latent channels to red, green and blue in -1..1: factors (4, 3) and bias (3,)."""
    pictures = vae.decode(latents).clamp(-1, 1)
    colours = F.avg_pool2d(pictures, pictures.shape[-1] // latents.shape[-1]).movedim(1, -1).flatten(0, -2)
    channels = F.pad(latents.movedim(1, -1).flatten(0, -2), (0, 1), value=1.0)
    solution = torch.linalg.lstsq(channels.double(), colours.double()).solution
    *factors, bias = [[round(number, 4) for number in row] for row in solution.tolist()]
    return factors, bias


if __name__ == "__main__":
    main()
