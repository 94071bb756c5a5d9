"""Files of the core: ours, and those of other programs. Each function takes a file's bytes; an error that is not one of
ours is a fault."""

from __future__ import annotations

import contextlib
import io
import resource
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perfusion_core import Concept, Covariance, load_concept, load_training, save_concept
from perfusion_core.concept_file import edit_metadata, read_metadata, recommended_settings
from perfusion_core.exchange import load_covariance, load_perfusion_pytorch

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # for files that are read once
_SPARE = 64 * 2**20  # bytes that any file may take
_TIMES = 16  # and how many times its size


def concept(content: bytes) -> None:
    """What can be loaded can be edited, saved, and loaded again as the same."""
    with _file(content, ".safetensors") as path:
        if (metadata := _refused_or(read_metadata, path)) is not None:
            recommended_settings(metadata)
        if (loaded := _refused_or(load_concept, path)) is not None:
            _refused_or(load_training, path, loaded)
            edited = edit_metadata(path, {"notes": "seen", "trigger": "<seen>"})
            assert load_concept(path).metadata["notes"] == "seen"
            assert _numbers(edited) == _numbers(loaded)
            save_concept(loaded, path)
            assert _numbers(load_concept(path)).keys() == _numbers(loaded).keys()
        if (covariance := _refused_or(Covariance.load, path)) is not None:
            _refused_or(covariance.inverse)


def exchange(content: bytes) -> None:
    """The first byte says what the rest is: a .npy, a .safetensors, a .pt file, or the pickle in a .pt file."""
    kind, rest = content[:1], content[1:]
    if kind not in b"NSTP" or not kind:
        return
    ending = {b"N": ".npy", b"S": ".safetensors"}.get(kind, ".pt")
    with _file(torch_file(rest) if kind == b"P" else rest, ending) as path:
        for inverse in (False, True):
            if (covariance := _refused_or(load_covariance, path, inverse)) is not None:
                _refused_or(covariance.inverse)
        for concept in _refused_or(load_perfusion_pytorch, path, {"a.attn2": 6}, [("<x>", "cat")]) or ():
            assert concept.problem() is None


def torch_file(pickle: bytes) -> bytes:
    """A .pt file with this pickle, and eight storages of 256 bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("toy/data.pkl", pickle)
        archive.writestr("toy/byteorder", "little")
        for number in range(8):
            archive.writestr(f"toy/data/{number}", bytes([0, 0, 128, 63]) * 64)  # 1.0
        archive.writestr("toy/version", "3\n")
    return content.getvalue()


@contextlib.contextmanager
def _file(content: bytes, ending: str) -> Iterator[Path]:
    """A file of it, whose reading takes no more memory than its size allows."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, f"toy{ending}")
        path.write_bytes(content)
        before = _peak()
        yield path
        assert _peak() - before < _SPARE + _TIMES * len(content), "more memory than the file's size allows"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refused_or(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except ValueError as error:  # ConceptFileError is one
        assert str(error), "a refusal that says nothing"
        return None


def _numbers(concept: Concept) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in concept.tensors().items()}
