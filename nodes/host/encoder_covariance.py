"""The covariance of a text encoder's encodings, made once and kept in the models folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import comfy.model_management
import torch

from ...perfusion_core import Covariance
from ...perfusion_core.captions import captions as built_in_captions
from .files import covariance_path
from .progress import Progress
from .text import encode_rows, encoders, prepare_encoders

CAPTIONS = 10_000  # built-in captions when the user gives no number
_BATCH = 32


def cached_covariance(clip, count: int, node_id: str | None) -> Covariance:
    """C over ``count`` built-in captions for exactly this CLIP: read from the models folder, or made and kept there."""
    _load(clip)
    path = covariance_path(f"{fingerprint(clip)}-{count}")
    if path.is_file():
        try:
            return Covariance.load(path)
        except ValueError as error:
            logging.warning("Perfusion: %s It is made anew now.", error)
    covariance = measure_covariance(clip, list(built_in_captions(count)), node_id)
    try:
        covariance.save(path)
    except OSError as error:  # works without, only slower the next time
        logging.warning("Perfusion: the covariance could not be kept: %s", error)
    return covariance


def measure_covariance(clip, captions: Sequence[str], node_id: str | None) -> Covariance:
    """C over these captions, all token positions. Raises ValueError when there are none, and the host's cancel."""
    if not captions:
        raise ValueError("There are no captions. Write one per line, or leave the field empty for the built-in ones.")
    _load(clip)
    prepare_encoders(clip)
    progress = Progress(len(captions), node_id)
    covariance = None
    for start in range(0, len(captions), _BATCH):
        tokenized = [clip.tokenize(caption) for caption in captions[start : start + _BATCH]]
        rows = {
            name: [[token[0] for token in prompt[name][0]] for prompt in tokenized] for name in encoders(clip)
        }  # only the first 77 tokens of a long caption
        with torch.no_grad():
            encodings, _ = encode_rows(clip, rows)
        if covariance is None:
            covariance = Covariance(encodings.shape[-1])
        covariance.update(encodings)
        progress.update(min(start + _BATCH, len(captions)), "Measuring the text encoder's covariance")
    return covariance


def fingerprint(clip) -> str:
    """A hash of the loaded text encoders' weights and clip skip: equal for equal encodings."""
    digest = hashlib.blake2b(str(clip.layer_idx).encode(), digest_size=8)
    for name, encoder in encoders(clip).items():
        # without the projection of the pooled output, which encodings do not see and the host may leave unset
        for key, tensor in sorted(encoder.transformer.text_model.state_dict().items()):
            digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _load(clip) -> None:
    comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)
