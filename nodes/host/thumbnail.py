"""The small picture in a concept file's metadata: WebP in base64."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode
from collections.abc import Mapping

from PIL import Image

KEY = "thumbnail"
_SIDE = 256  # pixels, of the longer side
_LARGEST = 12_000  # bytes as we write it, so that a file for SD1.x stays below 60 KB
_SMALLER = {"anima": 4_500, "cosmos-predict2": 4_500}  # for some base models, whose files stay below 140 KB
_READ, _READ_SIDE = 20_000, 1024  # bytes and pixels of those of others


def encoded(picture: Image.Image, base_model: str = "") -> str:
    """``picture``, scaled down, as it stands in the metadata of a concept: at most 16 KB of text."""
    picture, largest = picture.convert("RGB"), _SMALLER.get(base_model, _LARGEST)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    for quality in (85, 70, 50, 30, 10, 0):
        content = io.BytesIO()
        picture.save(content, "WEBP", quality=quality, method=6)
        if content.tell() <= largest:
            break
    return b64encode(content.getvalue()).decode()


def from_page(text: str, base_model: str = "") -> str:
    """What ``encoded`` makes of a picture that a page sends in base64. Raises ValueError for anything else."""
    try:
        with Image.open(io.BytesIO(b64decode(text, validate=True)), formats=["JPEG", "PNG", "WEBP"]) as picture:
            if max(picture.size) <= _READ_SIDE:
                return encoded(picture, base_model)
    except Exception:  # decoders raise nearly anything for damage
        pass
    raise ValueError(f"This is no JPEG, PNG or WebP picture of at most {_READ_SIDE} pixels a side.")


def decoded(metadata: Mapping[str, str]) -> bytes | None:
    """The WebP file in a concept's metadata; None where there is none, or something else than a small WebP."""
    text = metadata.get(KEY, "")
    if not 0 < len(text) <= _READ * 4 // 3 + 4:
        return None
    try:
        content = b64decode(text, validate=True)
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as picture:
            if max(picture.size) > _READ_SIDE:
                return None
            picture.load()
    except Exception:  # decoders raise nearly anything for damage
        return None
    return content
