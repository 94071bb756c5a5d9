"""Concepts that are read as their superclass word: their offset is added to what a text encoder made of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ...perfusion_core import Concept
from ...perfusion_core.concept import OFFSET
from .tokenizer import TRIGGER, rows_ahead


def adding_offsets(plain: Callable, name: str, concepts: Iterable[Concept]) -> Callable:
    """The host's encode_token_weights, ``plain``, with the concepts' offsets added where their triggers stand, times
    their weights in the prompt. name: the tokenizer whose tokens stand as those of the encoding."""
    offsets = {it.trigger.lower(): it.token_embeddings[OFFSET] for it in concepts if it.has_offset}
    if not offsets:
        return plain

    def encode_token_weights(tokens):
        encoding, *more = plain(tokens)
        stream = [token for section in tokens[name] for token in section]
        ahead = rows_ahead(tokens, encoding.shape[1])
        each = max((encoding.shape[1] - ahead) // len(stream), 1)  # NegPip has two for each
        added = torch.zeros_like(encoding)
        for place, (token, weight, *_) in enumerate(stream, ahead):
            if (offset := offsets.get(getattr(token, TRIGGER, ""))) is not None:
                added[:, place * each : (place + 1) * each] = weight * offset.to(encoding)
        return encoding + added, *more

    return encode_token_weights
