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

from half_precision import HalfPrecision
from painter import Painter, PainterTrainee, Task, pasted
from perfusion_core import Concept, ConceptSet, Training, TrainingSettings, Wiring, cross_attention_layers
from perfusion_core.captions import TEMPLATES
from perfusion_core.edit import TEMPERATURE
from scenes import draw_scene
from variants import UngatedSet, UngatedTraining

PICTURES = 1600  # that every method trains on, in batches that suit it
_SETTINGS = TrainingSettings(
    steps=400, batch_size=4, accumulation=1, learning_rate_values=0.05, learning_rate_embedding=0.001
)
OUTSIDE = 0.3  # what counts outside the masks, for Perfusion
MIN_TIMESTEP = 250  # that Perfusion trains on
BETAS = (0.3, 0.5, 0.7, 0.9)
MIDDLE_BETA = 0.5  # where strength is swept, and concepts are combined
STRENGTHS = (0.4, 0.7, 1.0, 1.3)  # where that is swept
FINER_STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.55, 0.85)  # below and between them
MARKS = (0.125, 0.25, 0.5, 1.0)  # shares of the steps, where these are
REGULAR_SCENES = 32  # pictures of the superclass that keep Custom Diffusion and DreamBooth from forgetting it


class Learned(Protocol):
    settings: Sequence[float]
    size: int  # bytes of a file with what was learned, as fp16 safetensors where the method has no format of its own

    def paint(self, painter: Painter, sentences: Sequence[str], noise: Tensor, setting: float) -> Tensor:
        """Pictures of sentences that hold {} where the subject stands, (n, 64, 64, 3) in 0..1."""


Method = Callable[[Painter, Task, int], Learned]


@dataclass(frozen=True)
class Pasted:
    """A method that does not train on the photos but on pictures with their subject pasted onto other backgrounds."""

    method: Method

    def __call__(self, painter: Painter, task: Task, seed: int) -> Learned:
        return self.method(painter, replace(task, photos=pasted(task.photos)), seed)


# Perfusion


@dataclass
class LearnedConcepts:
    """Concept files in use; the setting is beta, or else the strength."""

    concepts: Sequence[Concept]
    settings: Sequence[float]
    key_lock: float = 0.0  # 0 local, 1 global
    gated: bool = True
    by_strength: bool = False
    temperature: float = TEMPERATURE

    @property
    def size(self) -> int:
        return len(save({name: tensor.half() for name, tensor in self.concepts[0].tensors().items()}))

    def paint(self, painter: Painter, sentences: Sequence[str], noise: Tensor, setting: float) -> Tensor:
        new = {concept.trigger: concept.token_embeddings["l"] for concept in self.concepts}
        prompts = [_filled(sentence, [concept.trigger for concept in self.concepts]) for sentence in sentences]
        encodings, _ = painter.encode(prompts, new)
        keys = None
        if self.key_lock:
            plain = [_filled(sentence, [concept.superclass for concept in self.concepts]) for sentence in sentences]
            keys = encodings + self.key_lock * (painter.encode(plain)[0] - encodings)
        if not self.gated:
            concepts = UngatedSet(self.concepts, strengths=setting)
        elif self.by_strength:
            concepts = ConceptSet(self.concepts, MIDDLE_BETA, self.temperature, strengths=setting)
        else:
            concepts = ConceptSet(self.concepts, setting, self.temperature)
        with Wiring(painter.unet, cross_attention_layers(painter.unet), concepts) as wiring:
            return painter.paint(encodings, noise, wiring, keys)


def _filled(sentence: str, words: Sequence[str]) -> str:
    for word in words:
        sentence = sentence.replace("{}", word, 1)
    return sentence


