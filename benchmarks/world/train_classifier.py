"""Trains the judge of what is in a picture: its objects and concepts, background, tint and style.

    bash scripts/env.sh python benchmarks/world/train_classifier.py FOLDER --autoencoder FOLDER [--steps 6000]

The held-out concepts are in its scenes, so that it can tell whether a picture shows one. Half of the scenes went
through the autoencoder, with noise on their latents, and all are warped, which looks like what a diffusion model
paints. Goes on where it was left. The same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from half_precision import HalfPrecision
from judges import CHOICES, NAMES, Network, load_classifier
from parts import as_input, as_pictures
from scenes import CONCEPTS, OBJECTS, STYLES, TUNING_CONCEPTS, draw_scene
from train_autoencoder import moments, trained_vae

BATCH, RATE, SAVE_EVERY = 64, 2e-3, 200
ROUND_TRIPS, NOISE = 10_000, 0.6  # scenes that go through the autoencoder, and at most how much is added to latents
WARP = 2.0  # pixels, at most the std of how far the points of a grid of 8x8 are moved
CHECKED = 2000  # scenes that the thresholds are set on, and as many others for the report
LOOKS = {**CONCEPTS, **TUNING_CONCEPTS}
FIRST_CONCEPT, SECOND_CONCEPT, SECOND, STYLED = 0.25, 0.1, 0.5, 0.45  # shares of scenes: more of what is hard to see
COLOURLESS = ("sketch", "gray")
FIRST_FRESH, FIRST_CHECKED = 10**6, 10**8  # numbers of scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--autoencoder", type=Path, required=True, help="where train_autoencoder.py left it")
    parser.add_argument("--steps", type=int, default=6000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path, result = options.folder / "classifier.pt", options.folder / "classifier.safetensors"

    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    network = Network()
    training = HalfPrecision([network], RATE, decay=0.01, average=0.995)
    vae = trained_vae(options.autoencoder).bfloat16()
    old_images, old_labels = kept_round_trips(options.folder / "scenes_for_classifier.pt", vae, examples, ROUND_TRIPS)
    if path.exists():
        training.load(path)

    done, start, losses = training.steps, time.monotonic(), []
    for step in range(done, options.steps):
        torch.manual_seed(step)
        images, labels = examples(FIRST_FRESH + step * BATCH // 2, BATCH // 2)
        old = torch.randint(len(old_images), (BATCH // 2,))
        images = augmented(warped(torch.cat([images, old_images[old].float() / 127.5 - 1])))
        loss = error(network(images.bfloat16()), torch.cat([labels, old_labels[old]]))
        training.step(loss, min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / options.steps)))
        losses.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            seconds = (time.monotonic() - start) / (step + 1 - done)
            print(f"step {step + 1}  loss {np.mean(losses[-SAVE_EVERY:]):.4f}  {seconds:.3f} s/step", flush=True)
            training.save(path)

    images, labels = examples(FIRST_CHECKED, CHECKED)
    weights = {name: weight.contiguous() for name, weight in training.state_dicts()[0].items()}
    write(result, weights, torch.full((len(NAMES),), 0.5))
    torch.manual_seed(0)
    seen = warped(torch.cat([images, round_trip(vae, images)]))
    scores = load_classifier(result).judge(as_pictures(seen)).scores
    write(result, weights, thresholds(scores, labels[:, : len(NAMES)].bool().repeat(2, 1)))
    images, labels = examples(FIRST_CHECKED + CHECKED, CHECKED)
    repainted = round_trip(vae, images)
    for kind, seen in (("plain", images), ("through the autoencoder", repainted), ("and warped", warped(repainted))):
        print(f"{kind}:\n{report(result, as_pictures(seen), labels)}")


def example(number: int) -> tuple[np.ndarray, list[int]]:
    """A scene by its number; whether each of NAMES is there, then the number of its background, tint and style."""
    random = np.random.default_rng((4, number))

    def maybe(share: float, options: Collection[str]) -> str:
        return list(options)[random.integers(len(options))] if random.random() < share else ""

    first, other = maybe(FIRST_CONCEPT, LOOKS), maybe(SECOND_CONCEPT, LOOKS)
    look, name = LOOKS[first] if first else (None, None)
    second_look, second = LOOKS[other] if other else (None, maybe(SECOND, OBJECTS))
    style = maybe(STYLED, [style for style in STYLES if style])
    scene = draw_scene(random, name, look, style=style, second=second, second_look=second_look)
    seen = {"background": scene.background, "tint": scene.tint, "style": scene.style}
    if scene.style in COLOURLESS:
        seen["tint"] = ""
    there = [name in (scene.name, scene.second, first, other) for name in NAMES]
    return scene.image, [*map(int, there), *(CHOICES[head].index(choice) for head, choice in seen.items())]


def examples(first: int, count: int) -> tuple[Tensor, Tensor]:
    """(count, 3, 64, 64) in -1..1, and their labels, (count, names + 3)."""
    images, labels = zip(*(example(first + i) for i in range(count)), strict=True)
    return as_input(images), torch.tensor(labels)


Examples = Callable[[int, int], tuple[Tensor, Tensor]]


def kept_round_trips(path: Path, vae, examples: Examples, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 64, 64) in 0..255 through the autoencoder, and their labels. Made once and kept in the file."""
    if not path.exists():
        start, batches = time.monotonic(), []
        for first in range(0, count, 100):
            torch.manual_seed(first)
            images, labels = examples(first, 100)
            there = round_trip(vae, images, NOISE * torch.rand(100, 1, 1, 1))
            batches.append((((there.clamp(-1, 1) + 1) * 127.5).round().byte(), labels))
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        torch.save({"images": images, "labels": labels}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        print(f"{count} scenes through the autoencoder in {time.monotonic() - start:.0f} s", flush=True)
    kept = torch.load(path, weights_only=True)
    return kept["images"], kept["labels"]


@torch.no_grad()
def round_trip(vae, images: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Images (n, 3, 64, 64) to latents and back, there with noise of this std."""
    back = []
    for batch, amount in zip(images.split(50), (torch.zeros(len(images), 1, 1, 1) + noise).split(50), strict=True):
        latents = moments(vae, batch.bfloat16())[0].float()
        back.append(vae.decode((latents + amount * torch.randn_like(latents)).bfloat16()).float())
    return torch.cat(back)


def warped(images: Tensor) -> Tensor:
    """Images (n, 3, 64, 64) bent by some pixels here and there, so that no detail is just in its place."""
    amount = torch.empty(len(images), 1, 1, 1).uniform_(0, WARP)
    bent = amount * torch.randn(len(images), 2, 8, 8)
    bent = F.interpolate(bent, images.shape[-2:], mode="bicubic").permute(0, 2, 3, 1)
    places = F.affine_grid(torch.eye(2, 3).expand(len(images), -1, -1), [*images.shape], False)
    return F.grid_sample(images, places + bent * 2 / images.shape[-1], "bilinear", "border", False)


def augmented(images: Tensor) -> Tensor:
    """Two thirds of the images moved, zoomed, blurred and noisy, in other light, each a little."""
    count = len(images)

    def amount(least: float, most: float) -> Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(least, most)

    places = torch.zeros(count, 2, 3)
    places[:, 0, 0], places[:, 1, 1] = amount(0.92, 1.08).flatten(), amount(0.92, 1.08).flatten()
    places[:, :, 2] = torch.empty(count, 2).uniform_(-0.08, 0.08)
    moved = F.grid_sample(images, F.affine_grid(places, [*images.shape], False), "bilinear", "border", False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), "replicate"), 3, 1)
    changed = moved + amount(-0.5, 1).clamp_min(0) * (blurred - moved)
    changed = changed * amount(0.85, 1.15) + amount(-0.1, 0.1) + 0.03 * torch.randn(count, 3, 1, 1)
    changed += amount(-0.1, 0.15).clamp_min(0) * torch.randn_like(images)
    return torch.where(amount(0, 1) < 1 / 3, images, changed)


def error(logits: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    objects, *choices = (part.float() for part in logits)
    there = F.binary_cross_entropy_with_logits(objects, labels[:, : len(NAMES)].float()) * len(NAMES)
    return there + sum(F.cross_entropy(part, labels[:, len(NAMES) + i]) for i, part in enumerate(choices))


def thresholds(scores: Tensor, there: Tensor) -> Tensor:
    """(names,): the middle of those with the best F1, for scores and truth (n, names)."""
    grid = torch.linspace(0.05, 0.95, 91)[:, None]
    found = scores >= grid[..., None]  # (91, n, names)
    f1 = 2 * (found & there).sum(1) / (found.sum(1) + there.sum(0))
    best = f1 == f1.max(0).values
    return (grid * best).sum(0) / best.sum(0)


def write(path: Path, weights: dict[str, Tensor], thresholds: Tensor) -> None:
    metadata = {"names": json.dumps(NAMES), "thresholds": json.dumps([round(t, 3) for t in thresholds.tolist()])}
    save_file(weights, path.with_suffix(".part"), metadata)
    path.with_suffix(".part").replace(path)


def report(path: Path, pictures: Tensor, labels: Tensor) -> str:
    """Percentages over all pictures, then by style; tints only count in colour."""
    verdicts = load_classifier(path).judge(pictures)
    objects, concepts = len(OBJECTS), [NAMES.index(name) for name in LOOKS]
    there, found = labels[:, : len(NAMES)].bool(), verdicts.objects
    kin = there[:, [NAMES.index(LOOKS[name][1]) for name in LOOKS]] & ~there[:, concepts]  # the class, not the concept
    right = {
        head: torch.tensor([options.index(said) for said in getattr(verdicts, head)]) == labels[:, len(NAMES) + i]
        for i, (head, options) in enumerate(CHOICES.items())
    }
    lines = []
    for style in (None, *STYLES):
        rows = labels[:, -1] == list(STYLES).index(style) if style is not None else torch.ones(len(labels), dtype=bool)
        shown, seen = there[rows], found[rows]
        shares = {
            "objects found": seen[:, :objects][shown[:, :objects]],
            "wrongly found in 100": (seen & ~shown)[:, :objects].sum(1),
            "exactly the objects": (seen == shown)[:, :objects].all(1),
            "concepts found": seen[:, concepts][shown[:, concepts]],
            "in others of the class": seen[:, concepts][kin[rows]],
            **{head: hits[rows] for head, hits in right.items()},
        }
        said = ", ".join(f"{what} {100 * share.float().mean():.1f}" for what, share in shares.items())
        lines.append(f"  {'all' if style is None else style or 'photo'}: {said}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
