"""Concept files: safetensors, one concept each, written atomically and checked before use.

Tensors are named as in ``Concept.tensors``; everything else is metadata. Value deltas and key outputs are kept in
fp16 (bf16 where a number is beyond fp16's range), all other vectors in fp32.
"""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .concept import Concept

FORMAT = "perfusion-concept"
FORMAT_VERSION = 1
MAX_BYTES = 16 * 2**20  # far above any concept; a file this large is something else
_PER_LAYER = ("value_delta", "key_output")
_OWN_METADATA = ("format", "format_version", "name", "trigger", "superclass", "base_model")


class ConceptFileError(ValueError):
    """A concept file that cannot be used; the message says why and what to do."""


def load_concept(path: str | os.PathLike[str]) -> Concept:
    """Reads and checks a concept file. Raises ConceptFileError for anything unusable."""
    path = Path(path)
    tensors, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        kind = "a LoRA" if any("lora" in name for name in tensors) else "another kind of safetensors file"
        raise ConceptFileError(f"{path.name} is {kind}, not a Perfusion concept. Load it with the node made for it.")
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ConceptFileError(
            f"{path.name} is written in format version {version or '(none)'}; this version of ComfyUI-Perfusion "
            f"reads up to {FORMAT_VERSION}. Update ComfyUI-Perfusion."
        )
    concept = _assemble(path, tensors, metadata)
    if problem := concept.problem():
        raise ConceptFileError(f"{path.name} cannot be used: {problem}. Train the concept again or get the file anew.")
    return concept


def save_concept(concept: Concept, path: str | os.PathLike[str]) -> None:
    """Writes ``concept`` to ``path``: the whole file or nothing. A file that was there stays until then.

    Raises ConceptFileError for a concept that could not be loaded again, OSError when the disk refuses.
    """
    path = Path(path)
    if problem := concept.problem():
        raise ConceptFileError(f"{concept.name} is not saved: {problem}.")
    tensors = {name: _stored(name, tensor.detach().cpu()) for name, tensor in concept.tensors().items()}
    metadata = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{concept.base_model}/perfusion",
        **concept.metadata,
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "name": concept.name,
        "trigger": concept.trigger,
        "superclass": concept.superclass,
        "base_model": concept.base_model,
        "modelspec.title": concept.name,
        "modelspec.trigger_phrase": concept.trigger,
    }
    write_atomically(path, lambda part: save_file(tensors, part, metadata))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls ``write`` with a temporary path beside ``path`` and moves the result over it once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem[:80]}-{secrets.token_hex(4)}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConceptFileError(f"{path.name} cannot be read: {error.strerror}. Choose a concept file.") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if size > MAX_BYTES and metadata.get("format") == FORMAT:
                raise ConceptFileError(
                    f"{path.name} has {size / 2**20:.0f} MiB, which no concept needs. Get the file anew."
                )
            if size > MAX_BYTES:  # some other model: its names tell which, its tensors need not be read
                return dict.fromkeys(names, torch.empty(0)), metadata
            return {name: file.get_tensor(name) for name in names}, metadata
    except (SafetensorError, OSError) as error:
        raise ConceptFileError(
            f"{path.name} is not a safetensors file or is damaged ({error}). Copy or download it again."
        ) from error


def _assemble(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Concept:
    groups: dict[str, dict[str, Tensor]] = {"token_embedding": {}, "value_delta": {}, "key_output": {}}
    vectors: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        group, _, member = name.partition(".")
        if member and group in groups:
            groups[group][member] = tensor.float() if tensor.is_floating_point() else tensor
        else:
            vectors[name] = tensor.float() if tensor.is_floating_point() else tensor
    missing = {"target_input", "target_dual", "superclass_input"} - vectors.keys()
    missing |= {key for key in _OWN_METADATA if key not in metadata}
    if missing:
        raise ConceptFileError(f"{path.name} lacks {', '.join(sorted(missing))}. Get the file anew.")
    return Concept(
        name=metadata["name"],
        trigger=metadata["trigger"],
        superclass=metadata["superclass"],
        base_model=metadata["base_model"],
        token_embeddings=groups["token_embedding"],
        target_input=vectors["target_input"],
        target_dual=vectors["target_dual"],
        superclass_input=vectors["superclass_input"],
        value_deltas=groups["value_delta"],
        key_outputs=groups["key_output"] or None,
        metadata={key: value for key, value in metadata.items() if key not in _OWN_METADATA},
    )


def _stored(name: str, tensor: Tensor) -> Tensor:
    if name.partition(".")[0] not in _PER_LAYER:
        return tensor.float().contiguous()
    beyond_half = tensor.abs().max() > torch.finfo(torch.float16).max
    return tensor.to(torch.bfloat16 if beyond_half else torch.float16).contiguous()
