"""Which moment of a training to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .concept import Concept

_BEST, _FIGURES = "best.", "best_figures"


@dataclass(frozen=True)
class Checkpoint:
    """A concept as it was after ``step`` steps, and how good it was then."""

    step: int
    concept: Concept
    loss: float  # on the fixed noises and timesteps of ``Training.evaluate``
    image_similarity: float | None = None  # CLIP-I of sample pictures to the photos
    text_similarity: float | None = None  # CLIP-T of sample pictures to their prompts
    training: Mapping[str, Tensor] | None = field(default=None, repr=False)  # ``Training.state_dict`` of that moment

    @property
    def score(self) -> float | None:
        """The harmonic mean of both similarities, by which the paper chooses; None where they were not measured."""
        if self.image_similarity is None or self.text_similarity is None:
            return None
        return harmonic_mean(self.image_similarity, self.text_similarity)


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), the paper's one number for CLIP-I and CLIP-T; 0 when one of them is not above 0."""
    return 2 * a * b / (a + b) if a > 0 and b > 0 else 0.0


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The highest score, else the lowest loss; the earlier of equals.

    An untrained one (step 0) is chosen only for lack of others. Checkpoints without a score do not compete with those
    that have one.
    """
    trained = [checkpoint for checkpoint in checkpoints if checkpoint.step > 0] or list(checkpoints)
    scored = [checkpoint for checkpoint in trained if checkpoint.score is not None]
    if scored:
        return max(scored, key=lambda checkpoint: checkpoint.score or 0.0)
    return min(trained, key=lambda checkpoint: checkpoint.loss)


def best_tensors(best: Checkpoint) -> dict[str, Tensor]:
    """The best checkpoint so far, to be kept in a training file beside ``Training.state_dict``."""
    figures = (best.step, best.loss, best.image_similarity, best.text_similarity)
    numbers = [float("nan") if figure is None else float(figure) for figure in figures]
    tensors = {f"{_BEST}{name}": tensor for name, tensor in best.concept.tensors().items()}
    return {**tensors, _FIGURES: torch.tensor(numbers, dtype=torch.float64)}


def best_of(state: Mapping[str, Tensor], concept: Concept) -> Checkpoint | None:
    """What ``best_tensors`` put into a training file; ``concept`` is the one that file belongs to. None without."""
    if _FIGURES not in state:
        return None
    step, loss, *similarities = state[_FIGURES].tolist()
    vectors = {name: state[f"{_BEST}{name}"] for name in ("target_input", "target_dual", "superclass_input")}
    best = concept.replace(
        token_embeddings={name: state[f"{_BEST}token_embedding.{name}"] for name in concept.token_embeddings},
        value_deltas={layer: state[f"{_BEST}value_delta.{layer}"] for layer in concept.value_deltas},
        **vectors,
    )
    image, text = (None if math.isnan(figure) else figure for figure in similarities)
    return Checkpoint(int(step), best, loss, image, text)
