"""The methods that are compared: Perfusion, its ablations, and what people use instead.

A method learns a task and returns something ``Learned``: pictures with it at each setting of its own trade-off curve.
All see the same photos, masks, sentences and number of pictures; what differs is what they train and where it acts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from benchmarks.world.individuals import individual
from benchmarks.world.places import PLACES
from benchmarks.world.pool import ODD_WORD
from benchmarks.world.scenes import NAMES, described, scene
from benchmarks.world.teach import MIN_TIMESTEP, OUTSIDE, SETTINGS, Photos
from perfusion_core import Concept, ConceptSet, Training, TrainingSettings
from perfusion_core.captions import TEMPLATES
from perfusion_core.concept import OFFSET
from perfusion_core.edit import TEMPERATURE

from .painter import Painter, Task, filled
from .variants import UngatedSet, UngatedTraining, with_offset

PICTURES = 1600  # that every method trains on, in batches that suit it
BETAS = (0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)  # where that is swept
MARKS = tuple(k / 8 for k in range(1, 9))  # shares of the steps, where these are
TOGETHER_BETA = 0.7  # where concepts are combined: below, those of the demo become one
TOGETHER_STRENGTH = 0.75  # where LoRAs are
CUSTOM = r"attn2\.to_[kv]\."  # what Custom Diffusion trains
REGULAR_SCENES = 32  # pictures of the superclass that keep Custom Diffusion and DreamBooth from forgetting it


class Learned(Protocol):
    settings: Sequence[float]
    size: int  # bytes of a file with what was learned, as fp16 safetensors where the method has no format of its own

    def paint(self, painter: Painter, sentences: Sequence[str], seed: int, setting: float) -> Tensor:
        """Latents (n, 16, 12, 12) of sentences with {} in the subject's place, from noises that the seed says."""


Method = Callable[[Painter, Task, int], Learned]


# Perfusion


@dataclass
class LearnedConcepts:
    """Concepts, in the order in which sentences name them; the setting is beta, or, without a gate, the strength."""

    concepts: Sequence[Concept]
    settings: Sequence[float]
    key_lock: float = 0.0  # 0 local, 1 global
    gated: bool = True
    temperature: float = TEMPERATURE

    @property
    def size(self) -> int:
        return len(save({name: tensor.half() for name, tensor in self.concepts[0].tensors().items()}))

    def paint(self, painter: Painter, sentences: Sequence[str], seed: int, setting: float) -> Tensor:
        if self.concepts[0].has_offset:  # of one alone
            (concept,) = self.concepts
            named, offset = [filled(sentence, NAMES) for sentence in sentences], concept.token_embeddings[OFFSET]
            encodings, _ = with_offset(painter, named, concept.superclass, offset)
        else:
            embeddings = [concept.token_embeddings["l"] for concept in self.concepts]
            new = dict(zip(NAMES, embeddings, strict=False))
            encodings, _ = painter.encode([filled(sentence, new) for sentence in sentences], new)
        keys = None
        if self.key_lock:
            classes = [concept.superclass for concept in self.concepts]
            plain, _ = painter.encode([filled(sentence, classes) for sentence in sentences], {})
            keys = encodings.lerp(plain, self.key_lock)
        if self.gated:
            kind = ConceptSet(self.concepts, setting, self.temperature, zero_padded=painter.zero_padded)
        else:
            kind = UngatedSet(self.concepts, strengths=setting)
        with painter.wiring(kind) as wiring:
            return painter.paint(encodings, seed, wiring, keys)


@dataclass(frozen=True)
class Perfusion:
    """Beta is swept at inference. With a key freedom of 0 it is the paper's."""

    settings: TrainingSettings = SETTINGS
    outside: float = OUTSIDE
    least: int = MIN_TIMESTEP
    kind: type[Training] = Training
    of: type[Photos] = Photos

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedConcepts:
        photos, settings = self.of(painter, task.photos, self.outside, self.least), replace(self.settings, seed=seed)
        training = self.kind(photos, painter.inverse_covariance, task.trigger, task.superclass, "demo", settings)
        with photos.wiring:
            for _ in range(settings.steps):
                training.step()
        gated = self.kind is not UngatedTraining
        return LearnedConcepts([training.concept()], BETAS if gated else STRENGTHS, gated=gated)


@dataclass(frozen=True)
class GlobalLock:
    """What Perfusion learned, with all keys as if the prompt named the class."""

    trained: Callable[[int, int], Concept]  # of a task's number and a seed

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedConcepts:
        return LearnedConcepts([self.trained(task.number, seed)], BETAS, key_lock=1.0)


