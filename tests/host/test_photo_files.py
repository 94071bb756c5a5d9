"""Photos and masks in the files that cameras, phones and programs write."""

import struct
import zlib

import numpy as np
import pytest
import torch
from comfyui_perfusion.nodes.host.photos import load_photo
from comfyui_perfusion.nodes.photo_file import PhotoError, open_mask, open_photo, photo_endings
from comfyui_perfusion.nodes.photo_folder import Photo, read_folder
from PIL import Image, PngImagePlugin

RED, BLUE = (255, 0, 0), (0, 0, 255)
WHITE, BLACK = 255, 0


def halves(mode="RGB", left=RED, right=BLUE, size=(8, 6)):
    picture = Image.new(mode, size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


def put(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def pixels(path):
    return np.asarray(open_photo(path, 0)[0], dtype=np.int32)


def columns(mask):
    """Whether the left and the right half are subject."""
    levels = np.asarray(mask, dtype=np.int32)
    return levels[:, :4].min() > 200, levels[:, 4:].max() > 50


# Kinds of files


@pytest.mark.parametrize(
    "ending",
    "png apng jpg jpeg jpe jfif JPG webp bmp dib gif tif tiff TIFF avif heic heif HIF jp2 tga ppm pcx qoi dds".split(),
)
def test_every_kind_that_pillow_opens_is_a_photo(tmp_path, ending):
    kinds = {"jpe": "JPEG", "jfif": "JPEG", "heic": "HEIF", "hif": "HEIF", "apng": "PNG"}
    size = (32, 24)
    photo_endings()  # knows of HEIF from then on
    path = put(tmp_path / f"a.{ending}", halves(size=size), format=kinds.get(ending.lower()))
    (photo,) = read_folder(tmp_path).photos
    found = pixels(photo.path)
    assert found.shape == (24, 32, 3) and photo.path == path
    assert abs(found[12, 4] - RED).max() < 25 and abs(found[12, 28] - BLUE).max() < 25


def test_nothing_that_another_program_would_have_to_draw_is_opened(tmp_path):
    assert not {".eps", ".ps", ".wmf", ".mpg", ".pdf", ".h5"} & photo_endings()
    put(tmp_path / "a.eps", halves())
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(PhotoError, match=r"a\.jpg is not a picture"):
        open_photo(tmp_path / "a.jpg", 0)


def test_heic_under_another_name_is_called_so_where_it_cannot_be_opened(tmp_path, monkeypatch):
    photo_endings()
    put(tmp_path / "a.heic", halves(size=(32, 24))).rename(tmp_path / "a.jpg")
    assert pixels(tmp_path / "a.jpg").shape == (24, 32, 3)
    monkeypatch.setattr("comfyui_perfusion.nodes.photo_file._formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(PhotoError, match=r"a\.jpg is a HEIC picture.*Install pillow-heif"):
        open_photo(tmp_path / "a.jpg", 0)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_several_pictures_in_a_file_the_first_is_used_and_it_is_said(tmp_path, ending):
    path = put(
        tmp_path / f"a.{ending}",
        halves(),
        save_all=True,
        append_images=[halves(left=BLUE), halves(right=RED)],
        lossless=True,
    )
    image, _, remarks = load_photo(Photo(path, None, None))
    assert (image[0, 0, 0] - torch.tensor([1.0, 0, 0])).abs().max() < 0.1
    assert remarks == [f"a.{ending} holds 3 pictures; the first is used."]


# Odd files


def test_large_texts_and_colour_profiles_do_not_matter(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 3_000_000, zip=True)
    texts.add_itxt("prompt", "é" * 2_000_000, zip=True)
    before = PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS
    assert pixels(put(tmp_path / "a.png", halves(), pnginfo=texts))[0, 0].tolist() == list(RED)
    assert pixels(put(tmp_path / "b.png", halves(), icc_profile=bytes(3_000_000)))[0, 0].tolist() == list(RED)
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS)


BAD_EXIF = [
    b"Exif\0\0" + junk for junk in (b"", b"junk", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40, b"II*\0\xff\xff\xff\xff")
]


@pytest.mark.parametrize("exif", BAD_EXIF, ids=range(len(BAD_EXIF)))
@pytest.mark.parametrize("ending", ["png", "webp", "jpg", "tif"])
def test_exif_that_cannot_be_read_counts_as_none(tmp_path, ending, exif):
    if ending == "tif":
        exif = exif[6:] if exif[6:10] in (b"MM\0*", b"II*\0") else b""
    path = put(tmp_path / f"a.{ending}", halves(size=(32, 24)), **({"exif": exif} if ending != "tif" else {}))
    assert pixels(path).shape == (24, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
def test_photos_are_turned_upright(tmp_path, ending, orientation):
    """Each of the four corners has its own brightness."""
    corners = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((24, 32), np.uint8))
    turns = [lambda x: x, np.fliplr, lambda x: np.rot90(x, 2), np.flipud, np.transpose, lambda x: np.rot90(x, -1),
             lambda x: np.rot90(x, 2).T, np.rot90]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path / f"a.{ending}", Image.fromarray(corners).convert("RGB"), exif=exif)
    want = turns[orientation - 1](corners)
    found = pixels(path)[..., 0]
    assert found.shape == want.shape
    assert np.abs(found - want)[6:-6, 6:-6].mean() < 6


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_turn_that_there_is_not_counts_as_none(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(put(tmp_path / "a.jpg", halves(), exif=exif)).shape == (6, 8, 3)


GREY16 = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1337


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_turned_upright_and_keeps_its_transparency(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"transparency": int(GREY16[2, 3])} if ending == "png" else {}
    path = put(tmp_path / f"a.{ending}", Image.fromarray(GREY16), exif=exif, **options)
    picture, alpha, _ = open_photo(path, 0)
    want = np.rot90(GREY16, -1)
    assert np.abs(np.asarray(picture)[..., 0] - want / 257.0).max() <= 1
    if ending == "png":
        assert np.array_equal(np.asarray(alpha) == 0, want == GREY16[2, 3])


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (np.full((6, 8), 0.5, np.float32), 127),
        (np.full((6, 8), 127.0, np.float32), 127),
        (np.full((6, 8), 2**31 - 1, np.int32), 127),
        (np.full((6, 8), 32768, np.int32), 127),
    ],
)
def test_grey_in_large_numbers_keeps_its_brightness(tmp_path, values, want):
    assert abs(pixels(put(tmp_path / "a.tif", Image.fromarray(values))) - want).max() <= 1


