"""The loss: weighted by the mask over its own maximum, image by image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perfusion_core import masked_mse


def picture(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(seed: int, *shape: int) -> Tensor:
    """Soft, and of another strength in every image."""
    random = torch.Generator().manual_seed(seed)
    strength = 0.05 + 0.95 * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=random, dtype=torch.float64)
    return strength * torch.rand(*shape, generator=random, dtype=torch.float64)


def slow_masked_mse(prediction: Tensor, target: Tensor, mask: Tensor, unmasked_weight: float = 0.0) -> float:
    total = 0.0
    batch, channels, height, width = prediction.shape
    for image in range(batch):
        largest = max(mask[image].flatten().tolist())
        for channel in range(channels):
            for y in range(height):
                for x in range(width):
                    difference = prediction[image, channel, y, x] - target[image, channel, y, x]
                    weight = max(float(mask[image, y, x]) / largest, unmasked_weight)
                    total += weight * float(difference) ** 2
    return total / prediction.numel()


@given(
    seed=st.integers(0, 2**31), batch=st.integers(1, 3), height=st.integers(1, 4), width=st.integers(1, 4),
    unmasked_weight=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_it_equals_the_loop(seed: int, batch: int, height: int, width: int, unmasked_weight: float) -> None:
    prediction, target = picture(seed, batch, 2, height, width), picture(seed + 1, batch, 2, height, width)
    weight = mask(seed + 2, batch, height, width)
    expected = slow_masked_mse(prediction, target, weight, unmasked_weight)
    for given_mask in (weight, weight[:, None]):
        loss = masked_mse(prediction, target, given_mask, unmasked_weight)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_no_mask_is_the_plain_mean() -> None:
    prediction, target = picture(0, 2, 3, 4, 5), picture(1, 2, 3, 4, 5)
    plain = torch.nn.functional.mse_loss(prediction, target)
    assert torch.allclose(masked_mse(prediction, target, None), plain, rtol=1e-12)
    assert torch.allclose(masked_mse(prediction, target, torch.full((2, 4, 5), 0.3).double()), plain, rtol=1e-12)


@pytest.mark.parametrize("faint", [0.5, 1e-2, 1e-4])
def test_a_faint_mask_counts_as_much_as_a_strong_one(faint: float) -> None:
    prediction, target, weight = picture(0, 2, 3, 4, 4), picture(1, 2, 3, 4, 4), mask(2, 2, 4, 4)
    fainter = weight * torch.tensor([1.0, faint])[:, None, None]
    assert torch.allclose(masked_mse(prediction, target, fainter), masked_mse(prediction, target, weight), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_a_hard_mask_counts_only_what_it_covers(dtype: torch.dtype) -> None:
    prediction, target = picture(0, 1, 3, 4, 4), picture(1, 1, 3, 4, 4)
    hard = torch.zeros(1, 4, 4, dtype=dtype)
    hard[:, :2] = 1
    half = torch.nn.functional.mse_loss(prediction[:, :, :2], target[:, :, :2]) / 2
    assert torch.allclose(masked_mse(prediction, target, hard), half, rtol=1e-6)


def test_an_empty_mask_adds_nothing_and_no_nan() -> None:
    prediction = picture(0, 2, 3, 4, 4).requires_grad_()
    weight = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    loss = masked_mse(prediction, torch.zeros(2, 3, 4, 4), weight)
    loss.backward()
    assert loss.item() == pytest.approx(prediction[1].square().mean().item() / 2)
    assert torch.count_nonzero(prediction.grad[0]) == 0
    assert torch.count_nonzero(prediction.grad[1]) == prediction[1].numel()


def test_a_mask_without_a_batch_is_refused_or_one_for_all() -> None:
    """Never normalised row by row, as an earlier open version did."""
    prediction, target, weight = picture(0, 2, 3, 4, 4), picture(1, 2, 3, 4, 4), mask(2, 1, 4, 4)
    try:
        loss = masked_mse(prediction, target, weight[0])
    except (ValueError, RuntimeError):
        return
    assert loss.item() == pytest.approx(masked_mse(prediction, target, weight.expand(2, -1, -1)).item())
