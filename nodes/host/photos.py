"""Photos and masks as the host gives them, made ready for training."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ...perfusion_core import paste_subject
from ..photo_file import open_mask, open_photo
from ..photo_folder import Photo, PhotoFolder, is_mask_folder, photo_endings, read_folder
from .batches import masks_of, photos_of
from .files import input_path
from .listing import folders_below
from .progress import Progress
from .tokenizer import whole_word

# What Load Photos offers beside the input directory
DEMO_FOLDERS = {f"demo: {name}": Path(__file__).parents[1] / "demo_photos" / name for name in ("teddy", "tiger")}
SHORTER_SIDE = 1024  # pixels, of photos as they are loaded: what SDXL trains on
_LONGEST_CAPTION = 64 * 1024  # bytes
_SHORTER_SIDE = 1024  # pixels, at most, of pictures that are made; a hundred of them must fit into memory


def photo_folders() -> list[str]:
    """The folders below ComfyUI's input directory that hold pictures, relative to it, and those of the demo."""
    endings = photo_endings()
    listings = folders_below(folder_paths.get_input_directory())
    found = {folder for folder, listing in listings.items() if any(kind.lower() in endings for kind in listing.files)}
    masks = {folder for folder in found if is_mask_folder(os.path.basename(folder)) and _above(folder) in found}
    return [*sorted(found - masks), *DEMO_FOLDERS]


def photo_folder(name: str) -> PhotoFolder:
    """One of ``photo_folders``. Raises ValueError when it holds no pictures."""
    path = DEMO_FOLDERS.get(name) or input_path(name)
    if path is None or not path.is_dir():
        raise ValueError(f"There is no folder {name!r} in ComfyUI's input directory.")
    return read_folder(path)


def load_photo(photo: Photo, shorter_side: int = SHORTER_SIDE) -> tuple[Tensor, Tensor, list[str]]:
    """IMAGE (1, height, width, 3) and MASK (1, height, width), both in 0..1, white where the subject is; and remarks.

    The mask is the photo's own, else its alpha channel, else everything. shorter_side: in pixels, at most; 0: any.
    """
    picture, mask, pictures = open_photo(photo.path, shorter_side)
    name, remarks = photo.path.name, []
    if pictures > 1:
        remarks.append(f"{name} holds {pictures} pictures; the first is used.")
    if photo.mask:
        mask = open_mask(photo.mask, shorter_side)
    if mask and (doubt := _doubt(np.asarray(mask))):
        remarks.append(f"The mask of {name} {doubt}.")
    return _tensor(picture), _tensor(mask or Image.new("L", picture.size, 255)), remarks


def has_mask(photo: Photo) -> bool:
    """Whether ``load_photo`` has anything to make its mask of; not for what is no picture."""
    try:
        return photo.mask is not None or open_photo(photo.path, 1)[1] is not None
    except (ValueError, OSError):
        return False


def load_caption(photo: Photo) -> str:
    """The caption beside a picture, "" where there is none. Raises ValueError for no UTF-8, or too much."""
    path = photo.caption
    if path is None:
        return ""
    with path.open("rb") as opened:
        content = opened.read(_LONGEST_CAPTION + 1)
    if len(content) > _LONGEST_CAPTION:
        raise ValueError(f"{path.name} has more than 64 KB, too much for a caption. Shorten it or take it out.")
    try:
        return unicodedata.normalize("NFC", content.decode("utf-8-sig")).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"The caption {path.name} is not UTF-8 text. Save it as UTF-8 or take it out.") from error


