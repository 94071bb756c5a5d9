"""The quality benchmark: every method learns individuals that no training scene shows, alone and together.

    bash scripts/env.sh python -m benchmarks.quality.run FOLDER [--workers 2] [--seeds 0 1 2] [--only METHOD ...]

Every finished piece is kept in FOLDER/painted, so it goes on where it was stopped; variants of Perfusion come last. The
world's reader, which must be trained, then looks at all of them, and report.py makes pages of that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.world.card import genuine as card_scenes
from benchmarks.world.card import prompts as card_prompts
from benchmarks.world.sampling import encode
from benchmarks.world.scenes import NAMES, described
from perfusion_core import Concept, load_concept, save_concept
from perfusion_core.concept_file import safetensors_bytes, write_atomically

from .evaluation import genuine, genuine_together, prompts, prompts_together
from .judging import CARD_PROMPTS, judged
from .methods import (
    CUSTOM,
    TOGETHER_BETA,
    FineTune,
    GlobalLock,
    Learned,
    LearnedConcepts,
    LearnedSum,
    LearnedWeights,
    Lora,
    Method,
    Perfusion,
    TextualInversion,
)
from .painter import FILE, Painter, Task, filled, task
from .report import WAYS
from .variants import FreeKeyTraining, OffsetPhotos, UngatedTraining

INDIVIDUALS = tuple(range(16))  # two of each class
TOGETHER = {"two": 2, "three": 3}  # how many are in one picture
LOCKED = "perfusion, locked keys"
LORAS = ("lora, rank 1", "lora, rank 4")
ADDED = (*LORAS, "textual inversion")  # up, in one prompt
CARD_SEEDS = 3
PLAIN = {  # what stands in a sentence where no concept does
    "class word": lambda subject, _: subject.superclass,
    "in words": lambda subject, _: described(subject.one).split(" ", 1)[1],  # without its article
    "true name": lambda _, name: name,
}


def methods(trained) -> dict[str, Method]:
    """trained: what LOCKED has learned, by an individual's number and a seed."""
    plain = Perfusion()
    locked = replace(plain, settings=replace(plain.settings, key_freedom=0.0, learning_rate_values=0.05))  # the paper's
    return {
        "perfusion": plain,
        LOCKED: locked,
        "perfusion, global lock": GlobalLock(trained),
        "perfusion, offset": replace(plain, of=OffsetPhotos),
        "perfusion, trained keys": replace(locked, kind=FreeKeyTraining),
        "perfusion, no mask": replace(locked, outside=1.0),
        "perfusion, no gate": replace(locked, kind=UngatedTraining),
        "textual inversion": TextualInversion(),
        "lora, rank 1": Lora(1, 0.0005),
        "lora, rank 4": Lora(4, 0.00025),
        "custom diffusion": FineTune(CUSTOM, 2e-4, embedding_rate=0.006),
        "dreambooth": FineTune("", 3e-4, batch=16),
    }


