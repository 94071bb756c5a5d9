"""IMAGE and MASK of other nodes: every shape and range that can mean one thing only, and an error for the others."""

import pytest
import torch
from comfyui_perfusion.nodes.host.batches import masks_of, photos_of
from comfyui_perfusion.nodes.host.photos import prepare_photos

GREY = torch.rand(2, 6, 8)
RGB = torch.rand(2, 6, 8, 3)
BYTES = torch.randint(0, 256, (2, 6, 8, 3))


@pytest.mark.parametrize(
    ("images", "want"),
    [
        (RGB, RGB),
        (RGB[0], RGB[:1]),
        (RGB.movedim(-1, 1), RGB),
        (RGB.double(), RGB),
        (GREY[..., None], GREY[..., None].expand(2, 6, 8, 3)),
        (GREY[:1], GREY[:1, ..., None].expand(1, 6, 8, 3)),
        (GREY[:, None], GREY[..., None].expand(2, 6, 8, 3)),
        (torch.rand(5, 6, 8), 5),
        (BYTES.to(torch.uint8), BYTES / 255),
        (BYTES, BYTES / 255),
        (BYTES.float(), BYTES / 255),
        (RGB * 1.2 - 0.1, RGB * 1.2 - 0.1),
        (RGB > 0.5, (RGB > 0.5).float()),
    ],
)
def test_images_that_can_mean_one_thing_are_understood(images, want):
    photos = photos_of([images])
    if isinstance(want, int):
        assert [tuple(photo.shape) for photo in photos] == [(6, 8, 3)] * want
    else:
        torch.testing.assert_close(torch.stack(photos), want)


def test_grey_with_alpha_keeps_its_alpha():
    (photo,) = photos_of([torch.rand(1, 6, 8, 2)])
    assert photo.shape == (6, 8, 4) and torch.equal(photo[..., 0], photo[..., 2])


def test_batches_of_one_three_and_four_channels_mix():
    photos, covers = prepare_photos([GREY[..., None], RGB, torch.rand(1, 6, 8, 4)], [], 16)
    assert photos.shape == (5, 16, 16, 3) and covers.shape == (5, 16, 16)
    assert torch.equal(photos[0, ..., 0], photos[0, ..., 2])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(3, 6, 8), r"shape \(3, 6, 8\)"),
        (torch.rand(2, 6, 8, 5), r"shape \(2, 6, 8, 5\)"),
        (torch.rand(1, 2, 6, 8, 3), r"shape \(1, 2, 6, 8, 3\)"),
        (torch.rand(6), r"shape \(6,\)"),
        (torch.zeros(1, 0, 8, 3), r"shape \(1, 0, 8, 3\)"),
        (RGB * 255, "Expected 0 to 1, or whole numbers from 0 to 255"),
        (RGB * 2 - 1, "holds numbers from -"),
        (BYTES * 200, "Expected 0 to 1"),
    ],
)
def test_images_that_can_mean_more_or_nothing_are_refused_with_advice(images, said):
    with pytest.raises(ValueError, match=said) as caught:
        photos_of([images])
    assert "Look at the node that makes it" in str(caught.value)


MASK = (GREY > 0.4).float()


@pytest.mark.parametrize(
    "masks",
    [MASK, MASK[:, None], MASK[..., None], MASK[..., None].expand(2, 6, 8, 3), MASK * 255, MASK * 2, MASK.bool(),
     (MASK * 255).to(torch.uint8), MASK.double()],
)  # fmt: skip
def test_masks_that_can_mean_one_thing_are_understood(masks):
    assert torch.equal(torch.stack(masks_of([masks])), MASK)


@pytest.mark.parametrize("mask", [MASK[0], MASK[0, ..., None], MASK[:1, None], MASK[:1, ..., None]])
def test_one_mask_may_lack_or_have_dimensions(mask):
    assert torch.equal(torch.stack(masks_of([mask])), MASK[:1])


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (torch.rand(2, 6, 8, 3), r"shape \(2, 6, 8, 3\).*Convert Image to Mask"),
        (torch.rand(2, 2, 6, 8), r"shape \(2, 2, 6, 8\)"),
        (torch.rand(6), r"shape \(6,\)"),
        (torch.randn(2, 6, 8) * 9, "holds numbers from -"),
    ],
)
def test_masks_that_can_mean_more_or_nothing_are_refused_with_advice(masks, said):
    with pytest.raises(ValueError, match=said):
        masks_of([masks])
