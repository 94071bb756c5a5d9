"""Reading and changing the metadata of a concept file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from perfusion_core import Concept, ConceptFileError, load_concept, load_training, save_concept, save_training
from perfusion_core.concept import trigger_problem
from perfusion_core.concept_file import edit_metadata, read_metadata, recommended_settings
from perfusion_core.training_file import digest

from .makers import FIRST, file_concept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "teddy.safetensors"
    save_concept(file_concept(metadata={"notes": "old", "steps": "400"}), path)
    return path


def tensors(path: Path) -> tuple[dict, bytes]:
    """What the file says of its tensors, and their bytes."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    del header["__metadata__"]
    return header, content[end:]


def test_all_metadata_is_read_and_no_tensor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with safe_open(path, framework="pt") as file:
        expected = file.metadata()
    monkeypatch.setattr("perfusion_core.concept_file._in_memory", lambda _: pytest.fail("a tensor was read"))
    assert read_metadata(path) == expected
    assert (expected["trigger"], expected["notes"]) == ("<concept0>", "old")


@pytest.mark.parametrize("metadata", [None, {"format": "perfusion-concept", "format_version": "3"}])
def test_metadata_of_other_files_are_refused(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"lora_up": torch.ones(1)}, path, metadata)
    with pytest.raises(ConceptFileError, match=r"teddy\.safetensors is"):
        read_metadata(path)
    with pytest.raises(ConceptFileError, match=r"teddy\.safetensors is"):
        edit_metadata(path, {"notes": "new"})


def test_what_is_edited_changes_and_nothing_else(path: Path) -> None:
    before, kept = read_metadata(path), tensors(path)
    changed = edit_metadata(path, {"name": "Bär 🧸", "trigger": "<bear>", "notes": "brown,\nsoft", "thumbnail": "UklG"})
    assert (changed.name, changed.trigger, changed.metadata["notes"]) == ("Bär 🧸", "<bear>", "brown,\nsoft")
    assert tensors(path) == kept
    changes = {"name": "Bär 🧸", "trigger": "<bear>", "notes": "brown,\nsoft", "thumbnail": "UklG"}
    changes |= {"modelspec.title": "Bär 🧸", "modelspec.trigger_phrase": "<bear>"}
    assert read_metadata(path) == before | changes
    assert load_concept(path).metadata == changed.metadata


def test_a_trigger_that_cannot_be_used_can_be_exchanged(path: Path) -> None:
    concept = load_concept(path)
    save_file(concept.tensors(), path, {**read_metadata(path), "trigger": "<my-\u200bteddy>"})
    with pytest.raises(ConceptFileError, match="invisible"):
        load_concept(path)
    with pytest.raises(ConceptFileError, match="invisible"):
        edit_metadata(path, {"notes": "new"})
    assert edit_metadata(path, {"trigger": "<my-teddy>"}).trigger == load_concept(path).trigger == "<my-teddy>"


def test_words_are_in_one_form_of_unicode_whatever_the_file_has(path: Path) -> None:
    edit_metadata(path, {"name": "Ba\u0308r", "trigger": "<ba\u0308r>"})
    assert (load_concept(path).name, load_concept(path).trigger) == ("B\u00e4r", "<b\u00e4r>")
    assert load_concept(path).replace(superclass="\u1100\u1169\u11b7").superclass == "\uacf0"


def test_tensors_that_we_would_store_otherwise_keep_their_bits(path: Path) -> None:
    """Files of others: bf16 where fp16 would do, fp32 where we keep less, tensors in another order."""
    concept = file_concept()
    others = {name: tensor.bfloat16() for name, tensor in sorted(concept.tensors().items(), reverse=True)}
    others[f"value_delta.{FIRST}"] = torch.full((6,), 1e-20)
    save_file(others, path, read_metadata(path))
    kept = tensors(path)
    edit_metadata(path, {"notes": "new"})
    assert tensors(path) == kept


def test_an_edit_to_the_same_gives_the_same_file(path: Path) -> None:
    before = path.read_bytes()
    edit_metadata(path, {"notes": "old"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("changes", [{"trigger": "two words"}, {"trigger": ""}, {"superclass": " "}])
def test_an_edit_that_would_break_the_concept_is_refused(path: Path, changes: dict[str, str]) -> None:
    before = path.read_bytes()
    with pytest.raises(ConceptFileError, match=r"teddy\.safetensors is not changed"):
        edit_metadata(path, changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize("fails", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails: BaseException
) -> None:
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise fails

    monkeypatch.setattr("perfusion_core.concept_file.os.fsync", fail)
    with pytest.raises(type(fails)):
        edit_metadata(path, {"notes": "new"})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_edits_do_not_part_a_concept_from_its_training(path: Path) -> None:
    state = path.with_name("state.safetensors")
    save_training({"step": torch.ones(1)}, load_concept(path), state)
    edited = edit_metadata(path, {"name": "bear", "trigger": "<bear>", "notes": "new", "thumbnail": "UklG"})
    assert load_training(state, edited).keys() == {"step"}


@pytest.mark.parametrize("change", [{"superclass": "cup"}, {"target_input": torch.ones(12)}])
def test_another_concept_has_another_digest(path: Path, change: dict) -> None:
    concept = load_concept(path)
    assert digest(concept.replace(**change)) != digest(concept)


def test_the_superclass_stands_where_its_gate_opens() -> None:
    concept: Concept = file_concept()
    similarity = concept.superclass_input.double() @ concept.target_dual.double()
    energy = concept.target_input.double() @ concept.target_dual.double()
    assert concept.superclass_similarity == pytest.approx((similarity / energy).item(), abs=1e-12)
    assert concept.replace(superclass_input=concept.target_input).superclass_similarity == 1.0


@pytest.mark.parametrize(
    ("recommended", "used"),
    [
        (("0.6", "0.15", "1"), {"beta": 0.6, "temperature": 0.15, "key_lock": 1.0}),
        (("0", "1", "0"), {"beta": 0.0, "temperature": 1.0, "key_lock": 0.0}),
        (("1.01", "0.15", "0"), None),
        (("-0.01", "0.15", "0"), None),
        (("0.6", "0", "0"), None),
        (("0.6", "nan", "0"), None),
        (("0.6", "0.15", "much"), None),
        (("0.6", "0.15"), None),
    ],
)
def test_recommended_settings_are_all_sound_or_none(
    recommended: tuple[str, ...], used: dict[str, float] | None
) -> None:
    names = ("recommended_beta", "recommended_temperature", "recommended_key_lock")
    assert recommended_settings(dict(zip(names, recommended, strict=False))) == used


def test_half_a_character_is_no_trigger() -> None:
    """As a page may send it, and no file can hold it."""
    assert "U+D800" in (trigger_problem("<my\ud800toy>") or "")
