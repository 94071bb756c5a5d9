"""Where the gate opens: similarities to words, for the covariance of text encodings in the ways that are in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from painter import Painter
from parts import END, START
from perfusion_core import Concept, Covariance
from perfusion_core.captions import captions as built_in_captions
from scenes import OBJECTS, captions, draw_scene

COUNT, CONTEXT_COUNT, CONTEXT_WEIGHT = 4000, 200, 10.0
COVARIANCES = {  # captions, tokens, ridge
    "world, all tokens": ("world", "all", 0.01),
    "world, words": ("world", "words", 0.01),
    "world, all tokens, ridge 0.1": ("world", "all", 0.1),
    "world, all tokens, ridge 0.001": ("world", "all", 0.001),
    "built-in, all tokens": ("built-in", "all", 0.01),
    "built-in, words": ("built-in", "words", 0.01),
    "identity": ("", "", 0.0),
}
CONTEXTS = ("a photo of a {} on grass", "a sketch of a {} on snow", "pixel art of a {} on wood",
            "a gray photo of a {} on night", "a photo of a cat and a {} on sand", "a photo of a red {} on pink",
            "a {} on water", "my {}")  # fmt: skip
UNRELATED = "a photo of a cup and a key on brick"


@torch.no_grad()
def inverse_covariance(painter: Painter, source: str = "world", tokens: str = "all", ridge: float = 0.01) -> Tensor:
    """C^-1, (d, d), of COUNT captions; tokens: all 77, or the words alone."""
    width = painter.text.table.embedding_dim
    if not source:
        return torch.eye(width)
    sentences = captions(COUNT) if source == "world" else list(built_in_captions(COUNT))
    covariance = Covariance(width, ridge)
    for first in range(0, len(sentences), 64):
        rows = painter.vocabulary.rows(sentences[first : first + 64])
        covariance.update(painter.text(rows), _counted(rows, tokens))
    return covariance.inverse().float()


def _counted(rows: Tensor, tokens: str) -> Tensor:
    """Which positions count."""
    if tokens == "all":
        return torch.ones_like(rows, dtype=torch.bool)
    return (rows != START) & (rows != END)


@torch.no_grad()
def calibrated(painter: Painter, concept: Concept, inverse: Tensor) -> Concept:
    """With i* the mean of the trigger's encoding over many sentences, in a metric that ignores what these do to it.

    The dual is (C + w S)^-1 i*, S the covariance of the trigger's encodings: as in linear discriminant analysis.
    """
    encodings = _encodings(painter, concept, concept.trigger)
    target = encodings.mean(0)
    return concept.replace(target_input=target, target_dual=(_metric(inverse, encodings) @ target.double()).float())


@torch.no_grad()
def discriminating(painter: Painter, concept: Concept, inverse: Tensor) -> Concept:
    """Calibrated, and with the least a (in that metric) for which a · i* = 1, a · s = 0 and a · n = 0.

    s and n are the mean encodings of the superclass word and of what follows the trigger: the gate stays shut on both.
    """
    encodings = _encodings(painter, concept, concept.trigger)
    others = [(concept.superclass, 0), (concept.trigger, 1)]
    known = [encodings.mean(0), *(_encodings(painter, concept, *other).mean(0) for other in others)]
    known = torch.stack(known).double()
    spread = known @ _metric(inverse, encodings)
    dual = spread.T @ torch.linalg.solve(spread @ known.T, torch.tensor([1.0, 0, 0], dtype=torch.float64))
    return concept.replace(target_input=known[0].float(), target_dual=dual.float())


def _metric(inverse: Tensor, encodings: Tensor) -> Tensor:
    """(C + w S)^-1, (d, d), with C in the scale of one token of these."""
    covariance, encodings = torch.linalg.inv(inverse.double()), encodings.double()
    scale = encodings.square().sum(1).mean() / covariance.trace()
    return torch.linalg.inv(scale * covariance + CONTEXT_WEIGHT * torch.cov(encodings.T, correction=0))


def _encodings(painter: Painter, concept: Concept, word: str, offset: int = 0) -> Tensor:
    """(sentences, d) in captions of the superclass with ``word`` in its place, or ``offset`` tokens after it."""
    new = {concept.trigger: concept.token_embeddings["l"]}
    drawn = (draw_scene(np.random.default_rng((7, i)), concept.superclass).caption for i in range(CONTEXT_COUNT))
    sentences = [caption.replace(concept.superclass, concept.trigger, 1) for caption in drawn if caption]
    _, position = painter.encode(sentences, new)
    encodings, _ = painter.encode([sentence.replace(concept.trigger, word) for sentence in sentences], new)
    return encodings[torch.arange(len(sentences)), position + offset]


@torch.no_grad()
def gate_responses(painter: Painter, concept: Concept) -> dict[str, float]:
    """Similarities, 1 being the target's own: on the trigger (mean, lowest), what follows it, and other words."""
    dual = concept.target_dual / (concept.target_dual @ concept.target_input)
    new = {concept.trigger: concept.token_embeddings["l"]}
    encodings, position = painter.encode([text.replace("{}", concept.trigger) for text in CONTEXTS], new)
    row = torch.arange(len(CONTEXTS))
    trigger = encodings[row, position] @ dual
    following = torch.stack([encodings[row, position + 1 + i] @ dual for i in range(3)])
    plain, _ = painter.encode([text.replace("{}", concept.superclass) for text in CONTEXTS])
    others = [name for name in OBJECTS if name != concept.superclass]
    sentences: Sequence[str] = [f"a photo of a {name} on grass" for name in others]
    objects = painter.encode(sentences)[0][:, 5] @ dual
    return {
        "trigger": trigger.mean().item(),
        "trigger_lowest": trigger.min().item(),
        "next": following[0].mean().item(),
        "next_highest": following.max().item(),
        "superclass": (plain[row, position] @ dual).mean().item(),
        "other_objects": objects.mean().item(),
        "other_objects_highest": objects.max().item(),
        "unrelated": (painter.encode([UNRELATED])[0][0, 1:10] @ dual).mean().item(),
    }