def caption_texts(captions: Sequence[str], count: int, trigger: str, superclass: str) -> list[list[str]]:
    """Sentences to train each of ``count`` photos with, {} once in each for the trigger; none for one without caption.

    captions: none, or one per photo, with a sentence per line. The trigger's place is the trigger itself, else a {},
    else the superclass word; a trigger or {} that comes again becomes the superclass word. Raises ValueError for a
    sentence with none of them.
    """
    if not any(caption.strip() for caption in captions):
        return [[] for _ in range(count)]
    if len(captions) != count:
        raise ValueError(f"There are {len(captions)} captions for {count} photos. Give one per photo, or none.")
    own, word = whole_word(trigger), whole_word(superclass)
    texts = []
    for number, caption in enumerate(captions, 1):
        sentences = []
        for sentence in filter(None, map(str.strip, unicodedata.normalize("NFC", caption).splitlines())):
            place = re.search(own, sentence) or re.search(r"\{\}", sentence) or re.search(word, sentence)
            if place is None:
                raise ValueError(
                    f"The caption of photo {number} does not say where {trigger} is: {sentence[:200]!r}. "
                    f"Write {trigger}, {{}} or {superclass} there, or empty the caption."
                )
            parts = sentence[: place.start()], sentence[place.end() :]
            sentences.append(
                "{}".join(re.sub(own, lambda _: superclass, part).replace("{}", superclass) for part in parts)
            )
        texts.append(sentences)
    return texts


