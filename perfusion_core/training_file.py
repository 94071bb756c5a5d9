"""Training files: what a saved concept needs besides itself to be trained on exactly (``Training.state_dict``)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .concept import Concept
from .concept_file import check_header, safetensors_bytes, stored_tensors, write_atomically

FORMAT = "perfusion-training"
FORMAT_VERSION = "1"
MAX_BYTES = 256 * 2**20  # far above any; a file this large is something else


def save_training(state: Mapping[str, Tensor], concept: Concept, path: str | os.PathLike[str]) -> None:
    """Writes ``state``, which belongs to ``concept``, atomically. Raises OSError when the disk refuses."""
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "concept": digest(concept)}
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_atomically(Path(path), safetensors_bytes(tensors, metadata))


def load_training(path: str | os.PathLike[str], concept: Concept) -> dict[str, Tensor]:
    """Reads what ``save_training`` wrote for this very concept. Raises ValueError for anything else."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size / 2**20:.0f} MiB")
        check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # cloned, or the file stays mapped; keys(), for it is no mapping
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # damaged headers make the library raise nearly anything
        raise ValueError(f"{path.name} is not a training file or is damaged ({error}).") from error
    if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{path.name} is not a training file of this version of ComfyUI-Perfusion.")
    if metadata.get("concept") != digest(concept):
        raise ValueError(f"{path.name} belongs to another concept than {concept.name!r} or to another moment of it.")
    return state


def digest(concept: Concept) -> str:
    """32 hexadecimal digits, the same for a concept in training and for what was saved of it under whatever name.

    They do not depend on what can be edited in a file, the trigger included.
    """
    found = hashlib.blake2b(concept.superclass.encode(), digest_size=16)
    for name, tensor in sorted(stored_tensors(concept).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
