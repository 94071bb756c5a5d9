"""Pasted pictures hold the whole subject on the background and nothing else, and masks say where."""

from __future__ import annotations

import pytest
import torch

from perfusion_core import paste_subject

RED, BLUE = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])


def photo(height=40, width=48):
    """A red box 12 high and 16 wide on green, and its mask."""
    picture, mask = torch.zeros(height, width, 3), torch.zeros(height, width)
    picture[..., 1] = 1
    picture[5:17, 20:36] = RED
    mask[5:17, 20:36] = 1
    return picture, mask


def pasted(seed=0, background=None, **options):
    background = BLUE.expand(64, 64, 3) if background is None else background
    return paste_subject(*photo(), background, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("seed", range(20))
def test_the_subject_is_where_the_mask_is_and_the_background_elsewhere(seed):
    picture, mask = pasted(seed)
    assert picture.shape == (40, 48, 3) and mask.shape == (40, 48)
    torch.testing.assert_close(picture[mask == 1], RED.expand(int((mask == 1).sum()), 3))
    torch.testing.assert_close(picture[mask == 0], BLUE.expand(int((mask == 0).sum()), 3))
    assert 0.8 * 0.85**2 < mask.sum() / (12 * 16) < 1.2 * 1.15**2


def test_places_and_sizes_differ_and_the_same_seed_repeats_them():
    masks = [pasted(seed)[1] for seed in range(100)]
    assert len({(mask > 0.5).sum().item() for mask in masks}) > 5
    assert (sum(masks) > 0).float().mean() > 0.95  # all over the picture
    torch.testing.assert_close(pasted(7), pasted(7), rtol=0, atol=0)


def test_a_subject_that_would_not_fit_is_as_large_as_fits():
    _, mask = pasted(scales=(9.0, 9.0))
    rows, columns = mask.amax(1) > 0.5, mask.amax(0) > 0.5
    assert rows.sum() >= 35 and columns.sum() == 48


def test_soft_masks_blend():
    picture, mask = photo()
    made, where = paste_subject(picture, mask * 0.5, BLUE.expand(40, 48, 3), torch.Generator(), (1.0, 1.0))
    torch.testing.assert_close(made[where == 0.5], ((RED + BLUE) / 2).expand(12 * 16, 3))


@pytest.mark.parametrize("shape", [(8, 8), (40, 48), (300, 20), (20, 300)])
def test_backgrounds_of_any_shape_fill_the_picture_unstretched(shape):
    lines = (torch.arange(shape[1]) % 2).float().expand(*shape)[..., None].expand(*shape, 3)
    picture, mask = pasted(background=lines)
    rows = picture[mask.amax(1) == 0]
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))  # upright lines stay upright


@pytest.mark.parametrize(("value", "message"), [(0.0, "The mask is empty"), (1.0, "The mask covers the whole photo")])
def test_masks_that_cut_nothing_out_are_refused(value, message):
    picture, mask = photo()
    with pytest.raises(ValueError, match=message):
        paste_subject(picture, torch.full_like(mask, value), BLUE.expand(40, 48, 3), torch.Generator())