def collected(images: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Photos (height, width, 3 or 4) and their masks (height, width), or no masks.

    images: batches (b, height, width, 3), each of its own size, or what ``photos_of`` understands. masks: one mask
    (height, width) per photo of the photo's shape, any scale, or none: then a fourth channel of the images is the mask.
    Raises ValueError when they do not match, and for NaN.
    """
    photos, covers = photos_of(images), masks_of(masks)
    if not photos:
        raise ValueError("There are no photos. Connect 3 to 10 pictures of your subject.")
    if covers and len(covers) != len(photos):
        raise ValueError(f"There are {len(covers)} masks for {len(photos)} photos. Give one mask per photo, or none.")
    if not covers and any(photo.shape[-1] == 4 for photo in photos):
        covers = [photo[..., 3] if photo.shape[-1] == 4 else photo.new_ones(photo.shape[:2]) for photo in photos]
    for i, photo in enumerate(photos):
        if not torch.isfinite(photo).all():
            raise ValueError(f"Photo {i + 1} holds NaN. Look at the node that makes it.")
        if covers:
            _check_shape(covers[i], photo, i + 1)
    return photos, covers


def prepare_photos(images: Sequence[Tensor], masks: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor | None]:
    """Crops every photo to a square and scales it: IMAGE (n, size, size, 3), MASK (n, size, size) or None.

    images, masks: see ``collected``. The square is where most of the mask is, without masks the middle. Raises
    ValueError when they do not match or a mask is empty.
    """
    photos, covers = collected(images, masks)
    places = list(map(_place, covers)) or [0.5] * len(photos)
    pictures = [rearrange(photo[..., :3], "h w c -> 1 c h w") for photo in photos]
    squares = [_square(picture, place, size) for picture, place in zip(pictures, places, strict=True)]
    square_photos = rearrange(torch.cat(squares), "n c h w -> n h w c")
    if not covers:
        return square_photos, None
    pictures = [rearrange(cover, "h w -> 1 1 h w") for cover in covers]
    squares = [_square(picture, place, size) for picture, place in zip(pictures, places, strict=True)]
    square_covers = rearrange(torch.cat(squares), "n 1 h w -> n h w")
    for i, cover in enumerate(square_covers):
        if not cover.max() >= 0.01:  # NaN included
            raise ValueError(
                f"The mask of photo {i + 1} is empty, so there is nothing to learn from. Paint your subject white, "
                "take the photo out, or disconnect the masks (Load Image gives an empty mask for pictures without "
                "transparency)."
            )
    return square_photos, square_covers


def pasted_photos(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    backgrounds: Sequence[Tensor],
    count: int,
    seed: int,
    node_id: str | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """IMAGE (1, height, width, 3) and MASK (1, height, width) of ``count`` pictures, the photos' subjects in turn.

    Each is as large as its photo, or smaller with 1024 pixels on the shorter side.

    images, masks: see ``collected``; backgrounds: batches like those of images. Raises ValueError also where there are
    no masks, and for one that is empty or covers its photo; and the host's cancel.
    """
    photos, covers = collected(images, masks)
    places = [background[..., :3] for background in photos_of(backgrounds)]
    if not covers:
        raise ValueError("There are no masks, so nothing says what to cut out. Connect one mask per photo.")
    if not all(torch.isfinite(place).all() for place in places):
        raise ValueError("A background holds NaN. Look at the node that makes it.")
    subjects = [_limited(photo[..., :3], cover) for photo, cover in zip(photos, covers, strict=True)]
    generator, progress, pictures, where = torch.Generator().manual_seed(seed), Progress(count, node_id), [], []
    for i in range(count):
        progress.update(i)
        number = i % len(subjects)
        background = places[int(torch.randint(len(places), (), generator=generator))]
        try:
            picture, cover = paste_subject(*subjects[number], background.cpu(), generator)
        except ValueError as error:
            raise ValueError(
                f"Photo {number + 1}: {error} Paint the subject white and all else black, or take the photo out."
            ) from None
        pictures.append(picture[None])
        where.append(cover[None])
    return pictures, where


def _limited(photo: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A photo (height, width, 3), with _SHORTER_SIDE if it has more, and its mask, of that size, on the CPU."""
    shrink = min(1, _SHORTER_SIDE / min(photo.shape[:2]))
    size = [round(side * shrink) for side in photo.shape[:2]]
    pictures = rearrange(photo, "h w c -> 1 c h w"), rearrange(mask.nan_to_num(), "h w -> 1 1 h w")
    photo, mask = (F.interpolate(x, size=size, mode="bilinear", antialias=True).cpu() for x in pictures)
    return rearrange(photo, "1 c h w -> h w c"), rearrange(mask, "1 1 h w -> h w")


def _check_shape(mask: Tensor, photo: Tensor, number: int) -> None:
    if not mask.any():
        return  # that it is empty is what there is to say of it, whatever its shape
    mask_ratio, photo_ratio = mask.shape[1] / mask.shape[0], photo.shape[1] / photo.shape[0]
    if abs(mask_ratio / photo_ratio - 1) > 0.02:
        raise ValueError(
            f"The mask of photo {number} is {mask.shape[1]}x{mask.shape[0]}, the photo {photo.shape[1]}x"
            f"{photo.shape[0]}: not the same shape. Make the mask from this photo, before any crop."
        )


def _place(mask: Tensor) -> float:
    """Where along its longer side, from 0 to 1, the square with most of a mask (height, width) is; 0.5 if it may be."""
    side, length = sorted(mask.shape)
    spare = length - side
    if spare == 0:
        return 0.5
    lines = mask.cpu().double().clamp(0, 1).nan_to_num().sum(mask.shape.index(side))  # (length,)
    held = lines.unfold(0, side, 1).sum(1)  # (spare + 1,)
    most = held.max() * (1 - 1e-6)  # equal but for the rounding of who made the mask
    if held[spare // 2 : (spare + 1) // 2 + 1].min() >= most:
        return 0.5
    return min((held >= most).nonzero()[:, 0].tolist(), key=lambda start: abs(2 * start - spare)) / spare


def _square(picture: Tensor, place: float, size: int) -> Tensor:
    """The square at a place along the longer side of (1, channels, height, width), scaled to ``size``."""
    height, width = picture.shape[-2:]
    if place != 0.5:  # the host finds the middle itself
        start = round(place * abs(width - height))
        picture = picture.narrow(-1 if width > height else -2, start, min(height, width))
    method = "area" if min(picture.shape[-2:]) > size else "bicubic"
    return comfy.utils.common_upscale(picture, size, size, method, "center").clamp(0, 1)  # bicubic overshoots


def _above(folder: str) -> str:
    return os.path.dirname(folder) or "."


def _doubt(mask: np.ndarray) -> str | None:
    """What is odd about a mask (height, width) in 0..255; None for a sound one."""
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if mask.max() == 0:
        return "is black all over"
    if mask.min() > 250:
        return "covers the whole photo, so that the background is learned, too"
    if edge.min() > 250:
        return "is white all along the edge: black and white may be the wrong way round"
    return None


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
