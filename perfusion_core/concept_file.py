"""Concept files: safetensors, one concept each, written atomically and checked before use.

Tensors are named as in ``Concept.tensors``; everything else is metadata. Value deltas and key outputs are kept in
fp16 (bf16 where a number is beyond fp16's range), all other vectors in fp32.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .concept import Concept

FORMAT = "perfusion-concept"
_LOCKED, _FREER = FORMAT_VERSIONS = ("1", "2")  # 2 has a key freedom, which readers of 1 would not see
MAX_BYTES = 16 * 2**20  # far above any concept; a file this large is something else
_MAX_HEADER = 4 * 2**20  # bytes; LoRAs have up to one million, and millions of names take minutes to read
_PER_LAYER = ("value_delta", "key_output")
_VECTORS = ("target_input", "target_dual", "superclass_input")
_OWN_METADATA = ("format", "format_version", "name", "trigger", "superclass", "base_model")
_KEY_FREEDOM = "key_freedom"  # in version 2
_PART = r"\..*-[0-9a-f]{8}\.part"
_A_DAY = 24 * 60 * 60  # seconds


class ConceptFileError(ValueError):
    """A concept file that cannot be used; the message says why and what to do."""


def load_concept(path: str | os.PathLike[str]) -> Concept:
    """Reads and checks a concept file. Raises ConceptFileError for anything unusable."""
    path = Path(path)
    concept = _assemble(path.name, *_read(path))
    if problem := concept.problem():
        raise ConceptFileError(f"{path.name} cannot be used: {problem}. Train the concept again or get the file anew.")
    return concept


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """All metadata of a concept file; its tensors are not read. Raises ConceptFileError for what is no such file."""
    return _read(Path(path), with_tensors=False)[1]


def edit_metadata(path: str | os.PathLike[str], changes: Mapping[str, str]) -> Concept:
    """Changes metadata of a concept file, name and trigger among them; its tensors keep every bit. Returns the result.

    Written as ``save_concept`` does. Raises ConceptFileError for an unusable file or result, OSError for the disk.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    metadata |= changes
    metadata |= _common_keys(metadata)
    changed = _assemble(path.name, tensors, metadata)
    if problem := changed.problem():
        raise ConceptFileError(f"{path.name} is not changed: {problem}.")
    write_atomically(path, _with_metadata(path.read_bytes(), metadata))
    return changed


def recommended_settings(metadata: Mapping[str, str]) -> dict[str, float] | None:
    """The beta, temperature and key_lock that a file recommends; None when it does not, or something out of range."""
    try:
        found = {name: float(metadata[f"recommended_{name}"]) for name in ("beta", "temperature", "key_lock")}
    except (KeyError, ValueError):
        return None
    sound = found["temperature"] > 0 and all(0 <= value <= 1 for value in found.values())
    return found if sound else None


def save_concept(concept: Concept, path: str | os.PathLike[str]) -> None:
    """Writes ``concept`` to ``path``: the whole file or nothing. A file that was there stays until then.

    Raises ConceptFileError for a concept that could not be loaded again, OSError when the disk refuses.
    """
    if problem := concept.problem():
        raise ConceptFileError(f"{concept.name} is not saved: {problem}.")
    tensors = stored_tensors(concept)
    own = {
        "format": FORMAT,
        "format_version": _FREER if concept.key_freedom else _LOCKED,
        "name": concept.name,
        "trigger": concept.trigger,
        "superclass": concept.superclass,
        "base_model": concept.base_model,
        **({_KEY_FREEDOM: str(concept.key_freedom)} if concept.key_freedom else {}),
    }
    if problem := _assemble(concept.name, tensors, own).problem():  # the file's numbers reach less far
        raise ConceptFileError(f"{concept.name} is not saved: {problem}.")
    metadata = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{concept.base_model}/perfusion",
        **concept.metadata,
        **own,
        **_common_keys(own),
    }
    write_atomically(Path(path), safetensors_bytes(tensors, metadata))


