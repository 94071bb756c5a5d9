"""Teaching a concept: the method of the paper, for any text-to-image model that shows itself as a ``Trainee``.

Trained are the trigger's token embeddings and one value delta per layer. The target input i* is no parameter but the
running mean of the trigger's encoding (paper section 4.2); superclass encoding s and covariance C stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .concept import Concept, trigger_problem
from .edit import ConceptSet
from .wiring import Wiring

_LOSS_SCALE = 2.0**12  # keeps fp16 models' gradients from underflowing; exact, being a power of two


@dataclass(frozen=True)
class TrainingSettings:
    """The paper's settings. One step is ``accumulation`` micro-batches of ``batch_size`` pictures."""

    steps: int = 400
    batch_size: int = 4
    accumulation: int = 4  # effective batch 16
    learning_rate_values: float = 0.03
    learning_rate_embedding: float = 0.006
    beta: float = 0.75
    temperature: float = 0.1
    decay: float = 0.99  # of the running mean i*, per micro-batch
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate_values", "learning_rate_embedding", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if not abs(self.beta) < float("inf"):
            raise ValueError(f"beta must be a number, got {self.beta}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}.")


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as the model's cross-attention sees them, before any edit."""

    encodings: Tensor  # (prompts, tokens, d)
    trigger_positions: Tensor  # (prompts,), the index of the trigger's token
    pooled: Tensor | None = None  # (prompts, d_pooled), for models that take one


class Trainee(Protocol):
    """What ``train_concept`` needs of a text-to-image model and the photos: the one adapter to write for a new model.

    Templates are the sentences that hold the trigger, numbered from 0; photos likewise.
    """

    wiring: Wiring  # of the model's cross-attention, open during training
    photos: int
    templates: int

    def superclass_embeddings(self) -> Mapping[str, Tensor]:
        """{encoder: (d_encoder,)}, the superclass word's own token embeddings, where training starts."""

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        """The templates with ``token_embeddings`` in the trigger's place; differentiable in these."""

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        """The masked denoising loss, a scalar, of the numbered photos at noises and timesteps drawn from ``generator``.

        Prompts come one per photo. Calling ``wiring.prepare`` with the tensor that the layers get saves time.
        """


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all elements of w (prediction − target)^2, a scalar; the weight w is the mask over its own maximum.

    prediction, target: (batch, channels, height, width). mask: (batch, 1, height, width) or (batch, height, width), in
    0..1 and soft; its maximum is taken per image, so a faint mask counts as much as a strong one. None: w = 1.
    """
    error = (prediction - target) ** 2
    if mask is None:
        return error.mean()
    if mask.ndim == prediction.ndim - 1:
        mask = mask.unsqueeze(1)
    if mask.ndim != prediction.ndim or mask.shape[0] not in (1, prediction.shape[0]):
        raise ValueError(
            f"The mask is {tuple(mask.shape)}, the prediction {tuple(prediction.shape)}: one mask per image."
        )
    weight = mask / mask.flatten(1).amax(1).clamp_min(1e-6).view(-1, *[1] * (mask.ndim - 1))
    return (weight * error).mean()


class Training:
    """A concept in the making. ``step()`` advances it, ``concept()`` is what it has learned so far.

    covariance_inverse is C^-1, (d, d). The same seed on the same machine gives the same concept.
    Raises ValueError for an empty superclass or a trigger that prompts cannot hold.
    """

    def __init__(
        self,
        trainee: Trainee,
        covariance_inverse: Tensor,
        trigger: str,
        superclass: str,
        base_model: str,
        settings: TrainingSettings = TrainingSettings(),
    ):
        if problem := trigger_problem(trigger):
            raise ValueError(f"Cannot train: {problem}.")
        if not superclass.strip():
            raise ValueError("The superclass is empty. Give the plain word your concept is a kind of, such as teddy.")
        self.trainee, self.settings = trainee, settings
        self.trigger, self.superclass, self.base_model = trigger, superclass, base_model
        self.losses: list[float] = []
        self._generator = torch.Generator().manual_seed(settings.seed)

        start = trainee.superclass_embeddings()
        with torch.no_grad():
            prompts = trainee.encode(range(trainee.templates), start)
            self.superclass_input = _trigger_encoding(prompts)  # s
        self.target_input = self.superclass_input.clone()  # i*
        if covariance_inverse.shape != (len(self.target_input), len(self.target_input)):
            raise ValueError(
                f"The covariance is {tuple(covariance_inverse.shape)}, the text encoding {len(self.target_input)} "
                "wide. Make the covariance from the same text encoder."
            )
        self._inverse = covariance_inverse.to(self.target_input)
        self.token_embeddings = {name: torch.nn.Parameter(e.detach().float().clone()) for name, e in start.items()}
        self.value_deltas = {
            layer: torch.nn.Parameter(torch.zeros(_width(to_v), device=self.target_input.device))
            for layer, (_, to_v) in trainee.wiring.projections.items()
        }
        self._optimizer = torch.optim.Adam(
            [
                {"params": list(self.value_deltas.values()), "lr": settings.learning_rate_values},
                {"params": list(self.token_embeddings.values()), "lr": settings.learning_rate_embedding},
            ]
        )
        self._micro_batches = 0

    def step(self) -> float:
        """One optimizer step; returns its mean loss.

        Raises FloatingPointError when the loss or its gradient is no longer a number; ``concept()`` is then what it was
        after the step before.
        """
        before = self.target_input, self._micro_batches
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(self.settings.accumulation):
            loss = self._micro_batch() / self.settings.accumulation
            (loss * _LOSS_SCALE).backward()
            total += loss.item()
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        torch._foreach_div_(gradients, _LOSS_SCALE)
        if not math.isfinite(total) or not all(torch.isfinite(gradient).all() for gradient in gradients):
            self.target_input, self._micro_batches = before
            raise FloatingPointError(
                f"The training diverged at step {len(self.losses) + 1} (loss {total}). Train in fp32 or bf16, or lower "
                "the learning rates. What was learned until the step before is intact."
            )
        self._optimizer.step()
        self.losses.append(total)
        return total

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [*self.value_deltas.values(), *self.token_embeddings.values()]

    def _micro_batch(self) -> Tensor:
        size = self.settings.batch_size
        photos = torch.randint(self.trainee.photos, (size,), generator=self._generator)
        templates = torch.randint(self.trainee.templates, (size,), generator=self._generator)
        distinct, rows = templates.unique(return_inverse=True)  # every template is encoded once
        prompts = self.trainee.encode(distinct.tolist(), self.token_embeddings)
        self._follow(_trigger_encoding(prompts).detach())
        self.trainee.wiring.concepts = self._concept_set()
        return self.trainee.loss(photos, _rows(prompts, rows), self._generator)

    def _follow(self, encoding: Tensor) -> None:
        """i* follows the trigger's encoding. The mean is quick at first, or short trainings would stay at the start."""
        self._micro_batches += 1
        decay = min(self.settings.decay, self._micro_batches / (10 + self._micro_batches))
        self.target_input = decay * self.target_input + (1 - decay) * encoding

    def _concept_set(self) -> ConceptSet:
        return ConceptSet([self._live_concept()], self.settings.beta, self.settings.temperature)

    def _live_concept(self) -> Concept:
        return Concept(
            name=self.trigger.strip("<>") or self.trigger,
            trigger=self.trigger,
            superclass=self.superclass,
            base_model=self.base_model,
            token_embeddings=self.token_embeddings,
            target_input=self.target_input,
            target_dual=self._inverse @ self.target_input,
            superclass_input=self.superclass_input,
            value_deltas=self.value_deltas,
        )

    def concept(self) -> Concept:
        """What has been learned so far, detached and on the CPU."""
        live = self._live_concept()
        return live.replace(
            token_embeddings=_kept(live.token_embeddings),
            target_input=_copy(live.target_input),
            target_dual=_copy(live.target_dual),
            superclass_input=_copy(live.superclass_input),
            value_deltas=_kept(live.value_deltas),
        )

    @torch.no_grad()
    def evaluate(self, draws: int = 4) -> float:
        """The loss on a fixed set of noises and timesteps, ``draws`` for each photo, at the first template.

        Raises RuntimeError while the trainee's wiring is not open: it would be the loss of the model without the edit.
        """
        if not self.trainee.wiring.is_open:
            raise RuntimeError("Enter the trainee's wiring before evaluating.")
        generator = torch.Generator().manual_seed(0)
        prompts = self.trainee.encode([0], self.token_embeddings)
        self.trainee.wiring.concepts = self._concept_set()
        photos = torch.arange(self.trainee.photos).repeat(draws).split(self.settings.batch_size)
        total = sum(
            len(batch) * self.trainee.loss(batch, _rows(prompts, torch.zeros_like(batch)), generator).item()
            for batch in photos
        )
        return total / (draws * self.trainee.photos)


