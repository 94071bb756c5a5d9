"""Painted scenes on disk, drawn once, in PERFUSION_CACHE (by default ~/.cache/comfyui-perfusion)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .individuals import BOOK, World
from .places import SIZE
from .scenes import scene

FOLDER = Path(os.environ.get("PERFUSION_CACHE") or Path.home() / ".cache" / "comfyui-perfusion") / "world"


def painted(count: int, first: int = 0, world: World = BOOK) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, 96, 96, 3) and where their things are (count, 96, 96), uint8, of scenes first, first + 1, ..."""
    path = FOLDER / f"{world.prefix}painted-{first}-{count}.npz"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        pictures, masks = np.empty((count, SIZE, SIZE, 3), np.uint8), np.empty((count, SIZE, SIZE), np.uint8)
        for index in range(count):
            drawn = scene(first + index, world=world)
            pictures[index], masks[index] = drawn.image, drawn.masks.max(0)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, pictures=pictures, masks=masks)
        part.replace(path)
    with np.load(path) as kept:
        return kept["pictures"], kept["masks"]
