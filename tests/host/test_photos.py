"""Photos and their masks: read from folders, matched, and cropped for training."""

import folder_paths
import numpy as np
import pytest
import torch
from comfyui_perfusion.nodes.host.photos import load_photo, photo_files, photo_folders, prepare_photos
from comfyui_perfusion.nodes.train import PerfusionLoadPhotos
from PIL import Image

RED, CLEAR = (255, 0, 0), (0, 0, 255, 0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty input directory."""
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


def put(path, picture=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or Image.new("RGB", (8, 6), RED)).save(path, **options)
    return path


def left_half(mode, on, off, size=(8, 6)) -> Image.Image:
    picture = Image.new(mode, size, off)
    picture.paste(on, (0, 0, size[0] // 2, size[1]))
    return picture


def is_left_half(mask) -> bool:
    columns = (mask[0] > 0.5).float().mean(0)
    return columns.tolist() == [1.0] * 4 + [0.0] * 4


def test_a_photo_without_mask_is_all_subject(home):
    image, mask = load_photo(put(home / "a.png"))
    assert image.shape == (1, 6, 8, 3)
    assert image[0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(mask, torch.ones(1, 6, 8))
    assert image.dtype == mask.dtype == torch.float32


def transparent_palette() -> Image.Image:
    palette = left_half("P", 1, 0)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.info["transparency"] = 0
    return palette


@pytest.mark.parametrize(
    "picture",
    [left_half("RGBA", (*RED, 255), CLEAR), left_half("LA", (90, 255), (0, 0)), transparent_palette()],
    ids=["RGBA", "LA", "palette"],
)
def test_transparency_is_the_mask(home, picture):
    image, mask = load_photo(put(home / "a.png", picture))
    assert image.shape == (1, 6, 8, 3)
    assert is_left_half(mask)


@pytest.mark.parametrize("name", ["a", "IMG_1 (2)", "photo [1]", "a.b", "玩具"])
def test_the_mask_folder_comes_before_transparency(home, name):
    put(home / f"toys/mask/{name}.png", left_half("L", 255, 0))
    _, mask = load_photo(put(home / f"toys/{name}.webp", Image.new("RGBA", (8, 6), CLEAR), lossless=True))
    assert is_left_half(mask)


def test_a_mask_belongs_only_to_the_photo_of_its_name(home):
    put(home / "mask/a.b.png", Image.new("L", (8, 6), 0))
    put(home / "mask/a.txt.png", Image.new("L", (8, 6), 0))
    _, mask = load_photo(put(home / "a.jpg"))
    assert mask.min() == 1


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("L", (8, 6), 128),
        Image.new("1", (8, 6), 1),
        Image.new("P", (8, 6), 0),
        Image.new("I;16", (8, 6), 32768),
    ],
    ids=lambda picture: picture.mode,
)
def test_every_kind_of_picture_becomes_rgb(home, picture):
    image, mask = load_photo(put(home / "a.png", picture))
    assert image.shape == (1, 6, 8, 3)
    assert mask.shape == (1, 6, 8)
    want = {"L": 0.5, "1": 1.0, "P": 0.0, "I;16": 0.5}[picture.mode]
    assert image.mean().item() == pytest.approx(want, abs=0.01)


def test_a_phone_photo_is_turned_upright(home):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    image, mask = load_photo(put(home / "a.png", left_half("RGB", RED, (0, 0, 0)), exif=exif))
    assert image.shape == (1, 8, 6, 3)
    assert mask.shape == (1, 8, 6)
    assert image[0, :4, :, 0].min() == 1  # what was left is at the top
    assert image[0, 4:, :, 0].max() == 0


def damaged(content: bytes):
    yield b""
    yield b"no picture at all"
    yield content[: len(content) // 2]
    for place in range(8, len(content), max(len(content) // 40, 1)):
        yield content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp"])
def test_a_damaged_photo_is_named_or_still_a_picture(home, kind):
    path = put(home / f"a.{kind}", Image.effect_noise((40, 40), 50).convert("RGB"))
    refused = 0
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        try:
            assert load_photo(path)[0].shape[-1] == 3
        except ValueError as error:
            assert f"a.{kind}" in str(error) and "Take it out" in str(error), error
            refused += 1
    assert refused >= 3


def test_folders_with_pictures_are_offered_but_not_their_masks(home):
    for name in ("a.png", "toys/b.JPG", "toys/mask/b.png", "deep/er/c.webp", "mask/a.png"):
        put(home / name)
    (home / "texts").mkdir()
    (home / "texts/a.txt").write_text("")
    (home / "odd.png").mkdir()
    (home / "empty/odd.png").mkdir(parents=True)  # a folder, not a picture
    assert photo_folders() == [".", "deep/er", "toys"]
    assert [file.name for file in photo_files("toys")] == ["b.JPG"]
    assert [file.name for file in photo_files(".")] == ["a.png"]


@pytest.mark.parametrize("folder", ["../outside", "{}", "toys/../../outside", "link", "none", "toys/a.png"])
def test_only_folders_in_the_input_directory_are_read(home, tmp_path, folder):
    put(tmp_path / "outside/secret.png")
    put(home / "toys/a.png")
    (home / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match="There is no folder"):
        photo_files(folder.format(tmp_path / "outside"))


def test_a_folder_without_pictures_is_said_to_be(home):
    (home / "texts").mkdir()
    with pytest.raises(ValueError, match=r"holds no pictures \(\.bmp, "):
        photo_files("texts")


def test_the_node_gives_photos_and_masks_of_any_sizes_by_name(home):
    put(home / "toys/b.png", Image.new("RGB", (9, 5)))
    put(home / "toys/a.png", Image.new("RGB", (4, 4)))
    put(home / "toys/mask/a.png", Image.new("L", (2, 2), 255))
    images, masks = PerfusionLoadPhotos.execute("toys").result
    assert [tuple(image.shape) for image in images] == [(1, 4, 4, 3), (1, 5, 9, 3)]
    assert [tuple(mask.shape) for mask in masks] == [(1, 2, 2), (1, 5, 9)]
    prepared, covers = prepare_photos(images, masks, 64)
    assert prepared.shape == (2, 64, 64, 3)
    assert covers.shape == (2, 64, 64)


def test_the_node_notices_new_masks_and_changed_photos(home):
    photo = put(home / "toys/a.png")
    seen = {PerfusionLoadPhotos.fingerprint_inputs("toys")}
    put(home / "toys/mask/a.png", Image.new("L", (8, 6)))
    seen.add(PerfusionLoadPhotos.fingerprint_inputs("toys"))
    put(photo, Image.new("RGB", (8, 6)))
    seen.add(PerfusionLoadPhotos.fingerprint_inputs("toys"))
    assert len(seen) == 3


def noise(*shape) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))


def test_batches_lists_and_sizes_mix():
    images = [noise(2, 64, 64, 3), noise(1, 90, 120, 4), noise(1, 30, 20, 3)]
    masks = [torch.ones(2, 64, 64), torch.ones(1, 90, 120), torch.ones(30, 20)]
    photos, covers = prepare_photos(images, masks, 64)
    assert photos.shape == (4, 64, 64, 3)
    assert covers.shape == (4, 64, 64)
    assert torch.equal(photos[:2], images[0])
    assert prepare_photos(images, [], 64)[1] is None


@pytest.mark.parametrize(("height", "width"), [(6, 10), (10, 6), (60, 100), (300, 500)])
def test_the_middle_square_is_kept_of_photo_and_mask_alike(height, width):
    side, size = min(height, width), 64
    top, left = (height - side) // 2, (width - side) // 2
    image = torch.zeros(1, height, width, 3)
    image[:, top : top + side, left : left + side] = 1
    photos, covers = prepare_photos([image], [image[..., 0]], size)
    assert torch.allclose(photos, torch.ones(1, size, size, 3), atol=1e-5)
    assert torch.allclose(covers, torch.ones(1, size, size), atol=1e-5)


def test_scaled_photos_and_masks_stay_in_range():
    checks = (torch.arange(12)[:, None] + torch.arange(12)) % 2 * torch.ones(1, 12, 12)
    photos, covers = prepare_photos([checks[..., None].expand(-1, -1, -1, 3)], [checks], 64)
    for scaled in (photos, covers):
        assert scaled.min() >= 0
        assert scaled.max() <= 1


def test_a_mask_of_another_size_but_the_photos_shape_fits():
    mask = torch.zeros(1, 20, 40)
    mask[:, :, 20:] = 1
    _, covers = prepare_photos([noise(1, 128, 256, 3)], [mask], 64)
    assert covers[0, :, :32].max() < 0.6
    assert covers[0, :, 33:].min() > 0.9


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ([], [], "no photos"),
        ([torch.zeros(0, 8, 8, 3)], [], "no photos"),
        ([noise(2, 8, 8, 3)], [torch.ones(1, 8, 8)], "1 masks for 2 photos"),
        ([noise(1, 8, 8, 3)], [torch.ones(3, 8, 8)], "3 masks for 1 photos"),
        ([noise(1, 8, 8, 3)], [torch.ones(1, 8, 16)], "mask of photo 1 is 16x8, the photo 8x8"),
        ([noise(2, 8, 8, 3)], [torch.ones(1, 8, 8), torch.zeros(1, 8, 8)], "mask of photo 2 is empty"),
        ([noise(1, 8, 8, 3)], [torch.zeros(1, 64, 64)], "mask of photo 1 is empty"),  # Load Image's, without alpha
        ([noise(1, 8, 8, 3)], [torch.full((1, 8, 8), torch.nan)], "mask of photo 1"),
        ([noise(1, 8, 8, 3), torch.full((1, 8, 8, 3), torch.nan)], [], "Photo 2 holds NaN"),
        ([torch.full((1, 8, 8, 3), torch.inf)], [], "Photo 1 holds"),
    ],
)
def test_photos_and_masks_that_cannot_be_used_are_named(images, masks, message):
    with pytest.raises(ValueError, match=message):
        prepare_photos(images, masks, 64)


def test_a_mask_that_the_crop_leaves_empty_is_named():
    mask = torch.zeros(1, 64, 256)
    mask[..., :40] = 1  # the subject stands beside the middle square
    with pytest.raises(ValueError, match="mask of photo 1"):
        prepare_photos([noise(1, 64, 256, 3)], [mask], 64)
