"""Trains the image-text model behind the benchmark's CLIP scores, with open_clip's classes and its loss.

    bash scripts/env.sh python benchmarks/world/train_clip.py FOLDER --autoencoder FOLDER [--steps 1100]

It never sees a held-out concept. Besides captions it learns looks: two pictures of one look are more alike than those
of two looks, also of the same class, or likeness to a concept's photos would say no more than its class. Some of the
pictures went through the autoencoder. The result, FOLDER/clip, is in open_clip's layout. Goes on where it was left.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from half_precision import HalfPrecision
from judges import Clip, load_clip
from parts import as_input, as_pictures
from scenes import CONCEPTS, OBJECTS, TUNING_CONCEPTS, Scene, draw_scene
from train_autoencoder import trained_vae
from train_classifier import augmented, kept_round_trips, round_trip

MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 4, "width": 192, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "layers": 3, "width": 64, "heads": 2},
}
PREPROCESSING = {"mean": [0.5] * 3, "std": [0.5] * 3}
SCENES, LOOKS = 48, 40  # per batch: with captions, and looks in two pictures each
RATE, SAVE_EVERY = 1e-3, 100
LOOK_SCALE = 10.0  # of the cosines between two pictures
ROUND_TRIPS = 4000  # scenes through the autoencoder, and as many pictures of looks
CLASS_OF = {look: name for name, looks in OBJECTS.items() for look in looks}
FIRST_FRESH, FIRST_CHECKED = 10**6, 10**8  # numbers of scenes
TOKENIZER = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--autoencoder", type=Path, required=True, help="where train_autoencoder.py left it")
    parser.add_argument("--steps", type=int, default=1100)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "clip.pt"

    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    clip = open_clip.CLIP(**MODEL)
    training = HalfPrecision([clip], RATE, decay=0.05, average=0.99)
    vae = trained_vae(options.autoencoder).bfloat16()
    old_scenes = kept_round_trips(options.folder / "scenes_for_clip.pt", vae, captioned, ROUND_TRIPS)
    old_looks = kept_round_trips(options.folder / "looks_for_clip.pt", vae, looks, ROUND_TRIPS)
    if path.exists():
        training.load(path)

    done, start, losses = training.steps, time.monotonic(), []
    for step in range(done, options.steps):
        torch.manual_seed(step)
        with sdpa_kernel(SDPBackend.MATH):  # in bf16 on a CPU twice as fast as the fused one
            loss = torch.stack(losses_of(clip, *batch(step, old_scenes, old_looks)))
        training.step(loss.sum(), min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / options.steps)))
        losses.append(loss.tolist())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            seconds = (time.monotonic() - start) / (step + 1 - done)
            words, likeness = np.mean(losses[-SAVE_EVERY:], 0)
            print(f"step {step + 1}  captions {words:.3f}  looks {likeness:.3f}  {seconds:.3f} s/step", flush=True)
            training.save(path)

    write(options.folder / "clip", training.state_dicts()[0])
    judge = load_clip(options.folder / "clip")
    print(retrieval(judge, vae))
    print(likenesses(judge, vae))


def captioned(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Scenes (count, 3, 64, 64) in -1..1 and the tokens of their captions, none of which is empty.

    Every other scene is of the class of the one before it, so that captions are told apart by their other words, too.
    """
    classes = [np.random.default_rng((9, (first + i) // 2)).choice(list(OBJECTS)) for i in range(count)]
    drawn = [draw_scene(np.random.default_rng((6, first + i)), name) for i, name in enumerate(classes)]
    captions = [scene.caption or f"a photo of a {scene.name}" for scene in drawn]
    return as_input([scene.image for scene in drawn]), TOKENIZER(captions)


def looks(first: int, count: int, chosen: list[str] | None = None) -> tuple[Tensor, Tensor]:
    """Pictures of single looks, every one in its turn or those ``chosen``, and the tokens of their captions."""
    chosen = chosen or [list(CLASS_OF)[(first + i) % len(CLASS_OF)] for i in range(count)]
    drawn = [
        draw_scene(np.random.default_rng((7, first + i)), CLASS_OF[look], look, tint="", second="")
        for i, look in enumerate(chosen)
    ]
    captions = [scene.caption or f"a photo of a {scene.name}" for scene in drawn]
    return as_input([scene.image for scene in drawn]), TOKENIZER(captions)


def batch(step: int, old_scenes: tuple[Tensor, Tensor], old_looks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Images, of which the last 2 x LOOKS are pairs of the same look; tokens for all but the last LOOKS."""
    half = SCENES // 2
    images, tokens = captioned(FIRST_FRESH + step * half, half)
    old = 2 * torch.randint(ROUND_TRIPS // 2, (half // 2,)).repeat_interleave(2) + torch.arange(half) % 2
    classes = torch.randperm(len(OBJECTS)).tolist()
    chosen = "".join(list(OBJECTS.values())[i] for i in classes)[:LOOKS]  # so that most classes have all their looks
    fresh, words = looks(FIRST_FRESH + step * LOOKS, LOOKS, list(chosen))
    numbers = torch.tensor([list(CLASS_OF).index(look) for look in chosen])
    again = numbers + len(CLASS_OF) * torch.randint(ROUND_TRIPS // len(CLASS_OF), (LOOKS,))
    kept = torch.cat([old_scenes[0][old], old_looks[0][again]]).float() / 127.5 - 1
    images = torch.cat([images, kept[: len(old)], fresh, kept[len(old) :]])
    return augmented(images), torch.cat([tokens, old_scenes[1][old], words])


def losses_of(clip, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Of the captions and of the looks."""
    seen = clip.encode_image(images.bfloat16(), normalize=True).float()
    words = clip.encode_text(tokens, normalize=True).float()
    first, second = seen[-2 * LOOKS :].chunk(2)
    scale = clip.logit_scale.float().clamp_max(math.log(100)).exp()
    return ClipLoss()(seen[: len(words)], words, scale), ClipLoss()(first, second, LOOK_SCALE)


def write(folder: Path, weights: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    result = folder / "open_clip_model.safetensors"
    save_file({name: weight.half().contiguous() for name, weight in weights.items()}, result.with_suffix(".part"))
    result.with_suffix(".part").replace(result)


def retrieval(judge: Clip, vae, batches: int = 12) -> str:
    """How often a caption's nearest picture among 64 is one that it describes."""

    def described(caption: Scene, picture: Scene) -> bool:
        same = all(getattr(caption, what) == getattr(picture, what) for what in ("name", "second", "tint", "style"))
        return same and (caption.background == picture.background or caption.background not in caption.caption)

    right: dict[str, list[bool]] = {"plain": [], "through the autoencoder": []}
    for batch in range(batches):
        drawn = [draw_scene(np.random.default_rng((6, FIRST_CHECKED + 64 * batch + i))) for i in range(64)]
        images = as_input([scene.image for scene in drawn])
        asked = [scene for scene in drawn if scene.caption]
        texts = judge.texts([scene.caption for scene in asked])
        for kind, seen in (("plain", images), ("through the autoencoder", round_trip(vae, images))):
            nearest = (texts @ judge.images(as_pictures(seen)).T).argmax(1)
            right[kind] += [described(scene, drawn[i]) for scene, i in zip(asked, nearest, strict=True)]
    return "\n".join(f"right picture of 64, {kind}: {100 * np.mean(hits):.1f} %" for kind, hits in right.items())


def likenesses(judge: Clip, vae, count: int = 32) -> str:
    """Mean cosines of a concept's photos to others of it, and to pictures of its class's looks; both also repainted.

    The share says how often the former is nearer. Then the same of the looks that were seen in training.
    """

    def seen(name: str, look: str, first: int) -> tuple[Tensor, Tensor]:
        numbers = range(first, first + count)
        drawn = [draw_scene(np.random.default_rng((8, n)), name, look, tint="", second="", style="") for n in numbers]
        images = as_input([scene.image for scene in drawn])
        return judge.images(as_pictures(images)), judge.images(as_pictures(round_trip(vae, images)))

    def compared(name: str, look: str, others: str) -> list[float]:
        photos = seen(name, look, 0)[0]
        same, different = seen(name, look, count), [seen(name, other, 2 * count) for other in others]
        row = []
        for kind in (0, 1):
            near, far = photos @ same[kind].T, photos @ torch.cat([other[kind] for other in different]).T
            row += [near.mean(), far.mean(), 100 * (near[:, :, None] > far[:, None]).float().mean()]
        return [float(number) for number in row]

    rows = {
        concept: compared(name, look, OBJECTS[name])
        for concept, (look, name) in {**CONCEPTS, **TUNING_CONCEPTS}.items()
    }
    pairs = [compared(name, looks[0], looks[1]) for name, looks in OBJECTS.items() if len(looks) > 1]
    rows |= {"all concepts": np.mean(list(rows.values()), 0), "training looks": np.mean(pairs, 0)}
    lines = [f"{'':15} itself  class  nearer   repainted: itself  class  nearer"]
    form = "{:15} {:6.3f} {:6.3f} {:5.1f} %              {:6.3f} {:6.3f} {:5.1f} %"
    return "\n".join(lines + [form.format(name, *row) for name, row in rows.items()])


if __name__ == "__main__":
    main()
