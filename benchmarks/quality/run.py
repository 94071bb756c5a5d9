"""The quality benchmark: every method learns every concept, three times; then concepts are combined, and looked into.

    bash scripts/env.sh python benchmarks/quality/run.py FOLDER [--judges FOLDER] [--only METHOD ...] [--workers N]

Every finished piece is kept in FOLDER, so it goes on where it was stopped: in FOLDER/painted what was learned and its
pictures, in FOLDER itself, once there are judges, how they judge them. report.py makes pages of the latter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "benchmarks" / "world"), str(REPO / "scripts")]

from evaluation import PROMPTS, Judges, anchors, combined_scores, curve, model_scores, noise, painted
from gates import COVARIANCES, calibrated, discriminating, gate_responses, inverse_covariance
from methods import (
    FINER_STRENGTHS,
    MIDDLE_BETA,
    STRENGTHS,
    FineTune,
    Learned,
    LearnedConcepts,
    LearnedWeights,
    Lora,
    Method,
    Pasted,
    Perfusion,
    Reused,
    ReusedLora,
    TextualInversion,
    summed,
)
from painter import Painter, task
from perfusion_core import Concept, load_concept, save_concept
from report import FINER
from scenes import CONCEPTS, sheet
from variants import FreeKeyTraining, UngatedTraining

SEEDS = (0, 1, 2)
LORAS = "lora, rank 1", "lora, rank 4", "lora, rank 4, pasted"
PAIRED = ("a photo of a {} and a {} on grass", "a photo of a {} and a {} on snow", "a {} and a {} on wood",
          "a photo of a {} and a {} on pink")  # fmt: skip
THREE = ("a photo of a {} and a {} and a {} on grass", "a {} and a {} and a {} on snow")


def methods(
    inverse: Tensor, trained: Callable[[str, int], Concept], lora: Callable[[str, str, int], LearnedWeights]
) -> dict[str, Method]:
    """inverse: C^-1, (d, d). trained, lora: what the first method, or one of LORAS, has learned of a concept."""
    plain = Perfusion(inverse)
    return {
        "perfusion": Pasted(plain),
        "perfusion, by strength": Reused(trained, strengths=STRENGTHS),
        "perfusion, global lock, by strength": Reused(trained, key_lock=1.0, strengths=STRENGTHS),
        "perfusion, global lock": Reused(trained, key_lock=1.0),
        "perfusion, trained keys": Pasted(replace(plain, kind=FreeKeyTraining)),
        "perfusion, no mask": Pasted(replace(plain, outside=1.0)),
        "perfusion, no gate": Pasted(replace(plain, betas=STRENGTHS, kind=UngatedTraining)),
        "textual inversion": TextualInversion(),
        "lora, rank 1": Lora(1, rate=0.001),
        "lora, rank 4": Lora(4),
        "lora, rank 4, pasted": Pasted(Lora(4)),
        "custom diffusion": FineTune(r"attn2\.to_[kv]\.", 2e-4, embedding_rate=0.006),
        "dreambooth": FineTune("", 6e-4, batch=16),
        f"perfusion, by strength{FINER}": Reused(trained, strengths=FINER_STRENGTHS),
        **{f"{name}{FINER}": ReusedLora(partial(lora, name), FINER_STRENGTHS) for name in LORAS},
    }


def ablations(inverse: Tensor, trained: Callable[[str, int], Concept]) -> dict[str, Method]:
    """What the settings do: the paper's beta and temperature, and what it leaves open. ``trained``: see ``methods``."""
    plain = Perfusion(inverse)
    changed = {
        "beta 0.60 in training": {"beta": 0.60},
        "beta 0.90 in training": {"beta": 0.90},
        "temperature 0.05 in training": {"temperature": 0.05},
        "temperature 0.30 in training": {"temperature": 0.30},
        "the paper's learning rates": {"learning_rate_values": 0.03, "learning_rate_embedding": 0.006},
        "a gradient through i*": {"target_gradient": True},
        "half the steps": {"steps": plain.settings.steps // 2},
        "twice the steps": {"steps": 2 * plain.settings.steps},
        "100 steps of 16 pictures": {"steps": 100, "batch_size": 16},
    }
    found = {
        "nothing counts outside the mask": replace(plain, outside=0.0),
        "all timesteps": replace(plain, min_timestep=0),
        **{name: replace(plain, settings=replace(plain.settings, **change)) for name, change in changed.items()},
    }
    used = {f"temperature {value:.2f} in use": Reused(trained, temperature=value) for value in (0.05, 0.30)}
    return {"photos alone": plain, **{name: Pasted(method) for name, method in found.items()}, **used}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judges", type=Path, help="without, pictures are painted and nothing is judged")
    parser.add_argument("--only", nargs="*", help="names of methods; nothing else is done")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS, help="fewer make an early report")
    parser.add_argument("--workers", type=int, help="so many learn side by side, each a concept on --cpus cores")
    parser.add_argument("--cpus", type=int, default=1, help="cores of each of them (default: 1)")
    parser.add_argument("--address", help="of a Ray cluster whose cores all learn, as for scripts/train_many.py")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    judges = Judges.load(options.judges) if options.judges else None
    bench = Bench(options.folder, judges)
    check_names(options.only or (), methods(bench.inverse, bench.concept, bench.lora))
    if options.workers or options.address:
        from shares import share_out  # needs Ray

        share_out(list(CONCEPTS), options)
    bench.run(options.only, options.seeds, list(CONCEPTS))


