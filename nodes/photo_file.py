"""Photos and masks in files of every kind that the installed Pillow opens. It needs neither ComfyUI nor torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

MOST_PIXELS = 2**28  # of a photo: phones make up to 200 million
_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # nothing reads them, or another program runs
_HEIF = {".heic", ".heics", ".heif", ".heifs", ".hif"}
_AVIF = {".avif", ".avifs"}
# Pictures that few installations open or none
OTHER_KINDS = _HEIF | _AVIF | set(
    ".3fr .arw .cr2 .cr3 .dng .erf .exr .hdr .jxl .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srw .svg .x3f .xcf"
    .split()
)  # fmt: skip
_ANIMATED = {"AVIF", "GIF", "HEIF", "PNG", "TIFF", "WEBP"}  # with further pictures; a phone's MPO has none of ours
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(ValueError):
    """A file that cannot be used as a photo or mask; the message names it and says what to do."""


@functools.cache
def _formats() -> tuple[str, ...]:
    with contextlib.suppress(ImportError):
        import pillow_heif  # for those who have it

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in _NOT_PICTURES)


@functools.cache
def photo_endings() -> frozenset[str]:
    """The endings, such as .jpg, of files that the installed Pillow opens."""
    known = {*_formats(), "MPO"}  # which is opened as a JPEG
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in known)


def how_to_open(ending: str) -> str:
    """What the owner of a picture of ``OTHER_KINDS`` can do."""
    if ending in _HEIF:
        return "Install pillow-heif with the Python that runs ComfyUI and restart, or save it as JPEG."
    if ending in _AVIF:
        return "Update Pillow to 11.3 or newer with the Python that runs ComfyUI and restart, or save it as JPEG."
    return "Save it as JPEG or PNG."


def open_photo(path: Path, shorter_side: int) -> tuple[Image.Image, Image.Image | None, int]:
    """A photo as RGB, its mask (L) if it has transparency, and how many pictures the file holds.

    Upright, and with at most ``shorter_side`` pixels on the shorter side (0: as it is). An alpha channel that is the
    same everywhere says nothing. Raises PhotoError.
    """
    picture, scale, count = _opened(path, shorter_side)
    alpha = _varying_alpha(picture)
    return _smaller(picture.convert("RGB"), scale), alpha and _smaller(_stretched(alpha), scale), count


def open_mask(path: Path, shorter_side: int) -> Image.Image:
    """A mask (L), in size and turn as a photo: its alpha channel unless that is the same everywhere, else luminance.

    Its brightest pixel becomes white, so that a map of the labels 0 and 1 is a mask.
    """
    picture, scale, _ = _opened(path, shorter_side, stretch=True)
    return _smaller(_stretched(_varying_alpha(picture) or picture.convert("RGB").convert("L")), scale)


def _opened(path: Path, shorter_side: int, stretch: bool = False) -> tuple[Image.Image, float, int]:
    """A picture as RGB or RGBA, upright; what it is still to be scaled by; how many pictures its file holds."""
    try:
        # from an open file, for Pillow maps a named one, and then turns TIFFs wrongly
        with _limits(), path.open("rb") as file, Image.open(file, formats=_formats()) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise PhotoError(_too_large(path))
            side = min(picture.size)
            scale = min(1, shorter_side / side) if shorter_side else 1
            picture.draft(None, [2 * round(scale * length) for length in picture.size])  # only JPEG can: less to decode
            count = getattr(picture, "n_frames", 1) if picture.format in _ANIMATED else 1
            picture.load()
            upright = _plain(picture, stretch)
            if (turn := _TURNS.get(_orientation(picture))) is not None:
                upright = upright.transpose(turn)
            return upright, scale * side / min(upright.size), count
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise PhotoError(_too_large(path)) from None
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise PhotoError(_unreadable(path, error)) from error


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Pillow's guards let phones' largest photos pass, and the large texts that ComfyUI writes into its pictures."""
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = MOST_PIXELS, PngImagePlugin.MAX_TEXT_MEMORY
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


def _too_large(path: Path) -> str:
    return (
        f"{path.name} has more than {MOST_PIXELS // 10**6} megapixels. Make it smaller, or take it out of the folder."
    )


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if isinstance(error, UnidentifiedImageError) and file.read(12)[4:11] in (b"ftyphei", b"ftyphev", b"ftypmif"):
            return f"{path.name} is a HEIC picture, whatever its name says. {how_to_open('.heic')}"
    return f"{path.name} is not a picture that can be read ({error}). Take it out of the folder, or save it anew."


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises nearly anything for EXIF that is damaged; it counts as none
        return 1


def _plain(picture: Image.Image, stretch: bool) -> Image.Image:
    """RGB or RGBA; with ``stretch``, the highest of numbers that are no bytes becomes white."""
    if picture.mode[0] not in "IF":  # I;16, I and F are grey in larger numbers
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    highest = max(float(values.max()), 1e-9)
    likely = (1, 255, 65535) if picture.mode == "F" else (65535, 2**32)
    white = highest if stretch else next((white for white in likely if highest <= white), highest)
    grey = Image.fromarray((values / white * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if (clear := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _varying_alpha(picture: Image.Image) -> Image.Image | None:
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    return None if alpha is None or alpha.getextrema()[0] == alpha.getextrema()[1] else alpha


def _stretched(mask: Image.Image) -> Image.Image:
    highest = mask.getextrema()[1]
    return mask.point([min(255, round(255 * level / (highest or 1))) for level in range(256)])


def _smaller(picture: Image.Image, scale: float) -> Image.Image:
    if scale >= 1:
        return picture
    size = [max(1, round(scale * length)) for length in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
