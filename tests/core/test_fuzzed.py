"""Files that were made to be bad: headers as large as bombs, and what fuzzing found (tests/fuzz/fuzz.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import core_files

from perfusion_core import Covariance, load_concept, load_training
from perfusion_core.concept_file import read_metadata
from perfusion_core.exchange import load_covariance

from .makers import file_concept

CORPUS = Path(core_files.__file__).parent / "corpus"
READERS: list[Callable[[Path], Any]] = [
    load_concept,
    read_metadata,
    Covariance.load,
    load_covariance,
    lambda path: load_training(path, file_concept()),
]
BOMBS = {
    "a long text": {"__metadata__": {"format": "perfusion-concept", "notes": "x" * 5 * 2**20}},
    "many texts": {"__metadata__": {"format": "perfusion-concept", **dict.fromkeys(map(str, range(400_000)), "")}},
    "many tensors": {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(80_000)},
}


@pytest.fixture(scope="module", params=BOMBS)
def bomb(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bomb") / "toy.safetensors"
    header = json.dumps(BOMBS[request.param]).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


@pytest.mark.parametrize("reader", READERS, ids=range(len(READERS)))
def test_a_huge_header_is_not_read(bomb: Path, reader: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes 100 MB, of which millions of names take minutes."""
    for module in ("concept_file", "covariance", "training_file"):
        monkeypatch.setattr(f"perfusion_core.{module}.safe_open", lambda *_, **__: pytest.fail("it was read"))
    monkeypatch.setattr("perfusion_core.exchange.load_file", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"toy\.safetensors"):
        reader(bomb)


@pytest.mark.parametrize("target", [core_files.concept, core_files.exchange])
def test_what_fuzzing_found_is_read_or_refused(target: Callable[[bytes], None]) -> None:
    inputs = sorted((CORPUS / target.__name__).iterdir())
    assert inputs
    for path in inputs:
        target(path.read_bytes())
