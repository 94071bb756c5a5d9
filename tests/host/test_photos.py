"""Photos, their masks and captions: read from folders, matched, and cropped for training."""

import types

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfyui_perfusion.nodes.host.photos import (
    DEMO_FOLDERS,
    caption_texts,
    load_caption,
    load_photo,
    photo_folder,
    photo_folders,
    prepare_photos,
)
from comfyui_perfusion.nodes.photo_folder import read_folder
from comfyui_perfusion.nodes.photos import PerfusionLoadPhotos, PerfusionPasteSubject
from hypothesis import given, settings
from hypothesis import strategies as st
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


def found(path):
    """The photo in a file, with its mask and caption."""
    return next(photo for photo in read_folder(path.parent).photos if photo.path == path)


def load(path):
    image, mask, _ = load_photo(found(path))
    return image, mask


def photo_files(folder):
    return [photo.path for photo in photo_folder(folder).photos]


def left_half(mode, on, off, size=(8, 6)) -> Image.Image:
    picture = Image.new(mode, size, off)
    picture.paste(on, (0, 0, size[0] // 2, size[1]))
    return picture


def is_left_half(mask) -> bool:
    columns = (mask[0] > 0.5).float().mean(0)
    return columns.tolist() == [1.0] * 4 + [0.0] * 4


def test_a_photo_without_mask_is_all_subject(home):
    image, mask = load(put(home / "a.png"))
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
    image, mask = load(put(home / "a.png", picture))
    assert image.shape == (1, 6, 8, 3)
    assert is_left_half(mask)


@pytest.mark.parametrize("name", ["a", "IMG_1 (2)", "photo [1]", "a.b", "玩具"])
def test_the_mask_folder_comes_before_transparency(home, name):
    put(home / f"toys/mask/{name}.png", left_half("L", 255, 0))
    _, mask = load(put(home / f"toys/{name}.webp", Image.new("RGBA", (8, 6), CLEAR), lossless=True))
    assert is_left_half(mask)


def test_a_mask_belongs_only_to_the_photo_of_its_name(home):
    put(home / "mask/a.b.png", Image.new("L", (8, 6), 0))
    put(home / "mask/a.txt.png", Image.new("L", (8, 6), 0))
    _, mask = load(put(home / "a.jpg"))
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
    image, mask = load(put(home / "a.png", picture))
    assert image.shape == (1, 6, 8, 3)
    assert mask.shape == (1, 6, 8)
    want = {"L": 0.5, "1": 1.0, "P": 0.0, "I;16": 0.5}[picture.mode]
    assert image.mean().item() == pytest.approx(want, abs=0.01)


def test_a_phone_photo_is_turned_upright(home):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    image, mask = load(put(home / "a.png", left_half("RGB", RED, (0, 0, 0)), exif=exif))
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
            assert load(path)[0].shape[-1] == 3
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
    assert photo_folders() == [".", "deep/er", "toys", "demo: teddy", "demo: tiger"]
    assert [file.name for file in photo_files("toys")] == ["b.JPG"]
    assert [file.name for file in photo_files(".")] == ["a.png"]


def test_the_demo_folders_come_with_photos_and_masks(home):
    for folder in DEMO_FOLDERS:
        photos = [load_photo(photo) for photo in photo_folder(folder).photos]
        assert [photo.shape for photo, *_ in photos] == [(1, 96, 96, 3)] * 5
        assert all(0.05 < mask.mean() < 0.6 for _, mask, _ in photos)


@pytest.mark.parametrize(
    "folder", ["../outside", "{}", "toys/../../outside", "link/../../outside", "none", "toys/a.png"]
)
def test_only_folders_in_the_input_directory_are_read(home, tmp_path, folder):
    put(tmp_path / "outside/secret.png")
    put(home / "toys/a.png")
    (home / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match="There is no folder"):
        photo_files(folder.format(tmp_path / "outside"))


def test_links_that_the_user_made_are_followed(home, tmp_path):
    put(tmp_path / "outside/far/a.png")
    put(home / "toys/a.png")
    (home / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    (home / "toys/b.png").symlink_to(tmp_path / "outside/far/a.png")
    (home / "toys/broken.png").symlink_to(tmp_path / "nowhere.png")
    (home / "toys/round").symlink_to(home, target_is_directory=True)
    assert photo_folders()[:2] == ["link/far", "toys"]
    assert [file.name for file in photo_files("link/far")] == ["a.png"]
    assert [file.name for file in photo_files("toys")] == ["a.png", "b.png"]


def test_a_folder_without_pictures_is_said_to_be(home):
    (home / "texts").mkdir()
    with pytest.raises(ValueError, match="'texts' holds no pictures"):
        photo_files("texts")


def test_the_node_gives_photos_masks_and_captions_of_any_sizes_by_name(home):
    put(home / "toys/b.png", Image.new("RGB", (9, 5)))
    put(home / "toys/a.png", Image.new("RGB", (4, 4)))
    put(home / "toys/mask/a.png", Image.new("L", (2, 2), 255))
    (home / "toys/b.txt").write_text("a toy on a table")
    images, masks, captions = PerfusionLoadPhotos.execute("toys").result
    assert captions == ["", "a toy on a table"]
    assert [tuple(image.shape) for image in images] == [(1, 4, 4, 3), (1, 5, 9, 3)]
    assert [tuple(mask.shape) for mask in masks] == [(1, 2, 2), (1, 5, 9)]
    prepared, covers = prepare_photos(images, masks, 64)
    assert prepared.shape == (2, 64, 64, 3)
    assert covers.shape == (2, 64, 64)


def test_the_node_notices_new_masks_changed_photos_and_captions(home):
    photo = put(home / "toys/a.png")
    seen = {PerfusionLoadPhotos.fingerprint_inputs("toys")}
    put(home / "toys/mask/a.png", Image.new("L", (8, 6)))
    seen.add(PerfusionLoadPhotos.fingerprint_inputs("toys"))
    put(photo, Image.new("RGB", (8, 6)))
    seen.add(PerfusionLoadPhotos.fingerprint_inputs("toys"))
    for caption in ("a toy", "the toy", None):
        photo.with_suffix(".txt").write_text(caption) if caption else photo.with_suffix(".txt").unlink()
        seen.add(PerfusionLoadPhotos.fingerprint_inputs("toys"))
    assert len(seen) == 5  # without caption it is as before
    assert PerfusionLoadPhotos.fingerprint_inputs("toys") in seen


def test_the_node_whose_folder_is_linked_notices_what_changes_in_any(home):
    """The host does not know the folder yet when it asks."""
    put(home / "toys/a.png")
    before = PerfusionLoadPhotos.fingerprint_inputs(None)
    assert PerfusionLoadPhotos.fingerprint_inputs(None) == before
    put(home / "cups/a.png")
    assert PerfusionLoadPhotos.fingerprint_inputs(None) != before


@pytest.mark.parametrize("name", ["a", "a.b", "photo [1]", "玩具"])
def test_the_caption_is_the_text_beside_the_photo(home, name):
    photo = put(home / f"{name}.jpg")
    assert load_caption(found(photo)) == ""
    (home / f"{name}.jpg.txt").write_text("of another tool")
    (home / f"{name}.txt").write_bytes("\ufeffein Plüschtier\r\n玩具\r\n".encode())  # as Notepad saves it
    assert load_caption(found(photo)).splitlines() == ["ein Plüschtier", "玩具"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Plüschtier".encode("latin-1"), r"a\.txt is not UTF-8"),
        ("toy".encode("utf-16"), r"a\.txt is not UTF-8"),
        (b"x" * 64 * 1024 + b"x", r"a\.txt has more than 64 KB"),
    ],
)
def test_a_caption_that_cannot_be_read_is_named(home, content, message):
    photo = put(home / "a.png")
    photo.with_suffix(".txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_caption(found(photo))


def test_the_largest_caption_is_still_read(home):
    photo = put(home / "a.png")
    photo.with_suffix(".txt").write_bytes(b"x" * 64 * 1024)
    assert len(load_caption(found(photo))) == 64 * 1024


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("a <my-toy> on a table", "a {} on a table"),
        ("A <MY-TOY>!", "A {}!"),
        ("the <my-toy>'s ear", "the {}'s ear"),
        ("<my-toy> beside a teddy bear", "{} beside a teddy bear"),
        ("a <my-toy> and a <My-Toy>", "a {} and a teddy bear"),
        ("{} and {} beside <my-toy>", "teddy bear and teddy bear beside {}"),
        ("a {} in the snow", "a {} in the snow"),
        ("a {} beside a teddy bear", "a {} beside a teddy bear"),
        ("{} and {}", "{} and teddy bear"),
        ("a teddy bear beside a Teddy Bear", "a {} beside a Teddy Bear"),
        ("A Teddy  Bear.", "A {}."),
        ("teddy bears around a teddy bear", "teddy bears around a {}"),
        ("a {red|blue} teddy bear {1} {{x}}", "a {red|blue} {} {1} {{x}}"),
        ("{<my-toy>} {<my-toy>}", "{{}} {teddy bear}"),
    ],
)
def test_the_trigger_gets_one_place_in_a_caption(caption, sentence):
    assert caption_texts([caption], 1, "<my-toy>", "teddy bear") == [[sentence]]
    assert sentence.count("{}") == 1


def test_a_trigger_of_letters_is_a_word_of_its_own():
    assert caption_texts(["asks sksy sks, sks"], 1, "sks", "toy") == [["asks sksy {}, toy"]]
    assert caption_texts(["a <ba\u0308r> beside a <b\u00e4r>"], 1, "<b\u00e4r>", "toy") == [["a {} beside a toy"]]
    assert caption_texts(["a <b\u00e4r>"], 1, "<ba\u0308r>", "toy") == [["a {}"]]
    assert caption_texts(["my.toy or myxtoy"], 1, "my.toy", r"\1") == [["{} or myxtoy"]]


def test_every_line_of_a_caption_is_a_sentence_and_photos_without_get_none():
    captions = ["a toy\n\n  the toy, sleeping \n", "", " \n"]
    assert caption_texts(captions, 3, "<t>", "toy") == [["a {}", "the {}, sleeping"], [], []]


@pytest.mark.parametrize("captions", [[], [""], ["", " \n", ""]])
def test_no_captions_are_none_for_every_photo(captions):
    assert caption_texts(captions, 2, "<t>", "toy") == [[], []]


@given(st.lists(st.sampled_from(["{", "}", "{}", "<t>", "<T>", "toy", "toys", "x", " ", "\\1"]), max_size=12))
@settings(deadline=None)
def test_whatever_a_caption_holds_it_has_one_place_or_is_refused(pieces):
    caption = "".join(pieces)
    try:
        (sentences,) = caption_texts([caption], 1, "<t>", "toy")
    except ValueError:
        assert "<t>" not in caption.lower()
        assert "{}" not in caption
    else:
        assert [sentence.count("{}") for sentence in sentences] == [1] * bool(caption.strip())
        assert all("<t>" not in sentence.lower() for sentence in sentences)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a toy"], "1 captions for 2 photos"),
        (["a toy", "", ""], "3 captions for 2 photos"),
        (
            ["a toy", "the toy\ntwo toys"],
            "caption of photo 2 does not say where <t> is: 'two toys'. Write <t>, {} or toy",
        ),
    ],
)
def test_captions_that_cannot_be_used_are_named(captions, message):
    with pytest.raises(ValueError, match=message):
        caption_texts(captions, 2, "<t>", "toy")


