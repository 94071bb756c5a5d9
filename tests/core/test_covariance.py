"""The covariance is the second moment, however its parts arrive, and its file is checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from perfusion_core import Covariance, save_concept
from perfusion_core.covariance import RIDGE

from .makers import file_concept

DIM = 6


def encodings(seed: int, *shape: int) -> Tensor:
    return 1 + torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_second_moment(rows: Tensor) -> Tensor:
    total = torch.zeros(DIM, DIM, dtype=torch.float64)
    for e in rows.reshape(-1, DIM):
        for i in range(DIM):
            for j in range(DIM):
                total[i, j] += e[i] * e[j]
    return total / rows.reshape(-1, DIM).shape[0]


def filled(seed: int = 0, count: int = 40) -> Covariance:
    covariance = Covariance(DIM)
    covariance.update(encodings(seed, count))
    return covariance


@pytest.mark.parametrize("shape", [(), (7,), (3, 7), (2, 3, 7)])
def test_it_equals_the_loop(shape: tuple[int, ...]) -> None:
    rows = encodings(0, *shape)
    covariance = Covariance(DIM)
    covariance.update(rows)
    assert covariance.count == rows.numel() // DIM
    torch.testing.assert_close(covariance.matrix(), slow_second_moment(rows), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_keeps_only_the_encodings_it_names(dtype: torch.dtype) -> None:
    rows, mask = encodings(0, 3, 7), torch.zeros(3, 7, dtype=dtype)
    mask[0, 2] = mask[2, 5:] = 1
    rows[mask == 0] = float("nan")  # what is masked away may be anything
    covariance = Covariance(DIM)
    covariance.update(rows, mask)
    assert covariance.count == 3
    torch.testing.assert_close(covariance.matrix(), slow_second_moment(rows[mask != 0]), rtol=1e-12, atol=1e-14)


@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_batches_add_up_however_they_are_split(seed: int, cuts: list[int]) -> None:
    rows = encodings(seed, 30)
    whole, parts = Covariance(DIM), Covariance(DIM)
    whole.update(rows)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True):
        parts.update(rows[start:end])
    assert parts.count == whole.count == 30
    torch.testing.assert_close(parts.matrix(), whole.matrix(), rtol=1e-12, atol=1e-14)


def test_half_precision_encodings_are_summed_in_double() -> None:
    rows = encodings(0, 5000).half()
    covariance = Covariance(DIM)
    covariance.update(rows)
    torch.testing.assert_close(covariance.matrix(), rows.double().T @ rows.double() / 5000, rtol=1e-12, atol=0)


def test_reading_the_matrix_changes_nothing() -> None:
    covariance = filled()
    covariance.inverse()
    before = covariance.matrix()
    before.zero_()
    covariance.inverse(0.5)
    torch.testing.assert_close(covariance.matrix(), slow_second_moment(encodings(0, 40)))


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.01, 1.0])
def test_the_inverse_has_a_ridge_of_a_share_of_the_mean_variance(ridge: float) -> None:
    covariance = filled()
    mean = covariance.matrix().diagonal().mean()
    ridged = covariance.matrix() + ridge * mean * torch.eye(DIM, dtype=torch.float64)
    torch.testing.assert_close(covariance.inverse(ridge) @ ridged, torch.eye(DIM, dtype=torch.float64))


def test_the_ridge_makes_a_small_sample_invertible() -> None:
    assert torch.isfinite(filled(count=2).inverse()).all()


def test_the_inverse_takes_the_covariances_own_ridge_when_none_is_given() -> None:
    covariance = Covariance(DIM, ridge=0.3)
    covariance.update(encodings(0, 40))
    assert torch.equal(covariance.inverse(), filled().inverse(0.3))
    covariance.ridge = 0.05
    assert torch.equal(covariance.inverse(), filled().inverse(0.05))
    assert torch.equal(covariance.inverse(RIDGE), filled().inverse())


@pytest.mark.parametrize("ridge", [-0.01, float("nan"), float("inf")])
def test_a_ridge_that_is_no_share_is_refused(ridge: float) -> None:
    covariance = filled()
    with pytest.raises(ValueError, match=r"ridge is .*at least 0"):
        Covariance(DIM, ridge)
    with pytest.raises(ValueError, match=r"ridge is .*at least 0"):
        covariance.ridge = ridge
    with pytest.raises(ValueError, match=r"ridge is .*at least 0"):
        covariance.inverse(ridge)
    assert covariance.ridge == RIDGE


@given(seed=st.integers(0, 2**31), count=st.integers(1, DIM - 1), scale=st.floats(1e-6, 1e6))
def test_a_singular_covariance_is_refused_without_a_ridge_and_inverted_with_a_small_one(
    seed: int, count: int, scale: float
) -> None:
    """Rounding often lets the Cholesky decomposition of a singular matrix pass; its inverse would be noise."""
    covariance = Covariance(DIM)
    covariance.update(scale * encodings(seed, count))
    with pytest.raises(ValueError, match=rf"{count} encodings cannot be inverted with a ridge of 0\. Use a ridge such"):
        covariance.inverse(0)
    matrix = covariance.matrix()
    ridged = matrix + 1e-6 * matrix.diagonal().mean() * torch.eye(DIM, dtype=torch.float64)
    torch.testing.assert_close(
        covariance.inverse(1e-6) @ ridged, torch.eye(DIM, dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_a_covariance_of_nothing_but_zeros_is_refused() -> None:
    covariance = Covariance(DIM)
    covariance.update(torch.zeros(3, DIM))
    with pytest.raises(ValueError, match="cannot be inverted"):
        covariance.inverse()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_refused_and_leaves_the_sum_as_it_was(bad: float) -> None:
    covariance, rows = filled(), encodings(1, 4)
    before = covariance.matrix()
    rows[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        covariance.update(rows)
    assert torch.equal(covariance.matrix(), before)


def test_encodings_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"6 wide.*{DIM + 1}"):
        Covariance(DIM + 1).update(encodings(0, 3))


def test_an_empty_covariance_says_so(tmp_path: Path) -> None:
    covariance = Covariance(DIM)
    covariance.update(encodings(0, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="empty"):
        covariance.matrix()
    with pytest.raises(ValueError, match="empty"):
        covariance.inverse()
    with pytest.raises(ValueError, match="empty"):
        covariance.save(tmp_path / "c.safetensors")


def test_encodings_that_track_gradients_leave_no_graph_behind(tmp_path: Path) -> None:
    covariance = Covariance(DIM)
    covariance.update(encodings(0, 20).requires_grad_())
    assert not covariance.matrix().requires_grad
    covariance.save(tmp_path / "c.safetensors")


def test_a_file_brings_back_matrix_and_count(tmp_path: Path) -> None:
    path = tmp_path / "covariance" / "sd1.safetensors"  # its folder is made on the way
    filled().save(path)
    loaded = Covariance.load(path)
    assert loaded.count == 40
    assert torch.equal(loaded.matrix(), filled().matrix())
    torch.testing.assert_close(loaded.inverse(), filled().inverse(), rtol=1e-4, atol=1e-6)


def test_a_file_brings_back_the_ridge(tmp_path: Path) -> None:
    covariance = filled()
    covariance.ridge = 1 / 3
    covariance.save(tmp_path / "c.safetensors")
    assert Covariance.load(tmp_path / "c.safetensors").ridge == 1 / 3


def test_a_file_without_a_ridge_has_the_usual_one(tmp_path: Path) -> None:
    save_file({"covariance": SOUND}, tmp_path / "older.safetensors", METADATA)
    assert Covariance.load(tmp_path / "older.safetensors").ridge == RIDGE


def test_the_smallest_covariance_comes_back(tmp_path: Path) -> None:
    smallest = Covariance(1)
    smallest.update(torch.tensor([[3.0]]))
    smallest.save(tmp_path / "c.safetensors")
    assert Covariance.load(tmp_path / "c.safetensors").matrix().tolist() == [[9.0]]


def test_an_older_file_holds_the_covariance_itself(tmp_path: Path) -> None:
    save_file(
        {"covariance": 2 * torch.eye(3)}, tmp_path / "c.safetensors", {"format": "perfusion-covariance", "count": "3"}
    )
    assert torch.equal(Covariance.load(tmp_path / "c.safetensors").matrix(), 2 * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-9, 1, 1e9])
def test_what_is_not_symmetric_is_refused_at_any_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="not symmetric"):
        Covariance.from_matrix(scale * torch.tensor([[2.0, 1.0], [0.9, 2.0]]))
    Covariance.from_matrix(scale * torch.tensor([[2.0, 1.0], [1.0, 2.0]]))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (0, 0), (3,)])
def test_a_matrix_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(d, d\)"):
        Covariance.from_matrix(torch.ones(shape))


def test_a_matrix_of_one_number_is_a_covariance() -> None:
    assert Covariance.from_matrix(torch.tensor([[9.0]])).matrix().tolist() == [[9.0]]


def test_a_loaded_covariance_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    filled().save(path)
    loaded, whole = Covariance.load(path), filled()
    for covariance in (loaded, whole):
        covariance.update(encodings(1, 25))
    assert loaded.count == whole.count
    torch.testing.assert_close(loaded.matrix(), whole.matrix(), rtol=1e-6, atol=1e-6)


def test_saving_leaves_one_file_that_others_may_read(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        filled().save(tmp_path / "c.safetensors")
    finally:
        os.umask(previous)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.safetensors"]
    assert (tmp_path / "c.safetensors").stat().st_mode & 0o777 == 0o644


SOUND = torch.eye(3)
METADATA = {"format": "perfusion-covariance", "count": "3"}
DAMAGED = {
    "no count": (SOUND, {"format": "perfusion-covariance"}),
    "count zero": (SOUND, METADATA | {"count": "0"}),
    "count no number": (SOUND, METADATA | {"count": "many"}),
    "count beyond all bounds": (SOUND, METADATA | {"count": "1" + "0" * 400}),
    "count beyond what is counted exactly": (SOUND, METADATA | {"count": str(2**53)}),
    "ridge no number": (SOUND, METADATA | {"ridge": "much"}),
    "ridge NaN": (SOUND, METADATA | {"ridge": "nan"}),
    "ridge below zero": (SOUND, METADATA | {"ridge": "-0.01"}),
    "another format": (SOUND, METADATA | {"format": "something-else"}),
    "no format": (SOUND, {"count": "3"}),
    "not square": (torch.ones(3, 4), METADATA),
    "no matrix": (torch.ones(3), METADATA),
    "of width zero": (torch.ones(0, 0), METADATA),
    "NaN": (SOUND * float("nan"), METADATA),
    "infinity": (SOUND / 0, METADATA),
}


@pytest.mark.parametrize(("matrix", "metadata"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, matrix: Tensor, metadata: dict[str, str]) -> None:
    path = tmp_path / "damaged.safetensors"
    save_file({"covariance": matrix}, path, metadata)
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        Covariance.load(path)


def test_a_foreign_file_is_refused_with_its_name(tmp_path: Path) -> None:
    filled().save(tmp_path / "c.safetensors")
    whole = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "truncated").write_bytes(whole[:-1])
    save_concept(file_concept(), tmp_path / "concept")
    for name in ("text", "empty", "truncated", "concept", "missing", "."):
        with pytest.raises(ValueError, match="covariance"):
            Covariance.load(tmp_path / name)
