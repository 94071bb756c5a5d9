"""Photos and masks as the host gives them, made ready for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def photo_folders() -> list[str]:
    """The folders below ComfyUI's input directory that hold pictures, relative to it."""
    home = Path(folder_paths.get_input_directory())
    folders = {path.parent for path in home.rglob("*") if _is_picture(path) and path.parent.name != "mask"}
    return sorted(folder.relative_to(home).as_posix() for folder in folders)


def photo_files(folder: str) -> list[Path]:
    """The pictures of a folder below the input directory, by name. Raises ValueError when there are none."""
    home = Path(folder_paths.get_input_directory()).resolve()
    path = (home / folder).resolve()
    if not path.is_relative_to(home) or not path.is_dir():
        raise ValueError(f"There is no folder {folder!r} in ComfyUI's input directory.")
    found = sorted(filter(_is_picture, path.iterdir()))
    if not found:
        raise ValueError(f"The folder {folder!r} holds no pictures ({', '.join(sorted(_KINDS))}).")
    return found


def load_photo(file: Path) -> tuple[Tensor, Tensor]:
    """IMAGE (1, height, width, 3) and MASK (1, height, width) of one picture, both in 0..1, white where the subject is.

    The mask is mask/<same name> beside the picture, else the picture's alpha channel, else everything.
    """
    picture = _open(file)
    masks = [mask for mask in (file.parent / "mask").glob("*") if mask.stem == file.stem and _is_picture(mask)]
    if masks:
        mask = _open(min(masks)).convert("L")
    elif picture.has_transparency_data:
        mask = picture.convert("RGBA").getchannel("A")
    else:
        mask = Image.new("L", picture.size, 255)
    return _tensor(picture.convert("RGB")), _tensor(mask)


def prepare_photos(images: Sequence[Tensor], masks: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor | None]:
    """Crops every photo to its middle square and scales it: IMAGE (n, size, size, 3), MASK (n, size, size) or None.

    images: batches (b, height, width, 3), each of its own size. masks: none, or one mask (height, width) per photo of
    the photo's shape, any scale. Raises ValueError when they do not match or a mask is empty.
    """
    photos = [photo for batch in images for photo in batch.float()]
    covers = [mask for batch in masks for mask in (batch if batch.ndim == 3 else batch[None]).float()]
    if not photos:
        raise ValueError("There are no photos. Connect 3 to 10 pictures of your subject.")
    if covers and len(covers) != len(photos):
        raise ValueError(f"There are {len(covers)} masks for {len(photos)} photos. Give one mask per photo, or none.")
    for i, photo in enumerate(photos):
        if not torch.isfinite(photo).all():
            raise ValueError(f"Photo {i + 1} holds NaN. Look at the node that makes it.")
        if covers:
            _check_shape(covers[i], photo, i + 1)
    squares = torch.cat([_square(photo.movedim(-1, 0)[None, :3], size) for photo in photos]).movedim(1, -1)
    if not covers:
        return squares, None
    square_covers = torch.cat([_square(cover[None, None], size) for cover in covers])[:, 0]
    for i, cover in enumerate(square_covers):
        if not cover.max() >= 0.01:  # NaN included
            raise ValueError(
                f"The mask of photo {i + 1} is empty in the photo's middle square, so there is nothing to learn from. "
                "Paint your subject white, crop the photo around it, or disconnect the masks (Load Image gives an "
                "empty mask for pictures without transparency)."
            )
    return squares, square_covers


def _check_shape(mask: Tensor, photo: Tensor, number: int) -> None:
    mask_ratio, photo_ratio = mask.shape[1] / mask.shape[0], photo.shape[1] / photo.shape[0]
    if abs(mask_ratio / photo_ratio - 1) > 0.02:
        raise ValueError(
            f"The mask of photo {number} is {mask.shape[1]}x{mask.shape[0]}, the photo {photo.shape[1]}x"
            f"{photo.shape[0]}: not the same shape. Make the mask from this photo, before any crop."
        )


def _square(picture: Tensor, size: int) -> Tensor:
    """The middle square of (1, channels, height, width), scaled to ``size``."""
    method = "area" if min(picture.shape[-2:]) > size else "bicubic"
    return comfy.utils.common_upscale(picture, size, size, method, "center").clamp(0, 1)  # bicubic overshoots


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _KINDS and path.is_file()


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as picture:
            picture.load()
            if picture.mode.startswith("I"):  # 16 bits of grey
                picture = Image.fromarray((np.asarray(picture, dtype=np.float32) / 257).astype(np.uint8))
            return ImageOps.exif_transpose(picture)
    except OSError as error:
        raise ValueError(
            f"{file.name} is not a picture that can be read ({error}). Take it out of the folder."
        ) from error


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