def test_a_refused_caption_is_not_shown_whole():
    with pytest.raises(ValueError) as caught:
        caption_texts(["x" * 60_000], 1, "<t>", "toy")
    assert len(str(caught.value)) < 500


def noise(*shape) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))


def test_batches_lists_and_sizes_mix():
    images = [noise(2, 64, 64, 3), noise(1, 90, 120, 4), noise(1, 30, 20, 3)]
    masks = [torch.ones(2, 64, 64), torch.ones(1, 90, 120), torch.ones(30, 20)]
    photos, covers = prepare_photos(images, masks, 64)
    assert photos.shape == (4, 64, 64, 3)
    assert covers.shape == (4, 64, 64)
    assert torch.equal(photos[:2], images[0])
    assert prepare_photos(images[::2], [], 64)[1] is None


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
    mask[:, 10:] = 1
    _, covers = prepare_photos([noise(1, 128, 256, 3)], [mask], 64)
    assert covers[0, :32].max() < 0.6
    assert covers[0, 33:].min() > 0.9


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
        ([noise(1, 8, 16, 3)], [torch.zeros(1, 64, 64)], "mask of photo 1 is empty"),
        ([noise(1, 8, 8, 3)], [torch.full((1, 8, 8), torch.nan)], "mask of photo 1"),
        ([noise(1, 8, 8, 3), torch.full((1, 8, 8, 3), torch.nan)], [], "Photo 2 holds NaN"),
        ([torch.full((1, 8, 8, 3), torch.inf)], [], "Photo 1 holds"),
    ],
)
def test_photos_and_masks_that_cannot_be_used_are_named(images, masks, message):
    with pytest.raises(ValueError, match=message):
        prepare_photos(images, masks, 64)


