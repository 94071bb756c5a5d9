"""Draws a few "photos" of one invented toy, a plush bear with an antenna and a striped scarf, with their masks.

    python scripts/make/draw_photos.py FOLDER [--count 5] [--size 512] [--seed 0]

The toy is a list of lit ellipsoids, drawn with soft edges in the picture's own pixels; only pose and scene vary.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

TEAL: Colour = (0.10, 0.52, 0.54)
CREAM: Colour = (0.95, 0.87, 0.72)
YELLOW: Colour = (0.98, 0.74, 0.16)
ORANGE: Colour = (0.93, 0.36, 0.12)
WHITE: Colour = (0.97, 0.95, 0.92)
DARK: Colour = (0.06, 0.05, 0.07)

LIGHT = np.array([-0.45, -0.6, 0.66], np.float32)  # x to the right, y down, z towards the viewer


@dataclass(frozen=True)
class Part:
    """An ellipsoid in the toy's own units: its head's centre is near (0, -0.4), its feet near (0, 0.95)."""

    x: float
    y: float
    width: float  # half axes
    height: float
    colour: Colour
    tilt: float = 0.0  # degrees
    stripe: Colour | None = None
    gloss: float = 0.0


TOY = [
    Part(-0.50, 0.38, 0.15, 0.33, TEAL, tilt=32), Part(0.50, 0.38, 0.15, 0.33, TEAL, tilt=-32),
    Part(-0.66, 0.62, 0.12, 0.12, CREAM), Part(0.66, 0.62, 0.12, 0.12, CREAM),
    Part(0, 0.48, 0.46, 0.50, TEAL), Part(0, 0.54, 0.29, 0.34, CREAM),
    Part(-0.30, 0.90, 0.23, 0.20, TEAL), Part(0.30, 0.90, 0.23, 0.20, TEAL),
    Part(-0.30, 0.93, 0.13, 0.12, CREAM), Part(0.30, 0.93, 0.13, 0.12, CREAM),
    Part(0.02, -0.90, 0.022, 0.16, DARK), Part(0.02, -1.08, 0.085, 0.085, YELLOW, gloss=0.5),
    Part(-0.40, -0.72, 0.19, 0.19, TEAL), Part(0.40, -0.72, 0.19, 0.19, YELLOW),
    Part(-0.40, -0.70, 0.11, 0.11, CREAM), Part(0.40, -0.70, 0.11, 0.11, CREAM),
    Part(0, -0.38, 0.53, 0.46, TEAL),
    Part(0.20, 0.36, 0.11, 0.30, ORANGE, tilt=-9, stripe=WHITE), Part(0, 0.07, 0.40, 0.13, ORANGE, stripe=WHITE),
    Part(0, -0.22, 0.25, 0.19, CREAM), Part(0, -0.31, 0.085, 0.06, DARK, gloss=0.7),
    Part(-0.22, -0.46, 0.07, 0.075, DARK, gloss=1.0), Part(0.22, -0.46, 0.07, 0.075, DARK, gloss=1.0),
]  # fmt: skip


@dataclass(frozen=True)
class Scene:
    wall: Colour
    floor: Colour
    bokeh: Colour
    grain: tuple[int, int]  # cells of the floor's texture across and down the picture: planks, grass, knots
    x: float  # the toy's middle, as a part of the picture
    y: float
    scale: float  # half the toy's height, likewise
    angle: float


SCENES = [
    Scene((0.80, 0.74, 0.66), (0.55, 0.35, 0.20), (0.97, 0.90, 0.75), (6, 60), 0.50, 0.53, 0.34, 0),
    Scene((0.52, 0.74, 0.92), (0.26, 0.48, 0.18), (0.93, 0.96, 0.90), (200, 50), 0.36, 0.57, 0.30, -8),
    Scene((0.28, 0.33, 0.50), (0.72, 0.68, 0.76), (0.98, 0.80, 0.50), (40, 40), 0.63, 0.55, 0.36, 11),
    Scene((0.55, 0.80, 0.84), (0.88, 0.77, 0.56), (0.98, 0.98, 0.95), (150, 70), 0.58, 0.62, 0.25, 17),
    Scene((0.66, 0.42, 0.40), (0.30, 0.22, 0.20), (0.95, 0.70, 0.55), (5, 40), 0.42, 0.50, 0.38, -14),
    Scene((0.86, 0.86, 0.84), (0.78, 0.79, 0.80), (0.70, 0.80, 0.90), (20, 20), 0.47, 0.56, 0.31, 24),
]


def draw_photos(folder: Path, count: int = 5, size: int = 512, seed: int = 0) -> None:
    """Writes 0.png … to `folder` and masks of the same names (white: the toy, soft edges) to its mask/."""
    (folder / "mask").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        scene = SCENES[i % len(SCENES)]
        toy, mask = draw_toy(scene, size, rng)
        picture = draw_background(scene, size, rng)
        picture *= 1 - 0.55 * contact_shadow(scene, size)[..., None]
        picture = picture * (1 - mask[..., None]) + toy * mask[..., None]
        picture += rng.normal(0, 0.008, picture.shape)  # the sensor's noise
        to_image(picture).save(folder / f"{i}.png")
        to_image(mask).save(folder / "mask" / f"{i}.png")


def draw_toy(scene: Scene, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The toy's colours (size, size, 3) and its coverage (size, size)."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size + 0.5 / size
    unit = scene.scale / 1.15  # the toy reaches 1.15 units up and down
    x, y = rotate((x - scene.x) / unit, (y - scene.y) / unit, -scene.angle)
    lx, ly = rotate(LIGHT[0], LIGHT[1], -scene.angle)  # the light stays where it is when the toy turns
    plush = 1 + 0.10 * (noise(size, size // 3, size // 3, rng) - 0.5) + 0.10 * (noise(size, 40, 40, rng) - 0.5)
    colours, coverage = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
    for part in TOY:
        u, v = rotate(x - part.x, y - part.y, -part.tilt)
        u, v = u / part.width, v / part.height
        radius = np.sqrt(u * u + v * v)
        edge = min(part.width, part.height) * unit * size  # pixels, so that the edge is about one pixel soft
        alpha = np.clip((1 - radius) * edge + 0.5, 0, 1)
        nz = np.sqrt(np.clip(1 - radius**2, 0, 1))
        plx, ply = rotate(lx, ly, -part.tilt)
        lit = np.clip(u * plx + v * ply + nz * LIGHT[2], 0, 1)
        colour = np.broadcast_to(np.array(part.colour, np.float32), colours.shape)
        if part.stripe:
            along = v if part.height > part.width else u
            colour = np.where((np.sin(along * 11) > 0)[..., None], np.array(part.stripe, np.float32), colour)
        shade = (0.38 + 0.72 * lit) * (0.75 + 0.25 * nz) * (1 if part.gloss else plush)
        lit_colour = colour * shade[..., None] + part.gloss * (lit**30)[..., None]
        colours = colours * (1 - alpha[..., None]) + lit_colour * alpha[..., None]
        coverage = np.maximum(coverage, alpha)
    return colours / np.maximum(coverage, 1e-3)[..., None], coverage


def draw_background(scene: Scene, size: int, rng: np.random.Generator) -> Array:
    """A wall out of focus and a textured floor from the toy's feet on: (size, size, 3)."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    horizon = min(scene.y + 0.55 * scene.scale, 0.8)
    wall = np.array(scene.wall, np.float32) * (1.12 - 0.45 * y - 0.15 * x)[..., None]
    for _ in range(14):
        cx, cy, radius = rng.uniform(0, 1), rng.uniform(0, horizon), rng.uniform(0.02, 0.07)
        spot = np.clip((radius - np.hypot(x - cx, y - cy)) * 60, 0, 1) * rng.uniform(0.1, 0.35)
        wall += spot[..., None] * (np.array(scene.bokeh, np.float32) - wall)
    grain = 0.7 * noise(size, *scene.grain, rng) + 0.3 * noise(size, size // 4, size // 4, rng)
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    floor = np.array(scene.floor, np.float32) * (0.75 + 0.35 * depth + 0.35 * (grain - 0.5))[..., None]
    on_floor = np.clip((y - horizon) * 60, 0, 1)[..., None]
    return wall * (1 - on_floor) + floor * on_floor


def contact_shadow(scene: Scene, size: int) -> Array:
    """Where the toy stands, falling to the right, away from the light."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    dx, dy = rotate(0.0, 0.88 * scene.scale, scene.angle)
    u = (x - scene.x - dx - 0.10 * scene.scale) / (0.75 * scene.scale)
    v = (y - scene.y - dy) / (0.17 * scene.scale)
    return np.exp(-(u * u + v * v) * 1.6)


def rotate(x, y, degrees: float):  # type: ignore[no-untyped-def]  # numbers or arrays alike
    turn = np.deg2rad(degrees)
    return x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)


def noise(size: int, across: int, down: int, rng: np.random.Generator) -> Array:
    """Smooth noise in [0, 1] of so many cells across and down, (size, size)."""
    cells = Image.fromarray(rng.integers(0, 256, (max(down, 2), max(across, 2)), dtype=np.uint8))
    return np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255


def to_image(values: Array) -> Image.Image:
    image = Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.4))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw_photos(arguments.folder, arguments.count, arguments.size, arguments.seed)