class Bench:
    def __init__(self, folder: Path, judges: Judges | None):
        self.folder, self.judges, self.painter = folder, judges, Painter()
        self.inverse = inverse_covariance(self.painter)
        for kind in ("learned", "painted"):
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def run(self, only: list[str] | None, seeds: Sequence[int], names: Sequence[str]) -> None:
        """``only``: names of methods; ``names``: of concepts. With all of both also what needs them all."""
        chosen = methods(self.inverse, self.concept, self.lora)
        for seed, name, label in itertools.product(seeds, names, only or chosen):
            self.train(label, chosen[label], name, seed)
        if only:
            return
        for name in (name for name in list(CONCEPTS)[::5] if name in names):
            for label, method in ablations(self.inverse, self.concept).items():
                self.train(label, method, name, 0)
            self.train("one photo", Pasted(Perfusion(self.inverse)), name, 0, photos=1)
        if len(names) < len(CONCEPTS):
            return
        for seed, count in itertools.product(seeds, (2, 3)):
            self.combine(count, seed)
        if (judges := self.judges) is None:
            return
        self.once("prompts", lambda: [prompt.sentence for prompt in PROMPTS])
        for name in CONCEPTS:
            shown = [scene.image for scene in task(name).photos]
            sheet(shown, len(shown), scale=1).save(self.folder / f"photos - {name}.png")
        self.once("demo model", lambda: model_scores(self.painter, judges, SEEDS))
        self.once("anchors", lambda: {name: anchors(self.painter, judges, task(name), SEEDS) for name in CONCEPTS})
        for seed in seeds:
            self.once(f"gates - {seed}", lambda: self.gates(seed))  # noqa: B023

    def once(self, title: str, piece: Callable[[], Any]) -> Any:
        return once(self.folder / f"{title}.json", piece)

    def train(self, label: str, method: Method, name: str, seed: int, photos: int = 5) -> None:
        title = f"{label} - {name} - {seed}"
        found = self.once(f"painted/{title}", lambda: self.learn(title, label, method, name, seed, photos))
        if judges := self.judges:
            self.once(title, lambda: {**found, "curve": self.judged(judges, title, found)})

    def learn(self, title: str, label: str, method: Method, name: str, seed: int, photos: int) -> dict[str, Any]:
        start = time.monotonic()
        learned = method(self.painter, task(name, photos), seed)
        seconds = time.monotonic() - start
        if isinstance(method, Reused):
            trained = self.folder / "painted" / f"perfusion - {name} - {seed}.json"
            seconds += json.loads(trained.read_text())["seconds"]
        self.keep(label, name, seed, learned)
        save_sheet(painted(self.painter, learned, seed), self.folder / "painted" / f"{title}.png")
        measured = {"bytes": learned.size, "seconds": seconds, "settings": list(learned.settings)}
        return {"method": label, "concept": name, "seed": seed, **measured}

    def judged(self, judges: Judges, title: str, found: Mapping[str, Any]) -> list[dict[str, float]]:
        rows = read_sheet(self.folder / "painted" / f"{title}.png", len(PROMPTS))
        return curve(judges, dict(zip(found["settings"], rows, strict=True)), task(found["concept"]))

    def keep(self, label: str, name: str, seed: int, learned: Learned) -> None:
        """What is combined later."""
        if label == "perfusion" and isinstance(learned, LearnedConcepts):
            save_concept(learned.concepts[0], self.path(label, name, seed))
        elif label in LORAS and isinstance(learned, LearnedWeights):
            embedding, weights = learned.versions[1.0]
            save_file({"embedding": embedding, **weights}, self.path(label, name, seed))

    def path(self, label: str, name: str, seed: int) -> Path:
        return self.folder / "learned" / f"{label} - {name} - {seed}.safetensors"

    def concept(self, name: str, seed: int) -> Concept:
        return load_concept(self.path("perfusion", name, seed))

    def gates(self, seed: int) -> list[dict[str, Any]]:
        inverses = {label: inverse_covariance(self.painter, *choice) for label, choice in COVARIANCES.items()}
        found = []
        for name in CONCEPTS:
            concept = self.concept(name, seed)
            versions = {
                label: concept.replace(target_dual=inverse @ concept.target_input)
                for label, inverse in inverses.items()
            }
            for make in (calibrated, discriminating):
                versions[make.__name__] = make(self.painter, concept, self.inverse)
            found += [
                {"concept": name, "covariance": label, **gate_responses(self.painter, version)}
                for label, version in versions.items()
            ]
        return found

    def combine(self, count: int, seed: int) -> None:
        """Neighbours in the list of concepts in one prompt: Perfusion's, and the LoRAs added up."""
        title = f"combined {count} - {seed}"
        if (self.folder / f"{title}.json").exists():
            return
        sentences, names, found = PAIRED if count == 2 else THREE, list(CONCEPTS), []
        for i in range(len(names)):
            together = [names[(i + j) % len(names)] for j in range(count)]
            concepts = [self.concept(name, seed) for name in together]
            learned = {
                "perfusion": LearnedConcepts(concepts, (MIDDLE_BETA,)),
                "perfusion, half global lock": LearnedConcepts(concepts, (MIDDLE_BETA,), key_lock=0.5),
                "perfusion, global lock": LearnedConcepts(concepts, (MIDDLE_BETA,), key_lock=1.0),
                **{label: summed(self.painter, [self.lora(label, name, seed) for name in together]) for label in LORAS},
            }
            for label, one in learned.items():
                path = self.folder / "painted" / f"combined {count} - {label} - {together[0]} - {seed}.png"
                if not path.exists():
                    start = noise(len(sentences), seed)
                    save_sheet({0.0: one.paint(self.painter, sentences, start, one.settings[0])}, path)
                if self.judges is not None:
                    scores = combined_scores(self.judges, read_sheet(path, len(sentences))[0], together)
                    found.append({"method": label, "concepts": together, "seed": seed, **scores})
        if found:
            self.once(title, lambda: found)

    def lora(self, label: str, name: str, seed: int) -> LearnedWeights:
        weights = load_file(self.path(label, name, seed))
        subject = task(name)
        phrase = f"{subject.trigger} {subject.superclass}"
        return LearnedWeights(phrase, subject.trigger, 0, {1.0: (weights.pop("embedding"), weights)})


