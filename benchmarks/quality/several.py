"""Several individuals in one picture, kept apart and not, beside LoRAs and regional prompts, as ComfyUI itself paints.

    bash scripts/env.sh python -m benchmarks.quality.several FOLDER [--workers 2] [--seeds 0 1 2]

FOLDER is run.py's, with what that learned. Every finished piece is kept in FOLDER/several, so it goes on where it was
stopped; docs/several.json, .md and .jpg are made of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.speed import host  # noqa: F401, starts the host
from benchmarks.world.places import PLACES, SIZE
from benchmarks.world.reader import trained_reader
from perfusion_core.concept_file import safetensors_bytes, write_atomically

# isort: split
import comfy.sample
import folder_paths
from comfyui_perfusion.nodes.host.apart import KeepApart
from comfyui_perfusion.nodes.host.demo_model import load_demo_model
from comfyui_perfusion.nodes.host.model import apply_to_model, keep_apart
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.pictures import contact_sheet
from comfyui_perfusion.perfusion_core import load_concept

import nodes as host_nodes

from .evaluation import Assessor, genuine_together, prompts_together
from .methods import TOGETHER_BETA, TOGETHER_STRENGTH
from .painter import FILE, STEPS, STRONG_GUIDANCE, Painter, Task, filled, task
from .report import CELL, DOCS, fill, interval, means, table

KINDS = {"two": "of two classes", "twins": "two of one class", "three": "of three classes"}
PERFUSION, LOCKED, LORA, GENUINE = "perfusion", "perfusion, locked keys", "lora, rank 4", "genuine scenes"
APART, REGIONAL = ", kept apart", ", regional prompts"
MOST = 16  # groups of a kind
WAYS = (PERFUSION, PERFUSION + APART, PERFUSION + REGIONAL, LORA, LORA + REGIONAL, LOCKED, LOCKED + APART)


class Several:
    def __init__(self, folder: Path, model: Path):
        self.folder, self.painter = folder, Painter(model)
        (folder / "several").mkdir(exist_ok=True)
        self.words = Path(tempfile.mkdtemp())  # embeddings of the LoRAs' words
        folder_paths.add_model_folder_path("embeddings", str(self.words))
        self.model, self.clip, self.vae = load_demo_model(model)

    def paint(self, numbers: Sequence[int], seed: int) -> None:
        """All ways to paint these individuals together."""
        path = piece(self.folder, numbers, seed)
        found = load_file(path) if path.exists() else {}
        if all(way in found for way in WAYS):
            return
        subjects = [task(number) for number in numbers]
        places = [prompt.place for prompt in prompts_together(subjects)]
        noise = comfy.sample.prepare_noise(torch.zeros(len(places), 16, 12, 12), 1000 * seed + numbers[0])
        for way in WAYS:
            if way not in found:
                found[way] = torch.from_numpy(self.pictures(way, subjects, places, noise))
        found[GENUINE] = torch.from_numpy(np.stack(genuine_together(subjects, places)))
        write_atomically(path, safetensors_bytes({way: some.contiguous() for way, some in found.items()}, {}))
        print(path.stem, flush=True)

    def pictures(self, way: str, subjects: Sequence[Task], places: Sequence[str], noise: Tensor) -> np.ndarray:
        label = way.removesuffix(APART).removesuffix(REGIONAL)
        loaded = self.with_loras if label == LORA else self.with_concepts
        model, clip, words = loaded(label, [one.number for one in subjects])
        model = keep_apart(model, KeepApart()) if way.endswith(APART) else model

        def told(named: Sequence[str], place: str):
            sentence = filled(f"a photo of {' and '.join(['a {}'] * len(named))} {PLACES[place]}", named)
            return host_nodes.CLIPTextEncode().encode(clip, sentence)[0]

        (negative,) = host_nodes.CLIPTextEncode().encode(clip, "")
        pictures = []
        for place, own in zip(places, noise, strict=True):
            if way.endswith(REGIONAL):  # a prompt for each part, in which the others are their classes
                positive = []
                for i, word in enumerate(words):
                    mask = torch.zeros(1, SIZE, SIZE)
                    mask[..., SIZE * i // len(words) : SIZE * (i + 1) // len(words)] = 1
                    own_word = [word if j == i else subject.superclass for j, subject in enumerate(subjects)]
                    positive += host_nodes.ConditioningSetMask().append(told(own_word, place), mask, "default", 1.0)[0]
            else:
                positive = told(words, place)
            latent = comfy.sample.sample(
                model, own[None], STEPS, STRONG_GUIDANCE, "ddim", "ddim_uniform", positive, negative,
                torch.zeros_like(own[None]), disable_pbar=True, seed=0,
            )  # fmt: skip
            pictures.append(self.vae.decode(latent)[0].mul(255).round().byte().cpu().numpy())
        return np.stack(pictures)

    def with_concepts(self, label: str, numbers: Sequence[int]):
        concepts = [load_concept(learned(self.folder, label, number)) for number in numbers]
        concepts = [one.replace(trigger=f"<n{number}>") for one, number in zip(concepts, numbers, strict=True)]
        uses = [ConceptUse(concept, TOGETHER_BETA) for concept in concepts]
        return apply_to_model(self.model, uses), apply_to_clip(self.clip, uses), [one.trigger for one in concepts]

    def with_loras(self, label: str, numbers: Sequence[int]):
        model, words = self.model.clone(), []
        own = dict(self.painter.unet.named_parameters())
        for number in numbers:
            weights = load_file(learned(self.folder, label, number))
            word = f"n{number}"
            save_file({"clip_l": weights.pop("embedding")[None]}, self.words / f"{word}.safetensors")
            words.append(f"embedding:{word} {task(number).superclass}")
            model.add_patches(
                {f"diffusion_model.{name}": (weight - own[name].float(),) for name, weight in weights.items()},
                TOGETHER_STRENGTH,
            )
        return model, self.clip, words


def piece(folder: Path, numbers: Sequence[int], seed: int) -> Path:
    return folder / "several" / f"{' '.join(map(str, numbers))} - {seed}.safetensors"


def learned(folder: Path, label: str, number: int) -> Path:
    return folder / "learned" / f"{label} - {number} - 0.safetensors"


def groups(individuals: Sequence[int]) -> dict[str, list[tuple[int, ...]]]:
    """{kind: who stands together}; of twos and threes of different classes some, by chance."""
    kinds = {number: task(number).superclass for number in individuals}

    def of_different_classes(count: int) -> list[tuple[int, ...]]:
        known = itertools.combinations(individuals, count)
        some = [numbers for numbers in known if len({kinds[number] for number in numbers}) == count]
        return sorted(random.Random(count).sample(some, min(MOST, len(some))))

    twins = [(a, b) for a, b in itertools.permutations(individuals, 2) if kinds[a] == kinds[b]]
    return {"two": of_different_classes(2), "twins": twins, "three": of_different_classes(3)}


# What is in the pictures


def judged(folder: Path, asked: Mapping[str, Sequence[tuple[int, ...]]], seeds: Sequence[int]) -> dict[str, Any]:
    """{kind: {way: scores}}, with 95 % of what keeping apart adds to "all"."""
    assessor, found = Assessor(trained_reader()), {}
    for kind, some in asked.items():
        scores: dict[str, dict[tuple, dict[str, float]]] = defaultdict(dict)
        for numbers, seed in itertools.product(some, seeds):
            for way, pictures in load_file(piece(folder, numbers, seed)).items():
                scores[way][numbers, seed] = assessor.together(
                    pictures.numpy(), [task(number).one for number in numbers]
                )
        ways = [way for way in (*WAYS, GENUINE) if way in scores]
        gains = [scores[PERFUSION + APART][key]["all"] - scores[PERFUSION][key]["all"] for key in scores[PERFUSION]]
        found[kind] = {
            "ways": {way: means(list(scores[way].values())) for way in ways},
            "pictures": len(gains) * len(pictures),
            "gain": dict(zip(("from", "to"), interval(gains), strict=True)),
        }
    return found


# The page


def save_picture(folder: Path, asked: Mapping[str, Sequence[tuple[int, ...]]], seed: int) -> None:
    """The first group of every kind."""
    shown = [some[0] for some in asked.values()]
    kept = [load_file(piece(folder, numbers, seed)) for numbers in shown]
    blank, photos = np.full((SIZE, SIZE, 3), 255, np.uint8), []
    for numbers in shown:
        some = [photo.image for number in numbers for photo in task(number).photos[: 4 // len(numbers)]]
        photos += [*some, blank][:4]
    rows = [("photos", photos)]
    rows += [(way, [one for pictures in kept for one in pictures[way].numpy()]) for way in WAYS if LOCKED not in way]
    cells = [(label, [Image.fromarray(one).resize((CELL, CELL), Image.Resampling.LANCZOS) for one in some])
             for label, some in rows]  # fmt: skip
    columns = [label for kind in asked for label in (KINDS[kind], "", "", "")]
    contact_sheet(columns, cells, CELL).save(DOCS / "several.jpg", quality=88, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=FILE, help="a demo model's file; by default the one of the nodes")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one core")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the noise")
    options = parser.parse_args()
    files = (options.folder / "learned").glob(f"{LORA} - * - 0.safetensors")
    known = sorted(int(path.stem.split(" - ")[1]) for path in files)
    asked = groups(known)
    work = [(numbers, seed) for some in asked.values() for numbers, seed in itertools.product(some, options.seeds)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _open, (options.folder, options.model)) as pool:
        list(pool.map(_paint, *zip(*work, strict=True)))
    torch.set_num_threads(1)
    figures = judged(options.folder, asked, options.seeds)
    (DOCS / "several.json").write_text(json.dumps(figures, indent=1) + "\n")
    save_picture(options.folder, asked, options.seeds[0])
    tables = {kind: table(found["ways"], "") for kind, found in figures.items()}
    counts = {f"pictures of {kind}": str(found["pictures"]) for kind, found in figures.items()}
    page = Path(__file__).with_name("several_page.md").read_text(encoding="utf-8")
    (DOCS / "several.md").write_text(fill(page, figures, {**tables, **counts}), encoding="utf-8")
    print(*tables.values(), sep="\n\n")


def _open(folder: Path, model: Path) -> None:
    global _several
    torch.set_num_threads(1)
    _several = Several(folder, model)


def _paint(numbers: tuple[int, ...], seed: int) -> None:
    _several.paint(numbers, seed)


if __name__ == "__main__":
    main()
