"""What is asked for, and how pictures are judged: who is in them, what else the prompt names, and what got mixed up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.world.individuals import ACCESSORIES, CLASSES, COLOURS, LISTS, Individual, individual
from benchmarks.world.judge import READ, Judge, others
from benchmarks.world.places import PLACES, STYLES
from benchmarks.world.scenes import scene

from .painter import Task

OTHERS = 200  # of its class, among whom the individual must be the nearest
ATTRIBUTES = ("colour", "second", "pattern", "accessory")


@dataclass(frozen=True)
class Prompt:
    """A sentence with {} in the subject's place, and what a picture of it must show besides."""

    sentence: str
    place: str
    style: str = ""
    second: Individual | None = None  # of another class; the sentence names its class and its colour
    first: bool = True  # whether the subject is named before it

    def scene(self, number: int, one: Individual):
        """A genuine one."""
        things = [one, self.second] if self.second else [one]
        return scene(number, things if self.first else things[::-1], self.place, self.style)


def prompts(task: Task) -> list[Prompt]:
    """Eight, in places that no photo shows."""
    random = np.random.default_rng((32, task.number))
    one, two, _ = task.places
    kinds = random.permutation([kind for kind in CLASSES if kind != task.one.kind])[:2]
    colours = random.permutation([name for name in COLOURS if name not in (task.one.colour, task.one.second)])[:2]
    seconds = [
        replace(individual(random, str(kind)), colour=str(colour), pattern="plain")
        for kind, colour in zip(kinds, colours, strict=True)
    ]
    named = [f"a {second.colour} {second.kind}".replace("a orange", "an orange") for second in seconds]
    styles = [style for style in STYLES if style not in ("", "gray")]  # in gray nobody knows an individual's colours
    return [
        *(Prompt(f"a photo of a {{}} {PLACES[place]}", place) for place in task.places),
        *(
            Prompt(f"{'' if style == 'pixel' else 'a '}{STYLES[style]} of a {{}} {PLACES[place]}", place, style)
            for style, place in zip(styles, task.places, strict=True)
        ),
        Prompt(f"a photo of a {{}} and {named[0]} {PLACES[one]}", one, second=seconds[0]),
        Prompt(f"a photo of {named[1]} and a {{}} {PLACES[two]}", two, second=seconds[1], first=False),
    ]


def prompts_together(tasks: Sequence[Task]) -> list[Prompt]:
    """Four with all of them, in places that the photos of one or of all do not show."""
    new = [place for places in zip(*(one.places for one in tasks), strict=True) for place in places]
    places = list(dict.fromkeys([*new, *PLACES]))[:4]
    return [Prompt(f"a photo of {' and '.join(['a {}'] * len(tasks))} {PLACES[place]}", place) for place in places]


@dataclass
class Assessor:
    """The judge, and whom it tells the individuals from."""

    judge: Judge

    def __post_init__(self) -> None:
        with torch.no_grad():
            self._rivals = {kind: self.judge.of(others(kind, OTHERS, 1)) for kind in CLASSES}

    @torch.no_grad()
    def common(self, photos: Tensor, one: Individual) -> Tensor:
        """(size,), what photos of an individual have in common."""
        return F.normalize(self.judge(photos, [one.kind] * len(photos))[0].mean(0), dim=0)

    @torch.no_grad()
    def scores(self, latents: Tensor, one: Individual, asked: Sequence[Prompt], photos: Tensor) -> dict[str, float]:
        """Shares of pictures (n, 16, 12, 12), of which each belongs to a prompt; photos: the latents of the photos."""
        embeddings, read = self.judge(latents, [one.kind] * len(latents))
        right = defaultdict(list, {name: list(hits) for name, hits in self._identified(embeddings, one).items()})
        right["class"] = [index == 1 for index in read["shown"].argmax(-1).tolist()]
        for name in ATTRIBUTES:
            if getattr(one, name):
                right[name] = [value == getattr(one, name) for value in self._values(embeddings, one, name)]
        for i, prompt in enumerate(asked):
            wanted = {"place": prompt.place, "style": prompt.style}
            for name, value in wanted.items():
                if value:
                    right[name].append(READ[name][int(read[name][i].argmax())] == value)
            if second := prompt.second:
                _, other = self.judge(latents[i : i + 1], [second.kind])
                right["thing"].append(int(other["shown"][0].argmax()) == 1)
                right["its colour"].append(READ["colour"][int(other["colour"][0].argmax())] == second.colour)
        hits = [hit for name in ("place", "style", "thing", "its colour") for hit in right[name]]
        found = {name: float(np.mean(values)) for name, values in right.items() if values}
        likeness = (embeddings @ self.common(photos, one)).mean().item()
        return {**found, "prompt": float(np.mean(hits)), "likeness": likeness}

    @torch.no_grad()
    def together(self, latents: Sequence[Tensor], ones: Sequence[Individual]) -> dict[str, float]:
        """Shares of pictures: all nearest, each nearest, all classes there, and attributes of one of the others.

        latents: for every individual those in which it is looked for.
        """
        nearest, shown, mixed = [], [], []
        for some, one in zip(latents, ones, strict=True):
            embeddings, read = self.judge(some, [one.kind] * len(some))
            nearest.append(self._identified(embeddings, one)["identified"])
            shown.append([index == 1 for index in read["shown"].argmax(-1).tolist()])
            for name in ATTRIBUTES:
                others = {getattr(other, name) for other in ones} - {getattr(one, name)}
                if others:
                    mixed += [value in others for value in self._values(embeddings, one, name)]
        right, there = np.array(nearest), np.array(shown)
        return {"all": float(right.all(0).mean()), "each": float(right.mean()), "classes": float(there.all(0).mean()),
                "mixing": float(np.mean(mixed))}  # fmt: skip

    @torch.no_grad()
    def identified(self, latents: Tensor, one: Individual) -> list[bool]:
        """For each picture (n, 16, 12, 12) whether the individual is the nearest of its class."""
        embeddings, _ = self.judge(latents, [one.kind] * len(latents))
        return self._identified(embeddings, one)["identified"]

    def _identified(self, embeddings: Tensor, one: Individual) -> Mapping[str, list[bool]]:
        """For each picture whether the individual is the nearest of its class, and one of the five nearest."""
        own = embeddings @ self.judge.of(torch.from_numpy(one.numbers()))
        ranks = (embeddings @ self._rivals[one.kind].T > own[:, None]).sum(1).tolist()
        return {"identified": [rank == 0 for rank in ranks], "in five": [rank < 5 for rank in ranks]}

    def _values(self, embeddings: Tensor, one: Individual, name: str) -> list[str]:
        """The value of an attribute with which, in place of its own, the individual would be the nearest."""
        versions = [replace(one, **{name: value}) for value in LISTS[list(vars(one)).index(name)]]
        if name == "accessory":  # of whatever colour
            worn = [replace(one, accessory=value, accessory_colour=colour)
                    for value in ACCESSORIES[one.kind] if value for colour in COLOURS]  # fmt: skip
            versions = [replace(one, accessory="", accessory_colour=""), *worn]
        numbers = torch.from_numpy(np.stack([version.numbers() for version in versions]))
        return [getattr(versions[index], name) for index in (embeddings @ self.judge.of(numbers).T).argmax(-1).tolist()]