def once(path: Path, piece: Callable[[], Any]) -> Any:
    """What the file holds, which is written when it is not there yet."""
    if not path.exists():
        start = time.monotonic()
        record = piece()
        path.with_suffix(".part").write_text(json.dumps(record))
        path.with_suffix(".part").replace(path)
        print(f"{path.stem}: {time.monotonic() - start:.1f} s", flush=True)
    return json.loads(path.read_text())


def check_names(asked: Sequence[str], known: Mapping[str, Method]) -> None:
    if unknown := set(asked) - set(known):
        raise SystemExit(f"There is no method {', '.join(sorted(unknown))}. There are: {'; '.join(known)}.")


def save_sheet(pictures: Mapping[float, Tensor], path: Path) -> None:
    """A row for every setting."""
    rows = [image for shown in pictures.values() for image in shown.numpy()]
    sheet(rows, len(rows) // len(pictures), scale=1).save(path.with_suffix(".part"), "PNG")
    path.with_suffix(".part").replace(path)


def read_sheet(path: Path, columns: int) -> Tensor:
    """(settings, columns, 64, 64, 3) in 0..1."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture)).float() / 255
    side = pixels.shape[1] // columns
    return pixels.reshape(-1, side, columns, side, 3).transpose(1, 2)


if __name__ == "__main__":
    main()
