"""Which text encoder, and which of its layers, encodes: with those of its training a concept looks like its photos."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .uses import ConceptUse

CLIPS = ("l", "h", "g")  # in the order in which the host joins their encodings
NAMES = (*CLIPS, "qwen3_06b", "t5xxl", "umt5xxl", "qwen25_7b", "qwen3_4b", "qwen3_8b", "gemma2_2b")
_MASKED = ("t5xxl", "umt5xxl")  # those that mask padding, but for T5 beside CLIP
_MANY_WEIGHTS = 8  # of one text model, as with LoRAs of several strengths, whose digests are kept
_digests: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # {text model: {(its patches, layer): digest}}


def encoders_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """{name: encoder} of a text model of the host's."""
    found = {name: getattr(model, attribute(model, name), None) for name in NAMES}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def attribute(owner, name: str) -> str:
    """What the host's tokenizers and text models call the part with this name among tokens."""
    return f"clip_{name}" if hasattr(owner, f"clip_{name}") else name


def unpadded(tokenizer, name: str, tokens: list) -> list:
    """Tokens of one section by a tokenizer of the host's, without T5's padding, which its words do not see."""
    if name not in _MASKED or hasattr(tokenizer, "clip_l"):
        return tokens
    end = getattr(tokenizer, attribute(tokenizer, name)).end_token
    return tokens[: next(place for place, token in enumerate(tokens) if isinstance(token, int) and token == end) + 1]


def end_of_words(tokenizer, name: str, tokens: list) -> int:
    """Where the padding begins, whatever its tokens, in tokens of one section by a tokenizer of the host's."""
    pad = getattr(tokenizer, attribute(tokenizer, name)).pad_token
    words = [place for place, token in enumerate(tokens) if not isinstance(token, int) or token != pad]
    return words[-1] + 1 if words else 0


def clip_skip(encoder: torch.nn.Module, layer_idx: int | None) -> int:
    """Where from the end an encoder stops, 1 at its last layer. layer_idx: as a CLIP sets it; None: nothing is set."""
    if layer_idx is None:
        layer, layer_idx, *_ = encoder.options_default
        layer_idx = layer_idx if layer == "hidden" else -1
    return -layer_idx if abs(layer_idx) <= encoder.num_layers else 1


def current_clip_skip(encoder: torch.nn.Module) -> int:
    return clip_skip(encoder, encoder.layer_idx if encoder.layer == "hidden" else -1)


def weights_digest(model: torch.nn.Module, skip: int):
    """A hash, to go on with, of the encoders' weights as they are and of how many layers are skipped.

    It is made once, in some 2 seconds for SDXL, while the weights stay. None where a node pack's have no bytes to read.
    """
    kept = _digests.setdefault(model, {})
    place = getattr(model, "current_weight_patches_uuid", None), skip
    if place not in kept:
        if len(kept) == _MANY_WEIGHTS:
            kept.pop(next(iter(kept)))
        try:
            kept[place] = _digest(model, skip)
        except (RuntimeError, TypeError) as error:
            logging.debug("Perfusion: these text encoder weights cannot be compared: %s", error)
            kept[place] = None
    return kept[place] and kept[place].copy()


def _digest(model: torch.nn.Module, skip: int):
    encoders = encoders_of(model)
    own = clip_skip(next(iter(encoders.values())), None)
    digest = hashlib.blake2b(str(None if skip == own else -skip).encode(), digest_size=8)
    for name, encoder in encoders.items():
        if isinstance(encoder.layer, list):  # whose outputs are put together, where others of these weights have one
            digest.update(str(encoder.layer).encode())
        # of CLIP without the projection of the pooled output, which encodings do not see and the host may leave unset
        weights = getattr(encoder.transformer, "text_model", encoder.transformer).state_dict()
        for key, tensor in sorted(weights.items()):
            digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            add(digest, tensor)
    return digest


def add(digest, tensor: Tensor) -> None:
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def differences(use: ConceptUse, model: torch.nn.Module) -> dict[str, Any]:
    """What is not as it was in the concept's training while ``model`` encodes, of "clip_skip", as (in training, here),
    and "text_encoder", its weights."""
    metadata, found = use.concept.metadata, {}
    first = next(iter(encoders_of(model).values()))
    here = current_clip_skip(first)
    trained = _number(metadata) or clip_skip(first, None)
    if trained != here:
        found["clip_skip"] = trained, here
    digest = weights_digest(model, trained) if "text_encoder" in metadata else None
    if digest and digest.hexdigest() != metadata["text_encoder"]:
        found["text_encoder"] = True
    return found


def in_words(trigger: str, found: Mapping[str, Any]) -> str:
    """What differs, and what to do."""
    words = []
    if "clip_skip" in found:
        trained, here = found["clip_skip"]
        words.append(f"with clip skip {trained}, this is {here} (set CLIP Set Last Layer to {-trained})")
    if "text_encoder" in found:
        words.append("with another text encoder (another checkpoint's, or without this LoRA)")
    return f"{trigger} was trained {' and '.join(words)}: it will look less like its photos."


def _number(metadata: Mapping[str, str]) -> int | None:
    text = metadata.get("clip_skip", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None