@pytest.mark.parametrize(
    "picture", [halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), halves("YCbCr", (76, 84, 255), (29, 255, 107))]
)
def test_colours_of_printers_and_video_become_rgb(tmp_path, picture):
    found = pixels(put(tmp_path / "a.tif", picture))
    assert abs(found[0, 0] - RED).max() < 5 and abs(found[0, 7] - BLUE).max() < 5


def png_of(width, height):
    """The header of a PNG of this size: what decides is known before anything is decoded."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (100_000, 100_000)])
def test_too_many_pixels_are_an_error_with_the_name(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png_of(*size))
    with pytest.raises(PhotoError, match=r"a\.png has more than 268 megapixels. Make it smaller"):
        open_photo(tmp_path / "a.png", 1024)


def test_a_phones_largest_photo_loads(tmp_path):
    """200 million pixels; a JPEG is decoded at an eighth, so that this takes a second."""
    path = put(tmp_path / "a.jpg", halves("L", WHITE, BLACK, size=(16_320, 12_240)), quality=30)
    picture, _, _ = open_photo(path, 512)
    assert picture.size == (683, 512)
    assert picture.getpixel((100, 256)) == (255, 255, 255) and picture.getpixel((600, 256)) == (0, 0, 0)


# Size


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("upright", [False, True])
def test_large_photos_and_masks_are_made_smaller_alike(tmp_path, ending, upright):
    size = (300, 400) if upright else (400, 300)
    photo = put(tmp_path / f"a.{ending}", halves(size=size))
    put(tmp_path / "mask/a.png", halves("L", WHITE, BLACK, size=size))
    (found,) = read_folder(tmp_path).photos
    image, mask, _ = load_photo(found, 64)
    assert image.shape[:3] == mask.shape == ((1, 85, 64) if upright else (1, 64, 85))
    assert load_photo(found)[0].shape[1:3] == load_photo(found, 0)[0].shape[1:3] == (size[1], size[0])
    half = image.shape[2] // 2
    assert mask[0, :, : half - 2].min() > 0.95 and mask[0, :, half + 2 :].max() < 0.05
    exact = np.asarray(Image.open(photo).resize((image.shape[2], image.shape[1]), Image.Resampling.LANCZOS)) / 255
    assert np.abs(image[0].numpy() - exact).mean() < 0.02


# Masks


def tRNS():
    palette = halves("P", 1, 0)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.info["transparency"] = 0
    return palette


def label_palette():
    picture = halves("P", 1, 0)
    picture.putpalette([0, 0, 0, 128, 0, 0])
    return picture


MASKS = {
    "white on black": halves("L", WHITE, BLACK),
    "RGB": halves("RGB", (255, 255, 255), (0, 0, 0)),
    "1 bit": halves("1", 1, 0),
    "opaque alpha": halves("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
    "a dark subject on transparent white": halves("RGBA", (20, 10, 10, 255), (255, 255, 255, 0)),
    "a white brush on a transparent layer": halves("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)),
    "a black brush on a transparent layer": halves("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
    "LA": halves("LA", (255, 255), (255, 0)),
    "palette with tRNS": tRNS(),
    "labels 0 and 1": halves("L", 1, 0),
    "labels 0 and 2": halves("L", 2, 0),
    "labels of a palette": label_palette(),
    "16 bit": Image.fromarray(np.asarray(halves("L", WHITE, BLACK), np.uint16) * 257),
    "16 bit labels": Image.fromarray(np.asarray(halves("L", 1, 0), np.uint16)),
    "semitransparent": halves("RGBA", (9, 9, 9, 128), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_alpha_channel_of_a_mask_counts_unless_it_is_the_same_everywhere_else_luminance(tmp_path, name):
    mask = open_mask(put(tmp_path / "a.png", MASKS[name]), 0)
    assert mask.mode == "L" and mask.size == (8, 6)
    assert columns(mask) == (True, False)


def test_soft_masks_stay_soft(tmp_path):
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 32, dtype=np.uint8), (6, 1)))
    levels = np.asarray(open_mask(put(tmp_path / "a.png", ramp), 0))[0].tolist()
    assert levels == [round(step * 255 / 7) for step in range(8)]


@pytest.mark.parametrize("alpha", [0, 255])
def test_an_alpha_channel_that_is_the_same_everywhere_is_no_mask_of_a_photo(tmp_path, alpha):
    path = put(tmp_path / "a.png", halves("RGBA", (*RED, alpha), (*BLUE, alpha)))
    image, mask, remarks = load_photo(Photo(path, None, None))
    assert image[0, 0, 0].tolist() == [1, 0, 0] and mask.min() == 1 and remarks == []


@pytest.mark.parametrize(
    ("mask", "doubt"),
    [
        (Image.new("L", (8, 6), 255), "covers the whole photo"),
        (Image.new("L", (8, 6), 0), "is black all over"),
        (Image.new("RGBA", (8, 6), (255, 255, 255, 255)), "covers the whole photo"),
        ("inverted", "is white all along the edge"),
        (halves("L", WHITE, BLACK), None),
    ],
)
def test_a_mask_that_is_odd_is_said(tmp_path, mask, doubt):
    if mask == "inverted":
        mask = Image.new("L", (8, 6), 255)
        mask.paste(0, (2, 2, 6, 4))
    put(tmp_path / "a.png", halves())
    put(tmp_path / "mask/a.png", mask)
    _, _, remarks = load_photo(read_folder(tmp_path).photos[0])
    assert [f"The mask of a.png {doubt}" in remark for remark in remarks] == ([True] if doubt else [])


def test_a_photo_keeps_its_colours_under_transparency_when_it_is_made_smaller(tmp_path):
    path = put(tmp_path / "a.png", halves("RGBA", (*RED, 255), (*BLUE, 0), size=(64, 48)))
    picture, alpha, _ = open_photo(path, 12)
    assert picture.getpixel((15, 5)) == BLUE and alpha.getpixel((15, 5)) == 0
