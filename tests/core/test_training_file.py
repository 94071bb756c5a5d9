"""Training files belong to one concept, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perfusion_core import load_training, save_concept, save_training

from .makers import FIRST, file_concept


def test_a_training_file_brings_its_state_back(tmp_path: Path) -> None:
    state = {"step": torch.tensor([3.0]), "turned": torch.arange(6.0).reshape(2, 3).T}
    save_training(state, file_concept(), tmp_path / "state.safetensors")
    loaded = load_training(tmp_path / "state.safetensors", file_concept())
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_the_state_of_another_concept_is_refused(tmp_path: Path) -> None:
    path, concept = tmp_path / "state.safetensors", file_concept()
    save_training({"step": torch.ones(1)}, concept, path)
    load_training(path, concept.replace(name="other", trigger="<other>"))  # both can be edited
    deltas = {**concept.value_deltas, FIRST: 2 * concept.value_deltas[FIRST]}
    for other in (concept.replace(superclass="cat"), concept.replace(value_deltas=deltas)):
        with pytest.raises(ValueError, match=r"state\.safetensors belongs to another concept"):
            load_training(path, other)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_concept(file_concept(), path)
    with pytest.raises(ValueError, match=r"state\.safetensors is not a training file of this version"):
        load_training(path, file_concept())
    with path.open("wb") as file:
        file.truncate(257 * 2**20)  # sparse
    with pytest.raises(ValueError, match=r"state\.safetensors is not a training file .*\(257 MiB\)"):
        load_training(path, file_concept())
