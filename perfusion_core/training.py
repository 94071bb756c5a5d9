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

from .concept import Concept, plain_words, trigger_problem
from .device import sent
from .edit import ConceptSet
from .wiring import Wiring

SCHEDULES = ("constant", "cosine")  # of the learning rates
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_MANY_PHOTOS = 10_000  # after so many the running mean no longer hurries
_LOSS_SCALE = 2.0**12  # keeps fp16 models' gradients from underflowing; exact, being a power of two


@dataclass(frozen=True)
class TrainingSettings:
    """The paper's settings. One step is ``accumulation`` micro-batches of ``batch_size`` pictures."""

    steps: int = 400
    batch_size: int = 4
    accumulation: int = 4  # effective batch 16
    learning_rate_values: float = 0.03
    learning_rate_embedding: float = 0.006
    learning_rate_schedule: str = "constant"  # or "cosine", which takes both rates down to 0 over the steps
    beta: float = 0.75
    temperature: float = 0.1
    decay: float = 0.99  # of the running mean i*, per four photos
    key_freedom: float = 0.0  # how far keys are the trigger's own, in 0..1; 0 locks them to the superclass's, the paper
    target_gradient: bool = False  # whether the embedding also learns through i*, straight through its running mean
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate_values", "learning_rate_embedding", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.learning_rate_schedule not in SCHEDULES:
            raise ValueError(
                f"learning_rate_schedule must be {' or '.join(SCHEDULES)}, got {self.learning_rate_schedule!r}."
            )
        if not abs(self.beta) < float("inf"):
            raise ValueError(f"beta must be a number, got {self.beta}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}.")
        if not 0 <= self.key_freedom <= 1:
            raise ValueError(f"key_freedom must be in [0, 1], got {self.key_freedom}.")

    def share_of_rates(self, done: int) -> float:
        """What the learning rates of the step after ``done`` others are multiplied by."""
        if self.learning_rate_schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * min(done / self.steps, 1))) / 2


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as the model's cross-attention sees them, before any edit."""

    encodings: Tensor  # (prompts, tokens, d)
    trigger_positions: Tensor  # (prompts,), the index of the trigger's token
    pooled: Tensor | None = None  # (prompts, d_pooled), for models that take one
    words: Tensor | None = None  # (prompts, tokens), False where a token is padding, for models that tell it


class Trainee(Protocol):
    """What ``train_concept`` needs of a text-to-image model and the photos: the one adapter to write for a new model.

    Photos are numbered from 0, and so are the templates, the sentences that hold the trigger. A trainee whose encodings
    end in rows of zeros says so by an attribute, ``zero_padded`` = True (see ConceptSet).
    """

    wiring: Wiring  # of the model's cross-attention, open during training
    templates: Sequence[Sequence[int]]  # for every photo the templates that may go with it

    def superclass_embeddings(self) -> Mapping[str, Tensor]:
        """{encoder: (d_encoder,)}, the superclass word's own token embeddings, where training starts.

        Or {OFFSET: zeros}, of the width of the text encoder's output, to learn an offset of it (see Concept).
        """

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        """The templates with ``token_embeddings`` in the trigger's place; differentiable in these."""

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        """The masked denoising loss, a scalar, of the numbered photos at noises and timesteps drawn from ``generator``.

        Prompts come one per photo. Calling ``wiring.prepare`` with the tensor that the layers get saves time.
        """


