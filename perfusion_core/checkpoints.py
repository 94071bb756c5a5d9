"""Which moment of a training to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .concept import Concept


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
