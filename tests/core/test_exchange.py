"""Other programs' files: what they mean, and what is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from perfusion_core import ConceptSet, Covariance, load_concept, save_concept
from perfusion_core.exchange import load_covariance, load_perfusion_pytorch, rank_one_update

from . import reference
from .makers import LAYERS as CASE_LAYERS
from .makers import make_case, make_covariance, weight

LAYERS = {
    "input_blocks.1.1.attn2": 6,
    "middle_block.1.attn2": 5,
    "output_blocks.2.1.attn2": 7,
    "output_blocks.3.attn2": 6,
}
DIM, D_ENCODER = 12, 9
WORDS = [("<my-toy>", "teddy")]


def saved(count: int = 1, middle_last: bool = False) -> dict[str, Any]:
    """What perfusion-pytorch's save() writes for ``count`` concepts on a model of ``LAYERS``."""
    random = torch.Generator().manual_seed(0)
    covariance = make_covariance(DIM, random)
    targets = torch.randn(count, DIM, generator=random)
    widths = [LAYERS[layer] for layer in sorted(LAYERS, key=lambda layer: middle_last and "middle" in layer)]
    return {
        "embed_params": torch.randn(count, D_ENCODER, generator=random),
        "key_value_params": [
            [targets.clone(), torch.randn(count, width, generator=random)] for width in widths for _ in range(2)
        ],
        "C_inv": torch.linalg.inv(covariance).float(),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy.pt"


def write(held: Any, path: Path) -> Path:
    torch.save(held, path)
    return path


# Concepts of perfusion-pytorch


@pytest.mark.parametrize("middle_last", [False, True], ids=["as in ComfyUI", "as in diffusers"])
def test_an_imported_concept_gives_the_keys_and_values_it_gave_there(path: Path, middle_last: bool) -> None:
    held = saved(middle_last=middle_last)
    (concept,) = load_perfusion_pytorch(write(held, path), LAYERS, WORDS)
    assert (concept.name, concept.trigger, concept.superclass) == ("toy", "<my-toy>", "teddy")
    assert torch.equal(concept.token_embeddings["l"], held["embed_params"][0])
    concepts = ConceptSet([concept], 0.7, 0.15)
    random = torch.Generator().manual_seed(1)
    encoding = torch.randn(1, 4, DIM, generator=random)
    encoding[0, 1] += 2 * concept.target_input
    covariance = torch.linalg.inv(held["C_inv"].double())
    gates = concepts.gates(encoding)
    order = sorted(LAYERS, key=lambda layer: middle_last and "middle" in layer)
    for number, layer in enumerate(order):
        for is_value in (False, True):
            target, output = (tensor[0].double() for tensor in held["key_value_params"][2 * number + is_value])
            w = torch.randn(LAYERS[layer], DIM, generator=random, dtype=torch.float64)
            there = [reference.one_concept(w, e, covariance, target, output, 0.7, 0.15) for e in encoding[0].double()]
            here = concepts.edit_input(encoding, keys=not is_value) @ w.T.float()
            here = (concepts.edit_value if is_value else concepts.edit_key)(here, gates, layer)
            torch.testing.assert_close(here[0].double(), torch.stack(there), rtol=1e-4, atol=1e-4)


def test_each_concept_of_a_merged_file_gets_its_words(path: Path, tmp_path: Path) -> None:
    held = saved(count=2)
    words = [("<my-toy>", "teddy"), ("<my-cup>", "cup")]
    concepts = load_perfusion_pytorch(write(held, path), LAYERS, words)
    assert [(concept.trigger, concept.superclass) for concept in concepts] == words
    last = list(LAYERS)[-1]
    for number, concept in enumerate(concepts):
        assert torch.equal(concept.target_input, held["key_value_params"][0][0][number])
        assert torch.equal((concept.key_outputs or {})[last], held["key_value_params"][-2][1][number])
        assert torch.equal(concept.value_deltas[last], held["key_value_params"][-1][1][number])
        save_concept(concept, tmp_path / "kept.safetensors")
        assert load_concept(tmp_path / "kept.safetensors").key_outputs is not None
    with pytest.raises(ValueError, match="holds 2 concepts: give 2 triggers"):
        load_perfusion_pytorch(path, LAYERS, WORDS)


def changed(change: Callable[[dict[str, Any]], Any]) -> Any:
    held = saved()
    change(held)
    return held


def spoil(tensor: Tensor) -> None:
    tensor[0, 0] = torch.nan


UNUSABLE: dict[str, tuple[Any, str]] = {
    "a tensor": (torch.ones(3, 3), "not a concept file of perfusion-pytorch"),
    "a checkpoint": ({"state_dict": {"weight": torch.ones(2)}}, "not a concept file of perfusion-pytorch"),
    "no embedding": (changed(lambda held: held.update(embed_params=None)), "without the EmbeddingWrapper"),
    "a number": (changed(lambda held: held.update(embed_params=3)), "embed_params is int"),
    "integers": (changed(lambda held: held.update(C_inv=torch.eye(DIM).int())), r"C_inv is torch.int32 \(12, 12\)"),
    "no pairs": (changed(lambda held: held.update(key_value_params=torch.ones(8))), "no list of pairs"),
    "a triple": (changed(lambda held: held["key_value_params"][0].append(1)), "no list of pairs"),
    "NaN": (changed(lambda held: spoil(held["key_value_params"][3][1])), r"key_value_params\[3\]\[1\] holds NaN"),
    "NaN in the inverse": (changed(lambda held: spoil(held["C_inv"])), "C_inv holds NaN"),
    "not square": (changed(lambda held: held.update(C_inv=torch.ones(12, 5))), "expected a square"),
    "another inverse": (changed(lambda held: held.update(C_inv=torch.eye(5))), r"\(1, 12\).*expected \(1, 5\)"),
    "77 outputs": (changed(lambda held: held["key_value_params"][0].__setitem__(1, torch.ones(77, 6))), r"\(77, 6\)"),
    "a layer less": (changed(lambda held: held["key_value_params"].__delitem__(slice(2))), "outputs for 6 projections"),
    "other widths": (
        changed(lambda held: [pair.__setitem__(1, torch.ones(1, 6)) for pair in held["key_value_params"]]),
        "8 of width 6; this model has 8, .* 2 of width 5, 4 of width 6, 2 of width 7. Connect a MODEL of the family",
    ),
    "different targets": (changed(lambda held: held["key_value_params"][2][0].mul_(1.1)), "different encodings"),
    "sparse": (changed(lambda held: held.update(C_inv=torch.eye(DIM).to_sparse())), "C_inv is Tensor"),
    "without data": (changed(lambda held: held.update(C_inv=torch.eye(DIM, device="meta"))), "C_inv is Tensor"),
    "one seen as many": (changed(lambda held: held.update(embed_params=torch.ones(1).expand(1, 2**40))), "is Tensor"),
    "negative energy": (changed(lambda held: held["C_inv"].neg_()), "must be positive"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_file_is_named_with_what_was_found(path: Path, what: str) -> None:
    held, message = UNUSABLE[what]
    with pytest.raises(ValueError, match=message) as caught:
        load_perfusion_pytorch(write(held, path), LAYERS, WORDS)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("dim", "family", "encoder"), [(192, "demo", "l"), (768, "sd1", "l"), (1024, "sd2", "h"), (5, "width-5", "l")]
)
def test_family_and_text_encoder_follow_from_the_width(path: Path, dim: int, family: str, encoder: str) -> None:
    held = saved()
    held["C_inv"] = torch.eye(dim)
    held["key_value_params"] = [[torch.ones(1, dim), output] for _, output in held["key_value_params"]]
    (concept,) = load_perfusion_pytorch(write(held, path), LAYERS, WORDS)
    assert (concept.base_model, list(concept.token_embeddings)) == (family, [encoder])


def test_an_sdxl_file_lacks_the_other_encoders_embedding(path: Path) -> None:
    held = saved()
    held["C_inv"] = torch.eye(2048)
    held["key_value_params"] = [[torch.ones(1, 2048), output] for _, output in held["key_value_params"]]
    with pytest.raises(ValueError, match="only one of its two text encoders"):
        load_perfusion_pytorch(write(held, path), LAYERS, WORDS)


@pytest.mark.parametrize("trigger", ["", "my toy", "a:b"])
def test_a_word_that_cannot_be_a_trigger_is_refused(path: Path, trigger: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be imported: the trigger"):
        load_perfusion_pytorch(write(saved(), path), LAYERS, [(trigger, "teddy")])


# Files that are something else

READERS: dict[str, Callable[[Path], Any]] = {
    "concept": lambda path: load_perfusion_pytorch(path, LAYERS, WORDS),
    "covariance": load_covariance,
}


class _Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_torch_file_is_never_run(path: Path, tmp_path: Path, reader: str, legacy: bool) -> None:
    mark = tmp_path / "ran"
    torch.save({**saved(), "more": _Bomb(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"toy.pt cannot be read: .*code, which is never run"):
        READERS[reader](path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it was live


def test_code_in_a_numpy_file_is_never_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "c.npy"
    np.save(path, np.array([[_Bomb(mark)]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"c.npy cannot be read: .*code, which is never run"):
        load_covariance(path)
    assert not mark.exists()
    np.load(path, allow_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(path: Path, reader: str, share: float) -> None:
    content = write(saved(), path).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"toy\.pt cannot be read"):
        READERS[reader](path)


@pytest.mark.parametrize("name", ["c.pt", "c.npy", "c.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"a text about teddies", b"\x80\x02}q\x00.", b"PK\x03\x04", b"\x93NUMPY\x01\x00"]
)
def test_foreign_bytes_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read|holds 0 square"):
        load_covariance(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_a_packed_torch_file_is_not_unpacked(path: Path, reader: str) -> None:
    """As torch never writes them: a thousand times its size may be in it."""
    plain = write({**saved(), "more": torch.zeros(2**20)}, path.with_name("plain.pt"))
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part))
    assert torch.load(path, weights_only=True).keys() == {*saved(), "more"}
    with pytest.raises(ValueError, match="cannot be read") as caught:
        READERS[reader](path)
    assert "MiB, packed" in str(caught.value.__cause__)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_far_too_large_is_not_read(path: Path, reader: str) -> None:
    with path.open("wb") as file:
        file.truncate(300 * 2**20)  # sparse
    with pytest.raises(ValueError, match="cannot be read") as caught:
        READERS[reader](path)
    assert str(caught.value.__cause__) == "300 MiB"


# Covariances


def matrix() -> Tensor:
    return make_covariance(DIM, torch.Generator().manual_seed(3)).float()


def save_numpy(tensor: Tensor, path: Path) -> None:
    np.save(path, tensor.numpy())


KINDS: dict[str, tuple[str, Callable[[Tensor, Path], Any]]] = {
    "a tensor": ("c.pt", torch.save),
    "a dict": ("c.bin", lambda tensor, path: torch.save({"count": 7, "mean": tensor[0], "cov": tensor}, path)),
    "numpy": ("c.npy", save_numpy),
    "safetensors": ("c.SafeTensors", lambda tensor, path: save_file({"c": tensor.contiguous()}, path)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_a_covariance_comes_back_from_every_kind_of_file(tmp_path: Path, kind: str, inverse: bool) -> None:
    name, save = KINDS[kind]
    expected = matrix().double()
    save(torch.linalg.inv(expected).float() if inverse else expected.float(), tmp_path / name)
    covariance = load_covariance(tmp_path / name, inverse)
    torch.testing.assert_close(covariance.matrix(), expected, rtol=1e-3, atol=1e-4)
    assert covariance.source == name


def test_a_matrix_named_c_inv_is_the_inverse(path: Path) -> None:
    held = saved()
    covariance = load_covariance(write(held, path))
    torch.testing.assert_close(covariance.inverse(0).float(), held["C_inv"], rtol=1e-4, atol=1e-5)


def test_a_covariance_of_ours_is_read_as_any_other_up_to_its_scale(tmp_path: Path) -> None:
    ours = Covariance(DIM)
    ours.update(torch.randn(50, DIM, generator=torch.Generator().manual_seed(0)))
    ours.save(tmp_path / "c.safetensors")
    torch.testing.assert_close(load_covariance(tmp_path / "c.safetensors").matrix() / 50, ours.matrix())


def test_a_covariance_with_directions_of_no_variance_needs_the_ridge_only(path: Path) -> None:
    rows = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    covariance = load_covariance(write((rows.T @ rows).half(), path))
    assert torch.isfinite(covariance.inverse()).all()
    with pytest.raises(ValueError, match=r"covariance of toy.pt cannot be inverted with a ridge of 0"):
        covariance.inverse(0)


NO_COVARIANCE: dict[str, tuple[Any, bool, str]] = {
    "two": ({"a": torch.eye(3), "b": torch.eye(4)}, False, "holds 2 square matrices"),
    "none": ({"a": torch.ones(3, 4), "b": [torch.eye(3)]}, False, "holds 0 square matrices"),
    "empty": (torch.ones(0, 0), False, "expected"),
    "integers": (torch.eye(3).long(), False, "torch.int64"),
    "complex": (torch.eye(3).to(torch.complex64), False, "torch.complex64"),
    "NaN": (torch.full((3, 3), torch.nan), False, "NaN or infinity"),
    "infinity": (torch.full((3, 3), torch.inf), True, "NaN or infinity"),
    "asymmetric": (torch.eye(3) + torch.ones(3, 3).triu(1), False, "not symmetric"),
    "negative": (torch.diag(torch.tensor([1.0, 1.0, -0.5])), False, "negative variance"),
    "all negative": (-torch.eye(3), True, "negative variance"),
    "zeros": (torch.zeros(3, 3), False, "no or negative variance"),
    "sparse": (torch.eye(3).to_sparse(), False, "holds 0 square matrices"),
    "without data": (torch.eye(3, device="meta"), False, "holds 0 square matrices"),
    "one seen as many": (torch.ones(1).expand(2**20, 2**20), False, "holds 0 square matrices"),
    "too large": (torch.full((3, 3), 1e308, dtype=torch.float64), False, "too large or too small"),
    "too small": (torch.eye(3, dtype=torch.float64) * 1e-310, True, "too large or too small"),
    "a singular inverse": (torch.diag(torch.tensor([1.0, 1.0, 0.0])), True, "the inverse of a covariance: it has"),
}


@pytest.mark.parametrize("what", NO_COVARIANCE)
def test_a_matrix_that_is_no_covariance_is_refused(path: Path, what: str) -> None:
    held, inverse, message = NO_COVARIANCE[what]
    with pytest.raises(ValueError, match=message) as caught:
        load_covariance(write(held, path), inverse)
    assert path.name in str(caught.value)


# Rank-1 LoRA


@pytest.mark.parametrize(("free_keys", "key_freedom"), [(False, 0), (True, 0), (False, 0.3)])
def test_the_update_is_the_edit_without_its_gate_and_acts_by_similarity(free_keys: bool, key_freedom: float) -> None:
    case = make_case(free_keys=free_keys)
    concept = case.concepts[0].replace(key_freedom=key_freedom)
    weights = {
        (layer, projection): weight(layer, case.dim, seed)
        for layer in CASE_LAYERS
        for seed, projection in enumerate(("to_k", "to_v"))
    }
    updates = rank_one_update(concept, lambda layer, projection, x: weights[layer, projection] @ x)
    assert updates.keys() == weights.keys()
    for (layer, projection), w in weights.items():
        up, down = updates[layer, projection]
        output = w @ concept.superclass_input
        if projection == "to_v":
            output = output + concept.value_deltas[layer]
        elif concept.key_outputs is not None:
            output = concept.key_outputs[layer]
        else:
            output = output.lerp(w @ concept.target_input, key_freedom)
        changed = w + up @ down.double()
        torch.testing.assert_close(changed @ concept.target_input, output, rtol=1e-5, atol=1e-5)
        for e in case.encoding.flatten(0, 1):
            share = reference.similarity(e, case.covariance, concept.target_input)
            moved = share * (output - w @ concept.target_input)
            torch.testing.assert_close(changed @ e, w @ e + moved, rtol=1e-5, atol=1e-4)