class Training:
    """A concept in the making. ``step()`` advances it, ``concept()`` is what it has learned so far.

    covariance_inverse is C^-1, (d, d). The same seed on the same machine gives the same concept, also when the training
    was left and taken up again (``state_dict``). Raises ValueError for an empty superclass or a trigger that prompts
    cannot hold.
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
        superclass = plain_words(superclass)
        if not superclass:
            raise ValueError("The superclass is empty. Give the plain word your concept is a kind of, such as teddy.")
        self.trainee, self.settings = trainee, settings
        self.trigger, self.superclass, self.base_model = trigger, superclass, base_model
        self.losses: list[float] = []
        self._generator = torch.Generator().manual_seed(settings.seed)

        start = trainee.superclass_embeddings()
        with torch.no_grad():
            distinct = sorted({template for templates in trainee.templates for template in templates})
            self.superclass_input = _trigger_encoding(trainee.encode(distinct, start))  # s
        self.target_input = self.superclass_input.clone()  # i*
        if covariance_inverse.shape != (len(self.target_input), len(self.target_input)):
            raise ValueError(
                f"The covariance is {tuple(covariance_inverse.shape)}, the text encoding {len(self.target_input)} "
                "wide. Make the covariance from the same text encoder."
            )
        self._inverse = covariance_inverse.to(self.target_input)
        self.token_embeddings = {name: torch.nn.Parameter(e.detach().float().clone()) for name, e in start.items()}
        self.value_deltas = {
            layer: torch.nn.Parameter(torch.zeros(width, device=self.target_input.device))
            for layer, width in trainee.wiring.widths.items()
        }
        self._optimizer = torch.optim.Adam(
            [
                {"params": list(self.value_deltas.values()), "lr": settings.learning_rate_values},
                {"params": list(self.token_embeddings.values()), "lr": settings.learning_rate_embedding},
            ]
        )
        self._photos_seen = 0

    def step(self) -> float:
        """One optimizer step; returns its mean loss. Whatever interrupts it, the training is then as it was before.

        Raises FloatingPointError when the loss or its gradient is no longer a number, RuntimeError when a part of the
        concept gets no gradient, as behind an attention without a backward.
        """
        before = self.target_input, self._photos_seen, self._generator.get_state()
        try:
            loss = self._accumulate_gradients()
        except BaseException:
            self.target_input, self._photos_seen, random_state = before
            self._generator.set_state(random_state)
            raise
        share = self.settings.share_of_rates(len(self.losses))
        for group in self._optimizer.param_groups:
            group["lr"] = share * group.setdefault("initial_lr", group["lr"])
        self._optimizer.step()
        self.losses.append(loss)
        return loss

    def _accumulate_gradients(self) -> float:
        self._optimizer.zero_grad()
        losses = []
        for _ in range(self.settings.accumulation):
            loss = self._micro_batch() / self.settings.accumulation
            if loss.requires_grad:  # else nothing is reached, which is checked below
                (loss * _LOSS_SCALE).backward()
            losses.append(loss.detach())
        gradients = {
            name: parameter.grad for name, parameter in self._parameters().items() if parameter.grad is not None
        }
        if gradients:
            torch._foreach_div_(list(gradients.values()), _LOSS_SCALE)
        norms = torch._foreach_norm(list(gradients.values()), math.inf) if gradients else ()
        # the one time in a step that a GPU is waited for
        numbers: list[float] = torch.stack([*losses, *norms]).tolist()
        total, largest = sum(numbers[: len(losses)]), numbers[len(losses) :]
        self._check_reached(dict(zip(gradients, largest, strict=True)))
        if not all(map(math.isfinite, [total, *largest])):
            raise FloatingPointError(
                f"The training diverged at step {len(self.losses) + 1} (loss {total}). Train in fp32 or bf16, or lower "
                "the learning rates. What was learned until the step before is intact."
            )
        return total

    def _check_reached(self, largest: Mapping[str, float]) -> None:
        """largest: of every gradient that there is, its largest element."""
        parameters = self._parameters()
        unreached = [
            name
            for name, parameter in parameters.items()
            if not largest.get(name) and not (name in largest and parameter.any())  # still 0, and stays so
        ]
        if unreached:
            raise RuntimeError(
                f"{len(unreached)} of the concept's {len(parameters)} parts get no gradient and would learn nothing, "
                f"such as {unreached[0]}. Something between them and the loss cannot be trained through: an attention "
                "without a backward, such as sage attention, or masks that are black everywhere."
            )

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, named as in ``Concept.tensors``."""
        return {
            **{f"value_delta.{layer}": delta for layer, delta in self.value_deltas.items()},
            **{f"token_embedding.{name}": embedding for name, embedding in self.token_embeddings.items()},
        }

    def _micro_batch(self) -> Tensor:
        size, choices = self.settings.batch_size, self.trainee.templates
        photos = torch.randint(len(choices), (size,), generator=self._generator)
        chances = torch.rand(size, generator=self._generator).tolist()
        chosen = [choices[i][int(chance * len(choices[i]))] for i, chance in zip(photos.tolist(), chances, strict=True)]
        prompts, encoding = self._encode(chosen)
        self._follow(encoding.detach())
        target = self.target_input
        if self.settings.target_gradient:  # the value of i*, the gradient of the trigger's encoding
            target = target + (encoding - encoding.detach())
        self.trainee.wiring.concepts = self._concept_set(target)
        return self.trainee.loss(photos, prompts, self._generator)

    def _encode(self, templates: Sequence[int]) -> tuple[EncodedPrompts, Tensor]:
        """One row per template, each distinct one encoded once, and the mean of the trigger's encoding over these."""
        distinct, rows = torch.tensor(templates).unique(return_inverse=True)
        prompts = self.trainee.encode(distinct.tolist(), self.token_embeddings)
        return _rows(prompts, rows), _trigger_encoding(prompts)

    def _follow(self, encoding: Tensor) -> None:
        """i* follows the trigger's encoding. The mean is quick at first, or short trainings would stay at the start."""
        self._photos_seen += self.settings.batch_size
        fours = self._photos_seen / 4
        decay = min(self.settings.decay, fours / (10 + fours)) ** (self.settings.batch_size / 4)
        self.target_input = decay * self.target_input + (1 - decay) * encoding

    def _concept_set(self, target: Tensor) -> ConceptSet:
        zero_padded = getattr(self.trainee, "zero_padded", False)
        concepts = [self._live_concept(target)]
        return ConceptSet(concepts, self.settings.beta, self.settings.temperature, zero_padded=zero_padded)

    def _live_concept(self, target: Tensor) -> Concept:
        return Concept(
            name=self.trigger.strip("<>") or self.trigger,
            trigger=self.trigger,
            superclass=self.superclass,
            base_model=self.base_model,
            token_embeddings=self.token_embeddings,
            target_input=target,
            target_dual=self._inverse @ target,
            superclass_input=self.superclass_input,
            value_deltas=self.value_deltas,
            key_freedom=self.settings.key_freedom,
        )

    def concept(self) -> Concept:
        """What has been learned so far, detached and on the CPU."""
        live = self._live_concept(self.target_input)
        return live.replace(
            token_embeddings=_kept(live.token_embeddings),
            target_input=_copy(live.target_input),
            target_dual=_copy(live.target_dual),
            superclass_input=_copy(live.superclass_input),
            value_deltas=_kept(live.value_deltas),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """All that changes while training, on the CPU; ``load_state_dict`` goes on from it, bit for bit."""
        state = {
            "target_input": _copy(self.target_input),
            "photos_seen": torch.tensor(self._photos_seen),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "random_state": self._generator.get_state(),
        }
        for name, parameter in self._parameters().items():
            state[name] = _copy(parameter)
            for moment, tensor in self._optimizer.state[parameter].items():
                state[f"adam.{name}.{moment}"] = _copy(tensor)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what ``state_dict`` returned, or, with a fresh optimizer, from a concept's ``tensors()``.

        Raises ValueError when it belongs to another model or is damaged; the training is then as it was before.
        """
        parameters = self._parameters()
        fresh = not any(name.startswith("adam.") for name in state)
        moments = () if fresh else _ADAM
        expected: dict[str, tuple[int, ...]] = {"target_input": self.target_input.shape}
        for name, parameter in parameters.items():
            expected[name] = parameter.shape
            expected |= {f"adam.{name}.{moment}": parameter.shape if moment != "step" else () for moment in moments}
        if not fresh:
            expected["photos_seen"] = ()
        for name, shape in expected.items():
            if name not in state or state[name].shape != shape or not torch.isfinite(state[name]).all():
                raise ValueError(
                    f"Cannot go on from this: {name} is missing, damaged, or of another size than in this model. "
                    "Use the model and text encoder it was trained with."
                )
        if not fresh:
            self._set_random_state(state)
        self.target_input = state["target_input"].to(self.target_input, copy=True)
        self._photos_seen = int(state.get("photos_seen", _MANY_PHOTOS))
        self.losses = state["losses"].tolist() if "losses" in state else []
        for name, parameter in parameters.items():
            parameter.data.copy_(state[name])
            kept = {moment: state[f"adam.{name}.{moment}"] for moment in moments}
            # Adam counts its steps on the CPU
            self._optimizer.state[parameter] = {
                moment: tensor.clone() if moment == "step" else tensor.to(parameter, copy=True)
                for moment, tensor in kept.items()
            }

    def _set_random_state(self, state: Mapping[str, Tensor]) -> None:
        try:
            self._generator.set_state(state["random_state"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"Cannot go on from this: the random state is missing or damaged ({error}).") from error

    @torch.no_grad()
    def evaluate(self, draws: int = 4) -> float:
        """The loss on a fixed set of noises and timesteps, ``draws`` for each photo, at its first template.

        Raises RuntimeError while the trainee's wiring is not open: it would be the loss of the model without the edit.
        """
        if not self.trainee.wiring.is_open:
            raise RuntimeError("Enter the trainee's wiring before evaluating.")
        generator, choices = torch.Generator().manual_seed(0), self.trainee.templates
        prompts, _ = self._encode([templates[0] for templates in choices])  # a row per photo
        self.trainee.wiring.concepts = self._concept_set(self.target_input)
        total = 0.0
        for photos in torch.arange(len(choices)).repeat(draws).split(self.settings.batch_size):
            total += len(photos) * self.trainee.loss(photos, _rows(prompts, photos), generator).item()
        return total / (draws * len(choices))


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
    return prompts.encodings[row, sent(prompts.trigger_positions, row.device)].float().mean(0)


def _rows(prompts: EncodedPrompts, rows: Tensor) -> EncodedPrompts:
    positions = prompts.trigger_positions[sent(rows, prompts.trigger_positions.device)]
    rows = sent(rows, prompts.encodings.device)
    pooled, words = (None if part is None else part[rows] for part in (prompts.pooled, prompts.words))
    return EncodedPrompts(prompts.encodings[rows], positions, pooled, words)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _copy(tensor) for name, tensor in tensors.items()}
