"""Nothing that was loaded keeps its file open or mapped: on Windows it could not be overwritten or deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from perfusion_core import Covariance, load_concept, load_training, save_concept, save_training
from perfusion_core.concept_file import edit_metadata, read_metadata
from perfusion_core.exchange import load_covariance

from .makers import file_concept

MAPS = Path("/proc/self/maps")
CONCEPT = file_concept()
MATRIX = torch.eye(4096, dtype=torch.float64)[:64, :64].contiguous()


def covariance(path: Path) -> Covariance:
    made = Covariance(64)
    made.update(torch.randn(200, 64))
    made.save(path)
    return Covariance.load(path)


def training(path: Path) -> Any:
    save_training({"values": torch.ones(4096)}, CONCEPT, path)
    return load_training(path, CONCEPT)


def concept(path: Path) -> Any:
    save_concept(CONCEPT, path)
    return load_concept(path), read_metadata(path), edit_metadata(path, {"notes": "brown"}), load_concept(path)


def foreign(path: Path) -> Any:
    save_file({"covariance": MATRIX}, path)
    return load_covariance(path)


def refused(path: Path) -> Any:
    save_file({"lora": torch.ones(4096)}, path)
    with pytest.raises(ValueError) as caught:
        load_concept(path)
    return str(caught.value)


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
@pytest.mark.parametrize("load", [concept, training, covariance, foreign, refused])
def test_a_loaded_file_is_not_mapped(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    held = load(tmp_path / "held-file.safetensors")
    assert "held-file" not in MAPS.read_text(), held