@dataclass(frozen=True)
class Perfusion:
    """Trained as the paper says; beta is swept at inference."""

    inverse: Tensor  # C^-1
    betas: Sequence[float] = BETAS
    outside: float = OUTSIDE
    min_timestep: int = MIN_TIMESTEP
    kind: type[Training] = Training
    settings: TrainingSettings = _SETTINGS

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedConcepts:
        training = self.kind(
            PainterTrainee(painter, task, self.outside, self.min_timestep), self.inverse, task.trigger,
            task.superclass, "demo", replace(self.settings, seed=seed),
        )  # fmt: skip
        with training.trainee.wiring:
            for _ in range(self.settings.steps):
                training.step()
        return LearnedConcepts([training.concept()], self.betas, gated=self.kind is not UngatedTraining)


@dataclass(frozen=True)
class Reused:
    """What Perfusion learned, used in another way."""

    trained: Callable[[str, int], Concept]  # of a task's name and a seed
    key_lock: float = 0.0
    strengths: Sequence[float] = ()  # that are swept in place of beta
    temperature: float = TEMPERATURE

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedConcepts:
        return LearnedConcepts(
            [self.trained(task.name, seed)], self.strengths or BETAS, self.key_lock,
            by_strength=bool(self.strengths), temperature=self.temperature,
        )  # fmt: skip


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

    def paint(self, painter: Painter, sentences: Sequence[str], noise: Tensor, setting: float) -> Tensor:
        embedding, weights = self.versions[setting]
        encodings, _ = painter.encode([s.replace("{}", self.phrase) for s in sentences], {self.word: embedding})
        with swapped(painter.unet, weights):
            return painter.paint(encodings, noise)


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
    batch: int
    start: str  # the word the embedding starts from
    rate: float = 0.0  # of the embedding; 0 leaves it
    regular: bool = False  # half of each batch are other things of the superclass
    generator: torch.Generator = field(init=False)
    embedding: nn.Parameter = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.embedding = nn.Parameter(self.painter.embedding(self.start), requires_grad=self.rate > 0)
        self.latents, self.masks = self.painter.latents(self.task.photos)
        if self.regular:
            self.scenes = [
                draw_scene(np.random.default_rng((5, i)), self.task.superclass) for i in range(REGULAR_SCENES)
            ]
            self.scene_latents, _ = self.painter.latents(self.scenes)

    @property
    def steps(self) -> int:
        return PICTURES // self.batch

    @property
    def marks(self) -> list[int]:
        """Steps after which a version is kept, where these are swept."""
        return [int(mark * self.steps) for mark in MARKS]

    def losses(self, unet) -> Iterator[tuple[int, Tensor]]:
        """(steps after this one, its loss)."""
        adam = torch.optim.Adam([self.embedding], self.rate) if self.rate else None
        for step in range(1, self.steps + 1):
            own = self.batch // 2 if self.regular else self.batch
            photos = torch.randint(len(self.latents), (own,), generator=self.generator)
            templates = torch.randint(len(TEMPLATES), (own,), generator=self.generator)
            sentences = [TEMPLATES[i].replace("{}", self.phrase) for i in templates]
            latents, masks = self.latents[photos], self.masks[photos]
            if self.regular:
                chosen = torch.randint(REGULAR_SCENES, (self.batch - own,), generator=self.generator)
                sentences += [self.scenes[i].caption for i in chosen]
                latents = torch.cat([latents, self.scene_latents[chosen]])
                masks = torch.cat([masks, torch.ones_like(masks[: self.batch - own])])
            encoding, _ = self.painter.encode(sentences, {self.task.trigger: self.embedding})
            if adam is not None:
                adam.zero_grad()
            yield step, self.painter.noise_loss(unet, latents, masks, encoding.bfloat16(), self.generator)
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
        run = _Run(painter, task, seed, task.trigger, self.batch, task.superclass, self.rate)
        versions = {}
        for step, loss in run.losses(painter.unet):
            loss.backward()
            if step - 1 in run.marks:
                versions[step - 1] = run.kept()
        versions[run.steps] = run.kept()
        return LearnedWeights(task.trigger, task.trigger, _size(run.embedding.detach(), {}), versions)