def test_the_fourth_channel_is_the_mask_when_none_is_connected():
    images = [noise(1, 64, 64, 4), noise(1, 40, 40, 3)]
    photos, covers = prepare_photos(images, [], 64)
    assert torch.equal(photos[0], images[0][0, ..., :3])
    assert torch.equal(covers[0], images[0][0, ..., 3])
    assert covers[1].min() == 1
    connected = [torch.ones(1, 64, 64), torch.ones(1, 40, 40)]
    assert prepare_photos(images, connected, 64)[1].min() == 1
    images[0][..., 3] = 0
    with pytest.raises(ValueError, match="mask of photo 1 is empty"):
        prepare_photos(images, [], 64)


def old_square(picture: torch.Tensor, size: int) -> torch.Tensor:
    """What training saw before squares followed masks, of (height, width, channels)."""
    method = "area" if min(picture.shape[:2]) > size else "bicubic"
    square = comfy.utils.common_upscale(picture.movedim(-1, 0)[None], size, size, method, "center")
    return square.clamp(0, 1)[0].movedim(0, -1)


SIDES = st.integers(4, 40)


@given(SIDES, SIDES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_with_a_centred_mask_or_none_the_square_is_the_middle(height, width, soft):
    photo = noise(1, height, width, 3)
    mask = 0.3 * torch.ones(height, width)
    if soft:  # heaviest in the middle, the same from both ends
        mask = 1 - (torch.linspace(-1, 1, height)[:, None] ** 2 + torch.linspace(-1, 1, width) ** 2) / 2
        mask = (mask + mask.flip(0, 1)) / 2
    photos, covers = prepare_photos([photo], [mask], 16)
    assert torch.equal(photos[0], old_square(photo[0], 16))
    assert torch.equal(covers[0], old_square(mask[..., None], 16)[..., 0])
    assert torch.equal(prepare_photos([photo], [], 16)[0], photos)


@pytest.mark.parametrize("upright", [False, True], ids=["landscape", "portrait"])
@given(side=SIDES, spare=st.integers(0, 30), data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_subject_that_fits_is_kept_whole_wherever_it_stands(upright, side, spare, data):
    """Squares as large as the training's are not scaled; an even rest leaves a middle."""
    width = data.draw(st.integers(1, side))
    start = data.draw(st.integers(0, side + 2 * spare - width))
    mask = torch.zeros(side, side + 2 * spare)
    mask[side // 3 :, start : start + width] = torch.linspace(0.1, data.draw(st.floats(0.1, 1)), width)  # soft
    mask = mask.T if upright else mask
    photos, covers = prepare_photos([mask[None, ..., None].expand(-1, -1, -1, 3)], [mask], side)
    assert covers[0].sum().item() == pytest.approx(mask.sum().item(), rel=1e-5)
    assert torch.equal(photos[0, ..., 0], covers[0])


@pytest.mark.parametrize("upright", [False, True], ids=["landscape", "portrait"])
@given(
    side=SIDES,
    spare=st.integers(0, 20),
    weights=st.lists(st.sampled_from([0, 0, 0.25, 1]), min_size=80, max_size=80),
)
@settings(deadline=None, max_examples=60)
def test_the_square_holds_most_of_the_mask_and_is_near_the_middle(upright, side, spare, weights):
    length = side + 2 * spare
    mask = torch.tensor(weights[:length]).expand(side, -1).clone()
    mask[:, length // 2] = 1
    held = [mask[0, start : start + side].sum().item() for start in range(2 * spare + 1)]
    photo = (torch.arange(length) / 128).expand(1, side, -1)[..., None].expand(-1, -1, -1, 3)
    if upright:
        mask, photo = mask.T, photo.transpose(1, 2)
    photos, covers = prepare_photos([photo], [mask], side)
    start = round(photos.min().item() * 128)
    assert held[start] == max(held)
    assert abs(start - spare) == min(abs(other - spare) for other, weight in enumerate(held) if weight == max(held))
    assert torch.equal(covers[0], mask.narrow(0 if upright else 1, start, side))


def test_the_rounding_of_a_mask_does_not_move_the_square():
    mask = 0.5 + 1e-7 * noise(20, 90)
    covers = prepare_photos([noise(1, 20, 90, 3)], [mask], 16)[1]
    assert torch.equal(covers[0], old_square(mask[..., None], 16)[..., 0])


@pytest.mark.parametrize("start", [0, 31])
def test_an_odd_rest_costs_a_subject_at_the_edge_nothing(start):
    mask = torch.zeros(20, 51)
    mask[:, start : start + 20] = 1
    assert prepare_photos([noise(1, 20, 51, 3)], [mask], 20)[1].min() == 1


def test_a_mask_of_another_size_moves_the_square_as_far():
    mask = torch.zeros(16, 64)
    mask[:, 40:56] = 1
    photo = torch.zeros(1, 64, 256, 3)
    photo[:, :, 160:224] = 1
    photos, covers = prepare_photos([photo], [mask], 16)
    assert photos.min() == 1
    assert covers.min() == 1


def test_what_is_no_number_does_not_move_the_square():
    mask = torch.zeros(64, 256)
    mask[:, :40] = 1
    mask[:, 200:] = torch.nan
    assert torch.equal(prepare_photos([noise(1, 64, 256, 3)], [mask], 64)[1][0], mask[:, :64])
    mask[0, 0] = torch.nan
    with pytest.raises(ValueError, match="mask of photo 1"):
        prepare_photos([noise(1, 64, 256, 3)], [mask], 64)


@pytest.fixture
def paste(monkeypatch):
    """Perfusion Paste Subject as the host runs it: every input is a list."""
    monkeypatch.setattr(PerfusionPasteSubject, "hidden", types.SimpleNamespace(unique_id=None))

    def run(images, masks, backgrounds, count=6, seed=0):
        return PerfusionPasteSubject.execute(images, backgrounds, [count], [seed], masks).args

    return run


def red_subject(height, width):
    """IMAGE and MASK of a red box in the middle of a white photo."""
    image, mask = torch.ones(1, height, width, 3), torch.zeros(1, height, width)
    rows, columns = slice(height // 3, 2 * height // 3), slice(width // 3, 2 * width // 3)
    image[0, rows, columns], mask[0, rows, columns] = torch.tensor([1.0, 0, 0]), 1
    return image, mask


def test_subjects_are_pasted_in_turn_onto_the_backgrounds(paste):
    (small, small_mask), (large, large_mask) = red_subject(48, 48), red_subject(60, 90)
    backgrounds = [torch.zeros(2, 30, 40, 3), torch.full((1, 90, 20, 4), 0.5)]
    images, masks = paste([small, large], [small_mask, large_mask], backgrounds)
    assert [tuple(image.shape) for image in images] == [(1, 48, 48, 3), (1, 60, 90, 3)] * 3
    shades = set()
    for image, mask in zip(images, masks, strict=True):
        assert mask.shape == image.shape[:3]
        torch.testing.assert_close(image[mask == 1], torch.tensor([1.0, 0, 0]).expand(int((mask == 1).sum()), 3))
        shades |= set(image[mask == 0].flatten().tolist())
    assert shades == {0.0, 0.5}
    prepared, covers = prepare_photos(images, masks, 32)  # the trainer takes them
    assert prepared.shape == (6, 32, 32, 3) and covers.shape == (6, 32, 32)


def test_huge_photos_become_pictures_of_1024_pixels(paste):
    image, mask = red_subject(1300, 1600)
    images, masks = paste([image], [mask], [torch.zeros(1, 48, 48, 3)], count=1)
    assert images[0].shape == (1, 1024, 1260, 3) and masks[0].shape == (1, 1024, 1260)
    assert 0.6 < masks[0].mean() / mask.mean() < 1.4


def test_the_seed_decides_where_subjects_are_pasted(paste):
    image, mask = red_subject(48, 48)
    first, again, other = (paste([image], [mask], [torch.zeros(1, 48, 48, 3)], seed=seed)[1] for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, other))


def test_an_alpha_channel_cuts_as_its_mask_does(paste):
    image, mask = red_subject(48, 48)
    backgrounds = [torch.zeros(1, 48, 48, 3)]
    plain, alpha = (
        paste([image], [mask], backgrounds),
        paste([torch.cat([image, mask[..., None]], -1)], [], backgrounds),
    )
    assert all(map(torch.equal, plain[0], alpha[0])) and all(map(torch.equal, plain[1], alpha[1]))


def test_a_mask_of_another_scale_cuts_the_same_subject(paste):
    image, mask = red_subject(48, 48)
    double = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for made, where in zip(*paste([image], [double], [torch.zeros(1, 48, 48, 3)]), strict=True):
        assert where.shape == (1, 48, 48) and 0.6 < where.sum() / mask.sum() < 1.4
        torch.testing.assert_close(made[where == 1], torch.tensor([1.0, 0, 0]).expand(int((where == 1).sum()), 3))


@pytest.mark.parametrize(
    ("mask", "background", "message"),
    [
        (None, 0.0, "There are no masks"),
        (torch.zeros(1, 8, 8), 0.0, "Photo 1: The mask is empty"),
        (torch.ones(1, 8, 8), 0.0, "Photo 1: The mask covers the whole photo"),
        (torch.full((1, 8, 8), torch.nan), 0.0, "Photo 1: The mask is empty"),
        (torch.eye(8)[None], torch.nan, "A background holds NaN"),
        (torch.zeros(1, 8, 16), 0.0, "Photo 1: The mask is empty"),  # Load Image's, without alpha
        (torch.ones(1, 8, 16), 0.0, "not the same shape"),
    ],
)
def test_what_cannot_be_pasted_is_named(paste, mask, background, message):
    with pytest.raises(ValueError, match=message):
        paste([torch.rand(1, 8, 8, 3)], [] if mask is None else [mask], [torch.full((1, 8, 8, 3), background)])


def test_pasting_can_be_cancelled(paste):
    image, mask = red_subject(48, 48)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        paste([image], [mask], [torch.zeros(1, 48, 48, 3)])
