"""How pictures of a learned concept are judged: likeness to its photos, to the words of the prompt, and plain hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from judges import load_classifier, load_clip
from methods import Learned
from painter import Painter, Task, task
from scenes import BACKGROUNDS, OBJECTS, TINTS


@dataclass(frozen=True)
class Prompt:
    """A sentence with {} in the subject's place, and what a picture of it must show besides."""

    sentence: str
    background: str = ""
    tint: str = ""
    style: str = ""
    second: str = ""


PROMPTS = (
    Prompt("a photo of a {} on snow", background="snow"),
    Prompt("a photo of a {} on water", background="water"),
    Prompt("a photo of a {} on night", background="night"),
    Prompt("a photo of a blue {} on sand", background="sand", tint="blue"),
    Prompt("a photo of a purple {} on grass", background="grass", tint="purple"),
    Prompt("a sketch of a {} on wood", style="sketch"),
    Prompt("a gray photo of a {} on brick", background="brick", style="gray"),
    Prompt("a photo of a {} and a cup on pink", background="pink", second="cup"),
)


@dataclass(frozen=True)
class Judges:
    classifier: Any
    clip: Any

    @classmethod
    def load(cls, folder: Path) -> Judges:
        return cls(load_classifier(folder / "classifier.safetensors"), load_clip(folder / "clip"))

    def scores(self, images: Tensor, photos: Tensor, prompts: Sequence[Prompt], task: Task) -> dict[str, float]:
        """Means over pictures (n, 64, 64, 3), of which each belongs to a prompt."""
        texts = self.clip.texts([prompt.sentence.replace("{}", task.superclass) for prompt in prompts])
        seen = self.clip.images(images)
        verdicts = self.classifier.judge(images)
        has = dict(zip(self.classifier.names, verdicts.objects.T, strict=True))
        hits: dict[str, list[bool]] = {"background": [], "tint": [], "style": [], "second": []}
        for i, prompt in enumerate(prompts):
            for kind in ("background", "tint", "style"):
                if wanted := getattr(prompt, kind):
                    hits[kind].append(getattr(verdicts, kind)[i] == wanted)
            if prompt.second:
                hits["second"].append(bool(has[prompt.second][i]))
        return {
            "clip_i": (seen @ self.clip.images(photos).T).mean().item(),
            "clip_t": (seen * texts).sum(-1).mean().item(),
            "concept": has[task.name].float().mean().item(),
            "superclass": has[task.superclass].float().mean().item(),
            "prompt_hits": float(np.mean([hit for found in hits.values() for hit in found])),
            **{kind: float(np.mean(found)) for kind, found in hits.items() if found},
        }


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(1000 + seed))


def photos(task: Task) -> Tensor:
    return torch.from_numpy(np.stack([scene.image for scene in task.photos]))


def painted(painter: Painter, learned: Learned, seed: int) -> dict[float, Tensor]:
    """{setting: pictures} of PROMPTS over the whole curve, from the same noises for every method."""
    sentences, start = [prompt.sentence for prompt in PROMPTS], noise(len(PROMPTS), seed)
    return {setting: learned.paint(painter, sentences, start, setting) for setting in learned.settings}


def curve(judges: Judges, pictures: Mapping[float, Tensor], task: Task) -> list[dict[str, float]]:
    """Of every setting the scores of its pictures."""
    return [
        {"setting": setting, **judges.scores(shown, photos(task), PROMPTS, task)} for setting, shown in pictures.items()
    ]


def combined_scores(judges: Judges, images: Tensor, names: Sequence[str]) -> dict[str, float]:
    """How often all the concepts, and each of them, are seen, and how like its photos each is."""
    verdicts = judges.classifier.judge(images)
    has = dict(zip(judges.classifier.names, verdicts.objects.T, strict=True))
    shown = torch.stack([has[name] for name in names])  # (concepts, pictures)
    seen = judges.clip.images(images)
    likeness = [(seen @ judges.clip.images(photos(task(name))).T).mean().item() for name in names]
    return {"all_shown": shown.all(0).float().mean().item(), "shown": shown.float().mean().item(),
            "clip_i": float(np.mean(likeness))}  # fmt: skip


MODEL_PROMPTS = tuple(
    (name, BACKGROUNDS[i % len(BACKGROUNDS)], ["", *TINTS][i % (1 + len(TINTS))])
    for i, name in enumerate([*OBJECTS, *OBJECTS][:64])
)


def model_scores(painter: Painter, judges: Judges, seeds: Sequence[int]) -> dict[str, float]:
    """The demo model itself: how often the object, background and tint that 64 prompts ask for are seen."""
    sentences = [f"a photo of a {tint} {name} on {background}" for name, background, tint in MODEL_PROMPTS]
    encodings, _ = painter.encode(sentences)
    verdicts = judges.classifier.judge(torch.cat([painter.paint(encodings, noise(len(sentences), s)) for s in seeds]))
    has = dict(zip(judges.classifier.names, verdicts.objects.T, strict=True))
    asked = list(enumerate(MODEL_PROMPTS * len(seeds)))
    return {
        "object": float(np.mean([bool(has[name][i]) for i, (name, _, _) in asked])),
        "background": float(np.mean([verdicts.background[i] == background for i, (_, background, _) in asked])),
        "tint": float(np.mean([verdicts.tint[i] == tint for i, (_, _, tint) in asked if tint])),
    }


def anchors(painter: Painter, judges: Judges, task: Task, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """What curves are measured against: the model without the concept on the same prompts with the superclass word,
    and the photos themselves, which know nothing of the prompts.
    """
    sentences = [prompt.sentence.replace("{}", task.superclass) for prompt in PROMPTS]
    encodings, _ = painter.encode(sentences)
    painted = [painter.paint(encodings, noise(len(sentences), seed)) for seed in seeds]
    shown = photos(task)
    plain = judges.scores(torch.cat(painted), shown, PROMPTS * len(seeds), task)
    copied = [judges.scores(photo.expand(len(PROMPTS), -1, -1, -1), shown, PROMPTS, task) for photo in shown]
    alike = judges.clip.images(shown) @ judges.clip.images(shown).T
    others = alike[~torch.eye(len(shown), dtype=torch.bool)].mean().item()
    photo = {name: float(np.mean([one[name] for one in copied])) for name in copied[0]}
    return {"model": plain, "photos": {**photo, "clip_i": others}}