@dataclass(frozen=True)
class Lora:
    """A low-rank change of to_k and to_v beside a new word before the superclass; its strength is swept."""

    rank: int
    rate: float = 0.0005
    embedding_rate: float = 0.006
    batch: int = 4
    strengths: Sequence[float] = STRENGTHS

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedWeights:
        phrase = f"{task.trigger} {task.superclass}"
        run = _Run(painter, task, seed, phrase, self.batch, task.superclass, self.embedding_rate)
        modules = {
            f"{layer}.{projection}": painter.unet.get_submodule(f"{layer}.{projection}")
            for layer in cross_attention_layers(painter.unet)
            for projection in ("to_k", "to_v")
        }
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
            for strength in self.strengths
        }
        factors = {f"{name}.down": factor.detach() for name, factor in down.items()}
        factors |= {f"{name}.up": factor.detach() for name, factor in up.items()}
        return LearnedWeights(phrase, task.trigger, _size(run.embedding.detach(), factors), versions)


@dataclass(frozen=True)
class ReusedLora:
    """What a LoRA learned, at other strengths."""

    trained: Callable[[str, int], LearnedWeights]  # of a task's name and a seed, at strength 1
    strengths: Sequence[float]

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedWeights:
        learned = self.trained(task.name, seed)
        embedding, weights = learned.versions[1.0]
        base = {name: painter.unet.get_parameter(name).float() for name in weights}
        versions = {
            strength: (embedding, {name: base[name].lerp(weight, strength) for name, weight in weights.items()})
            for strength in self.strengths
        }
        return replace(learned, versions=versions)


def _adding(down: Tensor, up: Tensor) -> Callable:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + (inputs[0].float() @ down.T @ up.T).to(output.dtype)

    return hook


@dataclass(frozen=True)
class FineTune:
    """The weights of all modules that match ``part``, in a copy of the UNet: Custom Diffusion's, or DreamBooth's, all.

    Both train with other pictures of the superclass beside the photos.
    """

    part: str  # a pattern of module names; "" are all
    rate: float
    embedding_rate: float = 0.0
    batch: int = 4

    def __call__(self, painter: Painter, task: Task, seed: int) -> LearnedWeights:
        phrase = f"{task.trigger} {task.superclass}"
        start = task.superclass if self.embedding_rate else "nice"
        run = _Run(painter, task, seed, phrase, self.batch, start, self.embedding_rate, regular=True)
        unet = copy.deepcopy(painter.unet)
        chosen = {
            name: module for name, module in unet.named_modules()
            if re.search(self.part, f"{name}.") and list(module.parameters(recurse=False))
        }  # fmt: skip
        trained = nn.ModuleList(chosen.values()).requires_grad_(True)
        training = HalfPrecision([trained], self.rate)
        names = [
            f"{name}.{own}" for name, module in chosen.items() for own, _ in module.named_parameters(recurse=False)
        ]
        versions = {}
        for step, loss in run.losses(unet):
            training.step(loss, 1.0)
            if step in run.marks:
                versions[step] = run.kept({name: unet.get_parameter(name).detach() for name in names})
        embedding = run.embedding.detach() if self.embedding_rate else None
        return LearnedWeights(phrase, task.trigger, _size(embedding, versions[run.steps][1]), versions)


def summed(painter: Painter, learned: Sequence[LearnedWeights]) -> LearnedSum:
    """LoRAs added up, as a row of LoRA loaders does."""
    base = {name: painter.unet.get_parameter(name).float() for name in learned[0].versions[1.0][1]}
    changes = [{name: weight - base[name] for name, weight in one.versions[1.0][1].items()} for one in learned]
    weights = {name: weight + sum(change[name] for change in changes) for name, weight in base.items()}
    return LearnedSum([one.phrase for one in learned], {one.word: one.versions[1.0][0] for one in learned}, weights)


@dataclass
class LearnedSum:
    phrases: Sequence[str]
    embeddings: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    settings: Sequence[float] = (1.0,)
    size: int = 0

    def paint(self, painter: Painter, sentences: Sequence[str], noise: Tensor, setting: float) -> Tensor:
        encodings, _ = painter.encode([_filled(sentence, self.phrases) for sentence in sentences], self.embeddings)
        with swapped(painter.unet, self.weights):
            return painter.paint(encodings, noise)