class Bench:
    def __init__(self, folder: Path, painter: Painter):
        self.folder, self.painter, self.strong = folder, painter, painter.strong()
        for kind in ("learned", "painted"):
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def references(self, number: int) -> None:
        """What an individual's pictures are compared with."""
        path, subject = self.painted("references", number, 0), task(number)
        if path.exists():
            return
        asked = prompts(subject)
        found = {"through the autoencoder": self.painter.latents(genuine(subject, asked))}
        found |= plain(self.painter, [prompt.sentence for prompt in asked], [subject], number)
        self.keep(path, found, {"kind": "references", "numbers": [number]})

    def alone(self, number: int, seed: int, label: str, method: Method) -> None:
        path, subject = self.painted(label, number, seed), task(number)
        if path.exists():
            return
        start = time.process_time()  # of one core, whatever else is running
        learned = method(self.painter, subject, seed)
        seconds = time.process_time() - start
        self.remember(label, number, seed, learned)
        self.show(learned, number, seed, label, seconds)

    def show(self, learned: Learned, number: int, seed: int, label: str, seconds: float) -> None:
        """What was learned, at each of its settings."""
        sentences = [prompt.sentence for prompt in prompts(task(number))]
        found = {
            f"{setting:g}": learned.paint(self.painter, sentences, 1000 * seed + number, setting)
            for setting in learned.settings
        }
        about = {"method": label, "seed": seed, "bytes": learned.size, "seconds": seconds}
        self.keep(self.painted(label, number, seed), found, {"kind": "learned", "numbers": [number], **about})

    def together(self, number: int, seed: int, kind: str) -> None:
        """An individual and the next ones, all of different classes, in one picture."""
        path, numbers = self.painted(kind, number, seed), neighbours(number, TOGETHER[kind])
        if path.exists():
            return
        tasks = [task(one) for one in numbers]
        asked = prompts_together(tasks)
        sentences = [prompt.sentence for prompt in asked]
        concepts = [self.concept(one, seed) for one in numbers]
        locked = [self.locked_concept(one, seed) for one in numbers]
        ways: dict[str, Learned] = {
            "perfusion": LearnedConcepts(concepts, (TOGETHER_BETA,)),
            LOCKED: LearnedConcepts(locked, (TOGETHER_BETA,)),
            "perfusion, global lock": LearnedConcepts(locked, (TOGETHER_BETA,), key_lock=1.0),
            **{label: LearnedSum([self.weights(label, one, seed) for one in numbers]) for label in ADDED},
        }
        noise = 1000 * seed + number
        found = {label: way.paint(self.strong, sentences, noise, way.settings[0]) for label, way in ways.items()}
        found |= plain(self.strong, sentences, tasks, noise)
        scenes = genuine_together(tasks, [prompt.place for prompt in asked])
        found["through the autoencoder"] = self.painter.latents(scenes)
        self.keep(path, found, {"kind": kind, "numbers": numbers, "seed": seed})

    def card(self) -> None:
        """The demo model without any concept."""
        path = self.folder / "painted" / "card.safetensors"
        if path.exists():
            return
        asked = card_prompts(CARD_PROMPTS)
        parts = encode(self.painter.text, [one.sentence for one in asked]).split(20)
        shown = [self.strong.paint(part, 1000 * seed + i) for seed in range(CARD_SEEDS) for i, part in enumerate(parts)]
        scenes = self.painter.latents(card_scenes(asked))
        found = {"through the autoencoder": scenes, "demo model": torch.cat(shown)}
        self.keep(path, found, {"kind": "card"})

    def painted(self, label: str, number: int, seed: int) -> Path:
        return self.folder / "painted" / f"{label} - {number} - {seed}.safetensors"

    def learned(self, label: str, number: int, seed: int) -> Path:
        return self.folder / "learned" / f"{label} - {number} - {seed}.safetensors"

    def keep(self, path: Path, latents: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        content = {name: some.half().contiguous() for name, some in latents.items()}
        about = json.dumps({**record, "rows": list(latents)})
        write_atomically(path, safetensors_bytes(content, {"record": about}))
        print(path.stem, f"{record['seconds']:.0f} s" if "seconds" in record else "", flush=True)

    def remember(self, label: str, number: int, seed: int, learned: Learned) -> None:
        """What is combined later."""
        if label in ("perfusion", LOCKED) and isinstance(learned, LearnedConcepts):
            save_concept(learned.concepts[0], self.learned(label, number, seed))
        elif label in ADDED and isinstance(learned, LearnedWeights):
            embedding, weights = learned.versions[1.0 if label in LORAS else learned.settings[-1]]
            content = safetensors_bytes({"embedding": embedding, **weights}, {})
            write_atomically(self.learned(label, number, seed), content)

    def concept(self, number: int, seed: int, label: str = "perfusion") -> Concept:
        return load_concept(self.learned(label, number, seed))

    def locked_concept(self, number: int, seed: int) -> Concept:
        return self.concept(number, seed, LOCKED)

    def weights(self, label: str, number: int, seed: int) -> LearnedWeights:
        weights, subject = load_file(self.learned(label, number, seed)), task(number)
        phrase = f"{subject.trigger} {subject.superclass}" if label in LORAS else subject.trigger
        return LearnedWeights(phrase, subject.trigger, 0, {1.0: (weights.pop("embedding"), weights)})


def plain(painter: Painter, sentences: Sequence[str], subjects: Sequence[Task], noise: int) -> dict[str, Tensor]:
    """{way: pictures} of subjects without a concept."""
    found, ones = {}, tuple(subject.one for subject in subjects)
    for way, words in PLAIN.items():
        said = [words(subject, name) for subject, name in zip(subjects, NAMES, strict=False)]
        told = [filled(sentence, said) for sentence in sentences]
        found[way] = painter.paint(encode(painter.text, told, [ones] * len(told)), noise)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=FILE, help="a demo model's file; by default the one of the nodes")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one core")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--individuals", nargs="*", type=int, default=INDIVIDUALS, help="fewer make an early report")
    parser.add_argument("--only", nargs="*", help="names of methods; nothing else is done")
    options = parser.parse_args()
    check_names(options.only or (), methods(None))
    first = options.only or [name for name in methods(None) if name in WAYS]
    rest = [] if options.only else [name for name in methods(None) if name not in WAYS]
    with crew(options.folder, options.model, options.workers) as pool:

        def everyone(work: Callable[..., None], *given: Any) -> None:
            list(pool.map(work, options.individuals, *map(itertools.repeat, given)))

        everyone(_alone, options.seeds, first)
        if not options.only:
            card = pool.submit(_card)
            everyone(_together, options.seeds, options.individuals)
            everyone(_alone, options.seeds, rest)
            card.result()
    torch.set_num_threads(1)
    write_scores(options.folder, Painter(options.model))


def neighbours(number: int, count: int) -> list[int]:
    return [(number + k) % len(INDIVIDUALS) for k in range(count)]


def write_scores(folder: Path, painter: Painter) -> dict[str, Any]:
    found = judged(folder, painter)
    (folder / "scores.json").write_text(json.dumps(found))
    return found


def check_names(asked: Sequence[str], known: Mapping[str, Method]) -> None:
    if unknown := set(asked) - set(known):
        raise SystemExit(f"There is no method {', '.join(sorted(unknown))}. There are: {'; '.join(known)}.")


def crew(folder: Path, model: Path, workers: int) -> ProcessPoolExecutor:
    """Processes on one core each, every one with its own ``bench()``."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _open, (folder, model))


def bench() -> Bench:
    return _bench


def _open(folder: Path, model: Path) -> None:
    global _bench
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    _bench = Bench(folder, Painter(model))


def _alone(number: int, seeds: Sequence[int], labels: Sequence[str]) -> None:
    bench().references(number)
    known = methods(bench().locked_concept)
    for seed, label in itertools.product(seeds, labels):
        bench().alone(number, seed, label, known[label])


def _together(number: int, seeds: Sequence[int], individuals: Sequence[int]) -> None:
    for seed, (kind, count) in itertools.product(seeds, TOGETHER.items()):
        if set(neighbours(number, count)) <= set(individuals):
            bench().together(number, seed, kind)


def _card() -> None:
    bench().card()


if __name__ == "__main__":
    main()
