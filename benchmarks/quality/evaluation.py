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
from benchmarks.world.places import PLACES, STYLES
from benchmarks.world.reader import Reader, Seen, as_numbers, others, read
from benchmarks.world.scenes import scene

from .painter import Task

OTHERS = 200  # of its class, among whom the individual must be the nearest
ATTRIBUTES = ("colour", "second", "pattern", "accessory")
SHARES = ("identified", "in five", "class", "place", "style", "thing", "its colour")


@dataclass(frozen=True)
class Prompt:
    """A sentence with {} in the subject's place, and what a picture of it must show besides."""

    sentence: str
    place: str
    style: str = ""
    second: Individual | None = None  # of another class; the sentence names its class and its colour
    first: bool = True  # whether the subject is named before it

    def things(self, one: Individual) -> list[Individual]:
        """In the order in which they are named."""
        things = [one, self.second] if self.second else [one]
        return things if self.first else things[::-1]

    def scene(self, number: int, one: Individual):
        """A genuine one."""
        return scene(number, self.things(one), self.place, self.style)


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


def genuine(task: Task, asked: Sequence[Prompt]) -> list[np.ndarray]:
    """A scene (96, 96, 3) of each prompt."""
    return [prompt.scene(20000 + 100 * task.number + i, task.one).image for i, prompt in enumerate(asked)]


def prompts_together(tasks: Sequence[Task]) -> list[Prompt]:
    """Four with all of them, in places that the photos of one or of all do not show."""
    new = [place for places in zip(*(one.places for one in tasks), strict=True) for place in places]
    places = list(dict.fromkeys([*new, *PLACES]))[:4]
    return [Prompt(f"a photo of {' and '.join(['a {}'] * len(tasks))} {PLACES[place]}", place) for place in places]


def genuine_together(tasks: Sequence[Task], places: Sequence[str]) -> list[np.ndarray]:
    """A scene (96, 96, 3) with all of them in each place."""
    things, first = [one.one for one in tasks], 30000 + 100 * tasks[0].number
    return [scene(first + i, things, place, "").image for i, place in enumerate(places)]


@dataclass
class Assessor:
    """The reader, and whom it tells the individuals from."""

    reader: Reader

    def __post_init__(self) -> None:
        with torch.no_grad():
            self._rivals = {kind: self.reader.of(others(kind, OTHERS, 1)) for kind in CLASSES}

    def common(self, photos: Sequence[np.ndarray], one: Individual) -> Tensor:
        """(size,), what photos of an individual have in common."""
        embeddings = [read(self.reader, photo, [one.kind])[0][0].embedding for photo in photos]
        return F.normalize(torch.stack(embeddings).mean(0), dim=0)

    @torch.no_grad()
    def scores(
        self, pictures: Sequence[np.ndarray], one: Individual, asked: Sequence[Prompt], common: Tensor
    ) -> dict[str, float]:
        """Shares of pictures (96, 96, 3), of which each belongs to a prompt; common: of the photos."""
        right, embeddings = defaultdict(list), []
        for (seen, place, style), prompt in zip(self._looks(pictures, one, asked), asked, strict=True):
            embeddings.append(seen[one].embedding)
            right["class"].append(seen[one].said["kind"] == one.kind)
            right["place"].append(place == prompt.place)
            if prompt.style:
                right["style"].append(style == prompt.style)
            if second := prompt.second:
                right["thing"].append(seen[second].said["kind"] == second.kind)
                right["its colour"].append(seen[second].said["colour"] == second.colour)
        right |= self._identified(torch.stack(embeddings), one)
        for name in ATTRIBUTES:
            if getattr(one, name):
                values = self._values(torch.stack(embeddings), one, name)
                right[name] = [value == getattr(one, name) for value in values]
        hits = [hit for name in ("place", "style", "thing", "its colour") for hit in right[name]]
        found = {name: float(np.mean(right[name])) for name in (*SHARES, *ATTRIBUTES) if right[name]}
        likeness = (torch.stack(embeddings) @ common).mean().item()
        return {**found, "prompt": float(np.mean(hits)), "likeness": likeness}

    @torch.no_grad()
    def together(self, pictures: Sequence[np.ndarray], ones: Sequence[Individual]) -> dict[str, float]:
        """Shares of pictures (96, 96, 3): all nearest, each nearest, all classes there, and attributes of others."""
        seen = [read(self.reader, picture, [one.kind for one in ones])[0] for picture in pictures]
        nearest, shown, mixed = [], [], []
        for one, looks in zip(ones, zip(*seen, strict=True), strict=True):
            embeddings = torch.stack([look.embedding for look in looks])
            nearest.append(self._identified(embeddings, one)["identified"])
            shown.append([look.said["kind"] == one.kind for look in looks])
            for name in ATTRIBUTES:
                others = {getattr(other, name) for other in ones} - {getattr(one, name)}
                if others:
                    mixed += [value in others for value in self._values(embeddings, one, name)]
        right, there = np.array(nearest), np.array(shown)
        return {"all": float(right.all(0).mean()), "each": float(right.mean()), "classes": float(there.all(0).mean()),
                "mixing": float(np.mean(mixed))}  # fmt: skip

    @torch.no_grad()
    def identified(self, pictures: Sequence[np.ndarray], one: Individual, asked: Sequence[Prompt]) -> list[bool]:
        """For each picture (96, 96, 3) whether the individual is the nearest of its class."""
        embeddings = [seen[one].embedding for seen, _, _ in self._looks(pictures, one, asked)]
        return self._identified(torch.stack(embeddings), one)["identified"]

    def _looks(
        self, pictures: Sequence[np.ndarray], one: Individual, asked: Sequence[Prompt]
    ) -> list[tuple[dict[Individual, Seen], str, str]]:
        """For each picture what is seen of each thing, and the place and the style."""
        looks = []
        for picture, prompt in zip(pictures, asked, strict=True):
            things = prompt.things(one)
            seen, place, style = read(self.reader, picture, [thing.kind for thing in things])
            looks.append((dict(zip(things, seen, strict=True)), place, style))
        return looks

    def _identified(self, embeddings: Tensor, one: Individual) -> Mapping[str, list[bool]]:
        """For each picture whether the individual is the nearest of its class, and one of the five nearest."""
        own = embeddings @ self.reader.of(as_numbers([one])[0])
        ranks = (embeddings @ self._rivals[one.kind].T > own[:, None]).sum(1).tolist()
        return {"identified": [rank == 0 for rank in ranks], "in five": [rank < 5 for rank in ranks]}

    def _values(self, embeddings: Tensor, one: Individual, name: str) -> list[str]:
        """The value of an attribute with which, in place of its own, the individual would be the nearest."""
        versions = [replace(one, **{name: value}) for value in LISTS[list(vars(one)).index(name)]]
        if name == "accessory":  # of whatever colour
            worn = [replace(one, accessory=value, accessory_colour=colour)
                    for value in ACCESSORIES[one.kind] if value for colour in COLOURS]  # fmt: skip
            versions = [replace(one, accessory="", accessory_colour=""), *worn]
        like = embeddings @ self.reader.of(as_numbers(versions)).T
        return [getattr(versions[index], name) for index in like.argmax(-1).tolist()]