# What people use instead


@dataclass
class LearnedWeights:
    """Weights of the UNet and a word's embedding, at every setting: those of a step, or of a strength."""

    phrase: str  # what stands for the subject in prompts
    word: str
    size: int
    versions: Mapping[float, tuple[Tensor, Mapping[str, Tensor]]]  # {setting: (embedding, {weight: its value})}

    @property
    def settings(self) -> Sequence[float]:
        return list(self.versions)

    def paint(self, painter: Painter, sentences: Sequence[str], seed: int, setting: float) -> Tensor:
        embedding, weights = self.versions[setting]
        encodings, _ = painter.encode([s.replace("{}", self.phrase) for s in sentences], {self.word: embedding})
        with swapped(painter.unet, weights):
            return painter.paint(encodings, seed)


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these weights for a while."""
    before = {name: model.get_parameter(name).data for name in weights}
    try:
        for name, weight in weights.items():
            model.get_parameter(name).data = weight.to(before[name].dtype)
        yield
    finally:
        for name, weight in before.items():
            model.get_parameter(name).data = weight


@dataclass
class _Run:
    """What every one of these trainings does: pictures with their sentences, and the embedding of a new word."""

    painter: Painter
    task: Task
    seed: int
    phrase: str
    start: str  # the word the embedding starts from
    batch: int
    rate: float = 0.0  # of the embedding; 0 leaves it
    regular: bool = False  # half of each batch are others of the superclass
    generator: torch.Generator = field(init=False)
    embedding: nn.Parameter = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.embedding = nn.Parameter(self.painter.embedding(self.start), requires_grad=self.rate > 0)
        self.photos = Photos(self.painter, self.task.photos)
        self.steps = PICTURES // self.batch
        self.marks = {round(mark * self.steps) for mark in MARKS}  # steps after which a version is kept
        if self.regular:
            random, kind = np.random.default_rng(5), self.task.superclass
            scenes = [scene(5000 + i, [individual(random, kind)], "", "") for i in range(REGULAR_SCENES)]
            self.captions = [f"a photo of {described(s.things[0], random)} {PLACES[s.place]}" for s in scenes]
            self.regular_latents = self.painter.latents([s.image for s in scenes])

    def losses(self, unet) -> Iterator[tuple[int, Tensor]]:
        """(steps after this one, its loss)."""
        adam = torch.optim.Adam([self.embedding], self.rate) if self.rate else None
        for step in range(1, self.steps + 1):
            own = self.batch // 2 if self.regular else self.batch
            chosen = torch.randint(len(self.photos.latents), (own,), generator=self.generator)
            templates = torch.randint(len(TEMPLATES), (own,), generator=self.generator)
            sentences = [TEMPLATES[i].replace("{}", self.phrase) for i in templates]
            latents, masks = self.photos.latents[chosen], self.photos.masks[chosen]
            if self.regular:
                others = torch.randint(REGULAR_SCENES, (self.batch - own,), generator=self.generator)
                sentences += [self.captions[i] for i in others]
                latents = torch.cat([latents, self.regular_latents[others]])
                masks = torch.cat([masks, torch.ones_like(masks[:1]).expand(len(others), -1, -1, -1)])
            encoding, _ = self.painter.encode(sentences, {self.task.trigger: self.embedding})
            if adam is not None:
                adam.zero_grad()
            yield step, self.painter.loss(unet, latents, masks, encoding, self.generator)
            if adam is not None:
                adam.step()

    def kept(self, weights: Mapping[str, Tensor] = {}) -> tuple[Tensor, dict[str, Tensor]]:
        return self.embedding.detach().clone(), {name: weight.clone() for name, weight in weights.items()}


def _size(embedding: Tensor | None, weights: Mapping[str, Tensor]) -> int:
    embeddings = {} if embedding is None else {"embedding": embedding.half()}
    return len(save({**embeddings, **{name: weight.half().contiguous() for name, weight in weights.items()}}))


@dataclass(frozen=True)
class TextualInversion:
    """A new word and nothing else (Gal et al. 2022)."""

    rate: float = 0.005
    batch: int = 4

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedWeights:
        run = _Run(painter, task, seed, task.trigger, task.superclass, self.batch, self.rate)
        versions = {}
        for step, loss in run.losses(painter.unet):
            if step - 1 in run.marks:
                versions[step - 1] = run.kept()
            loss.backward()
        versions[run.steps] = run.kept()
        return LearnedWeights(task.trigger, task.trigger, _size(run.embedding.detach(), {}), versions)


@dataclass(frozen=True)
class Lora:
    """A low-rank change of what ``painter.adapted`` names, beside a new word before the superclass; its strength is
    swept."""

    rank: int
    rate: float = 0.0005
    embedding_rate: float = 0.006
    batch: int = 4

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedWeights:
        phrase = f"{task.trigger} {task.superclass}"
        run = _Run(painter, task, seed, phrase, task.superclass, self.batch, self.embedding_rate)
        modules = {name: painter.unet.get_submodule(name) for name in painter.adapted()}
        down, up, hooks = {}, {}, []
        for name, module in modules.items():
            rows, columns = module.weight.shape
            down[name] = nn.Parameter(torch.randn(self.rank, columns, generator=run.generator) / columns**0.5)
            up[name] = nn.Parameter(torch.zeros(rows, self.rank))
            hooks.append(module.register_forward_hook(_adding(down[name], up[name])))
        adam = torch.optim.Adam([*down.values(), *up.values()], self.rate)
        try:
            for _, loss in run.losses(painter.unet):
                adam.zero_grad()
                loss.backward()
                adam.step()
        finally:
            for hook in hooks:
                hook.remove()
        change = {name: (up[name] @ down[name]).detach() for name in modules}
        versions = {
            strength: run.kept(
                {f"{name}.weight": modules[name].weight.float() + strength * change[name] for name in modules}
            )
            for strength in STRENGTHS
        }
        factors = {f"{name}.down": factor.detach() for name, factor in down.items()}
        factors |= {f"{name}.up": factor.detach() for name, factor in up.items()}
        return LearnedWeights(phrase, task.trigger, _size(run.embedding.detach(), factors), versions)


def _adding(down: Tensor, up: Tensor) -> Callable:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + (inputs[0].float() @ down.T @ up.T).to(output.dtype)

    return hook


@dataclass(frozen=True)
class FineTune:
    """All weights that match ``part``, in a copy of the UNet: Custom Diffusion's, or DreamBooth's, all.

    Both train with other pictures of the superclass beside the photos.
    """

    part: str  # a pattern of their names; "" are all
    rate: float
    embedding_rate: float = 0.0
    batch: int = 4

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedWeights:
        phrase = f"{task.trigger} {task.superclass}"
        start = task.superclass if self.embedding_rate else ODD_WORD
        run = _Run(painter, task, seed, phrase, start, self.batch, self.embedding_rate, regular=True)
        unet = copy.deepcopy(painter.unet)
        trained = {name: weight for name, weight in unet.named_parameters() if re.search(self.part, name)}
        masters = [weight.detach().float() for weight in trained.values()]  # the model itself may be bf16
        adam, versions = torch.optim.Adam(masters, self.rate, fused=True), {}
        for weight in trained.values():
            weight.requires_grad_(True)
        for step, loss in run.losses(unet):
            loss.backward()
            for weight, master in zip(trained.values(), masters, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
            adam.step()
            with torch.no_grad():
                torch._foreach_copy_(list(trained.values()), masters)
            if step in run.marks:
                versions[step] = run.kept({name: weight.detach() for name, weight in trained.items()})
        embedding = run.embedding.detach() if self.embedding_rate else None
        return LearnedWeights(phrase, task.trigger, _size(embedding, versions[run.steps][1]), versions)


@dataclass
class LearnedSum:
    """LoRAs added up, as a row of LoRA loaders does; or words alone."""

    learned: Sequence[LearnedWeights]  # with a version of strength 1, in the order in which sentences name them
    settings: Sequence[float] = (TOGETHER_STRENGTH,)
    size: int = 0

    def paint(self, painter: Painter, sentences: Sequence[str], seed: int, setting: float) -> Tensor:
        versions = [one.versions[1.0] for one in self.learned]
        base = {name: painter.unet.get_parameter(name).float() for name in versions[0][1]}
        weights = {
            name: weight + setting * sum(changed[name] - weight for _, changed in versions)
            for name, weight in base.items()
        }
        phrases = [one.phrase.replace(one.word, name) for one, name in zip(self.learned, NAMES, strict=False)]
        new = {name: embedding for name, (embedding, _) in zip(NAMES, versions, strict=False)}
        encodings, _ = painter.encode([filled(sentence, phrases) for sentence in sentences], new)
        with swapped(painter.unet, weights):
            return painter.paint(encodings, seed)