def stored_tensors(concept: Concept) -> dict[str, Tensor]:
    """The concept's tensors as its file holds them, with memory of their own."""
    return {name: _stored(name, tensor) for name, tensor in concept.tensors().items()}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file in which equal contents give equal bytes; the library orders metadata at random."""
    return _with_metadata(save(dict(tensors), dict(metadata)), metadata)


def check_header(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a safetensors file whose header is larger than any of ours or of those like ours."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header would have {length / 2**20:.0f} MiB")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside ``path`` and moves the result over it once it is on the disk. Raises OSError."""
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Writes beside each path and moves the results over them once all are on the disk. Raises OSError."""
    parts = {path: path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}.part") for path in files}
    try:
        for path, part in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Deletes the day-old files in and below ``folder`` that ``write_together`` left when its process was killed."""
    for parent, _, names in os.walk(folder):
        for part in (Path(parent, name) for name in names if re.fullmatch(_PART, name)):
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours to delete
                if time.time() - part.stat().st_mtime > _A_DAY:
                    part.unlink()


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The safetensors file ``content`` with this metadata in order, and the tensors as they are."""
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[data:]


def _common_keys(own: Mapping[str, str]) -> dict[str, str]:
    """Name and trigger once more, where other tools look for them."""
    return {"modelspec.title": own["name"], "modelspec.trigger_phrase": own["trigger"]}


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # ValueError: a null byte in the name
        size = None
    if size is None:
        raise ConceptFileError(f"{path.name!r} is not a file. Choose a concept file.")
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            wanted = names if with_tensors and size <= MAX_BYTES and metadata.get("format") == FORMAT else ()
            tensors = {name: _in_memory(file.get_tensor(name)) for name in wanted}
    except Exception as error:  # damaged headers make the library raise nearly anything
        raise ConceptFileError(
            f"{path.name} is not a safetensors file or is damaged ({error}). Copy or download it again."
        ) from error
    if metadata.get("format") != FORMAT:
        if set(_VECTORS) <= set(names):
            raise ConceptFileError(
                f"{path.name} holds a Perfusion concept, but not its trigger and what else belongs to it: another "
                "program saved it anew. Take the file as ComfyUI-Perfusion saved it, or train the concept again."
            )
        kind = "a LoRA" if any("lora" in name for name in names) else "another kind of safetensors file"
        raise ConceptFileError(f"{path.name} is {kind}, not a Perfusion concept. Load it with the node made for it.")
    if size > MAX_BYTES:
        raise ConceptFileError(f"{path.name} has {size / 2**20:.0f} MiB, which no concept needs. Get the file anew.")
    version = metadata.get("format_version", "")
    if version not in FORMAT_VERSIONS:
        raise ConceptFileError(
            f"{path.name} is written in format version {version[:20] or '(none)'}; this version of ComfyUI-Perfusion "
            f"reads versions {' and '.join(FORMAT_VERSIONS)}. Update ComfyUI-Perfusion."
        )
    return tensors, metadata


def _assemble(file_name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Concept:
    groups: dict[str, dict[str, Tensor]] = {"token_embedding": {}, "value_delta": {}, "key_output": {}}
    vectors: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        group, _, member = name.partition(".")
        if member and group in groups:
            groups[group][member] = tensor
        else:
            vectors[name] = tensor
    missing = set(_VECTORS) - vectors.keys() | set(_OWN_METADATA) - metadata.keys()
    if missing:
        raise ConceptFileError(f"{file_name} lacks {', '.join(sorted(missing))}. Get the file anew.")
    if unknown := vectors.keys() - set(_VECTORS):
        raise ConceptFileError(f"{file_name} holds {min(unknown)!r}, which no concept has. Get the file anew.")
    try:
        key_freedom = float(metadata[_KEY_FREEDOM]) if metadata["format_version"] == _FREER else 0.0
    except (KeyError, ValueError):
        raise ConceptFileError(f"{file_name} does not say its key freedom. Get the file anew.") from None
    return Concept(
        name=metadata["name"],
        trigger=metadata["trigger"],
        superclass=metadata["superclass"],
        base_model=metadata["base_model"],
        token_embeddings=groups["token_embedding"],
        value_deltas=groups["value_delta"],
        key_outputs=groups["key_output"] or None,
        key_freedom=key_freedom,
        metadata={key: value for key, value in metadata.items() if key not in (*_OWN_METADATA, _KEY_FREEDOM)},
        **vectors,
    )


def _in_memory(tensor: Tensor) -> Tensor:
    """A copy, in fp32 if it holds floating point numbers: an open file, mapped, cannot be overwritten on Windows."""
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _stored(name: str, tensor: Tensor) -> Tensor:
    """As it is kept in a file, with memory of its own."""
    dtype = torch.float32
    if name.partition(".")[0] in _PER_LAYER:
        beyond_half = tensor.abs().max() > torch.finfo(torch.float16).max
        dtype = torch.bfloat16 if beyond_half else torch.float16
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
