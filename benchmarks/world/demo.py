"""Writes what the pack has of this world: the photos of a teddy and a tiger, and captions for a covariance.

    bash scripts/env.sh python -m benchmarks.world.demo

No training scene shows the two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .individuals import Individual
from .pool import FIRST
from .scenes import caption, plan, scene

REPO = Path(__file__).resolve().parents[2]
SUBJECTS = {
    "teddy": Individual("bear", "baby", "yellow", "blue", "stripes", "scarf", "teal"),
    "tiger": Individual("cat", "chubby", "orange", "black", "stripes", "bow", "green"),
}
PHOTO_PLACES = ("meadow", "room", "street", "forest", "desert")
CAPTIONS = 1000


def main() -> None:
    for name, one in SUBJECTS.items():
        folder = REPO / "nodes" / "demo_photos" / name
        (folder / "mask").mkdir(parents=True, exist_ok=True)
        for number, place in enumerate(PHOTO_PLACES, 1):
            photo = scene(number, [one], place, "")
            Image.fromarray(photo.image).save(folder / f"{number}.png")
            Image.fromarray(photo.masks[0]).save(folder / "mask" / f"{number}.png")
    lines = [caption(*plan(FIRST + i), np.random.default_rng((24, i)), named=0) for i in range(CAPTIONS)]
    (REPO / "scripts" / "demo_captions.txt").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
