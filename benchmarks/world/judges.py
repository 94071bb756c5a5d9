"""The judges of the world's pictures: a classifier of what is in them, and an image-text model for CLIP's scores."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from scenes import BACKGROUNDS, CONCEPTS, OBJECTS, STYLES, TINTS, TUNING_CONCEPTS

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from perfusion_core.openclip import ImageTextModel, load_image_text_model

NAMES = (*OBJECTS, *CONCEPTS, *TUNING_CONCEPTS)  # a picture can show several: a teddy is a bear, too
CHOICES = {"background": BACKGROUNDS, "tint": ("", *TINTS), "style": tuple(STYLES)}  # and has one of each of these
WIDTHS = (32, 64, 128)


class Network(nn.Module):
    """(n, 3, 64, 64) in -1..1 -> logits per head: (n, names), (n, backgrounds), (n, tints), (n, styles)."""

    def __init__(self) -> None:
        super().__init__()
        small, middle, large = WIDTHS
        self.body = nn.Sequential(
            nn.Conv2d(3, small, 6, stride=2, padding=2), Block(small),
            nn.Conv2d(small, middle, 2, stride=2), Block(middle), Block(middle),
            nn.Conv2d(middle, large, 2, stride=2), Block(large), Block(large), nn.GroupNorm(8, large),
        )  # fmt: skip
        self.sizes = (len(NAMES), *map(len, CHOICES.values()))
        self.heads = nn.Linear(3 * large, sum(self.sizes))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        seen = self.body(images)  # (n, channels, 8, 8)
        left, right = (half.mean((2, 3)) for half in seen.chunk(2, dim=3))
        return self.heads(torch.cat([left, right, seen.amax((2, 3))], 1)).split(self.sizes, 1)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.second_norm(self.first(F.silu(self.first_norm(x))))))


@dataclass(frozen=True)
class Verdicts:
    """Of n pictures. The tint is the first object's, "" in styles without colours; so is a plain photo's style."""

    objects: Tensor  # (n, names), bool: what is there
    scores: Tensor  # (n, names), 0..1
    background: list[str]
    tint: list[str]
    style: list[str]


@dataclass(frozen=True)
class Classifier:
    network: Network
    names: tuple[str, ...]
    thresholds: Tensor  # (names,), of the scores

    @torch.no_grad()
    def judge(self, images: Tensor) -> Verdicts:
        """Of pictures (n, 64, 64, 3) in 0..1."""
        batches = [self.network(batch) for batch in (images.permute(0, 3, 1, 2).contiguous() * 2 - 1).split(64)]
        objects, *choices = (torch.cat(parts) for parts in zip(*batches, strict=True))
        chosen = {
            head: [options[i] for i in logits.argmax(1)]
            for (head, options), logits in zip(CHOICES.items(), choices, strict=True)
        }
        scores = objects.sigmoid()
        return Verdicts(scores >= self.thresholds, scores, **chosen)


def load_classifier(path: str | os.PathLike[str]) -> Classifier:
    """What train_classifier.py wrote."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
    names = tuple(json.loads(metadata["names"]))
    if names != NAMES:
        raise ValueError(f"{path} judges another world, with {len(names)} names. Train it anew: train_classifier.py.")
    network = Network()
    network.load_state_dict(weights)
    return Classifier(network.eval(), names, torch.tensor(json.loads(metadata["thresholds"])))


@dataclass(frozen=True)
class Clip:
    model: ImageTextModel

    def images(self, images: Tensor) -> Tensor:
        """(n, d) unit vectors of pictures (n, 64, 64, 3) in 0..1."""
        return self.model.embed_images(images)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) unit vectors."""
        return self.model.embed_texts(texts)


def load_clip(path: str | os.PathLike[str]) -> Clip:
    """What train_clip.py wrote."""
    return Clip(load_image_text_model(path))