def train_concept(
    trainee: Trainee,
    covariance_inverse: Tensor,
    trigger: str,
    superclass: str,
    base_model: str,
    settings: TrainingSettings = TrainingSettings(),
    on_step: Callable[[Training], None] | None = None,
) -> Concept:
    """Trains a concept from start to end and returns it; ``on_step`` is called after every step.

    Whoever wants to stop early, look inside or keep what was learned after an error runs a ``Training`` step by step.
    """
    training = Training(trainee, covariance_inverse, trigger, superclass, base_model, settings)
    with trainee.wiring:
        for _ in range(settings.steps):
            training.step()
            if on_step is not None:
                on_step(training)
    return training.concept()


def _trigger_encoding(prompts: EncodedPrompts) -> Tensor:
    """(d,), the mean of the trigger's encoding over the prompts."""
    row = torch.arange(len(prompts.encodings), device=prompts.encodings.device)
    return prompts.encodings[row, prompts.trigger_positions.to(row.device)].float().mean(0)


def _rows(prompts: EncodedPrompts, rows: Tensor) -> EncodedPrompts:
    rows = rows.to(prompts.encodings.device)
    pooled = None if prompts.pooled is None else prompts.pooled[rows]
    return EncodedPrompts(prompts.encodings[rows], prompts.trigger_positions.to(rows.device)[rows], pooled)


def _width(to_v: torch.nn.Module) -> int:
    return to_v.get_parameter("weight").shape[0]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _copy(tensor) for name, tensor in tensors.items()}
