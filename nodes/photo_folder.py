"""A folder of photos: which of its files are photos, and which mask and caption belongs to each.

It needs neither ComfyUI nor torch, so that scripts/ reads folders by the same rules.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .photo_file import OTHER_KINDS, how_to_open, photo_endings

CAPTIONS = (".txt", ".caption")  # the first one counts
_SYSTEM = {  # of Macs, Windows and network drives
    "__macosx", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "network trash folder", "temporary items",
}  # fmt: skip
_MASK_FOLDER = r"(?i)\W*_*masks?\W*_*"
_MASK_SUFFIX = r"(?i)[-_. ]+mask(s|label)?$"
_SHOWN = 5  # names in a sentence


@dataclass(frozen=True)
class Photo:
    path: Path
    mask: Path | None
    caption: Path | None


@dataclass(frozen=True)
class PhotoFolder:
    photos: tuple[Photo, ...]  # by name
    remarks: tuple[str, ...]  # what its owner should know: files that are left out, or belong to no photo

    @property
    def files(self) -> list[Path]:
        """Photos, masks and captions, each once."""
        every = [file for photo in self.photos for file in (photo.path, photo.mask, photo.caption) if file]
        return list(dict.fromkeys(every))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def is_mask_folder(name: str) -> bool:
    return re.fullmatch(_MASK_FOLDER, name) is not None


def is_photo(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in photo_endings()


def read_folder(folder: Path) -> PhotoFolder:
    """What a folder holds. Raises ValueError when it has no photos or cannot be read.

    A mask is the picture of a photo's name in a subfolder mask or masks, or the one beside the photo with -mask, _mask
    or -masklabel after its name. A caption is the text file of a photo's name. Names are the same in upper and lower
    case, however accents are written, and with the photo's ending before their own.
    """
    try:
        files, folders = _entries(folder)
        masks = [file for place in folders if is_mask_folder(place.name) for file in _entries(place)[0]]
    except OSError as error:
        raise ValueError(f"The folder {folder.name!r} cannot be read ({error.strerror}).") from error
    pictures = [file for file in files if is_photo(file.name)]
    names = {key for file in pictures for key in _keys(file)}
    beside = [file for file in pictures if _without_suffix(file) in names]
    masks = [file for file in masks if is_photo(file.name)] + beside
    captions = [file for file in files if file.suffix.lower() in CAPTIONS]
    captions.sort(key=lambda file: CAPTIONS.index(file.suffix.lower()))
    by_mask, by_caption = _by_key(masks), _by_key(captions)
    photos = tuple(
        Photo(file, _partner(file, by_mask), _partner(file, by_caption)) for file in pictures if file not in beside
    )
    other = [file for file in files if file.suffix.lower() in OTHER_KINDS and not is_photo(file.name)]
    if not photos:
        found = [f"It holds {listed(files)}: {advice}" for advice, files in _by_advice(other).items()]
        raise ValueError(" ".join([f"The folder {folder.name!r} holds no pictures that can be opened.", *found]))
    return PhotoFolder(photos, tuple(_remarks(photos, masks, captions, other)))


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders in a folder that are the user's, each by name."""
    with os.scandir(folder) as entries:
        found = sorted(
            ((Path(entry.path), entry.is_dir(), entry.is_file()) for entry in entries), key=lambda one: one[0]
        )
    seen = [one for one in found if not is_hidden(one[0].name)]
    return [path for path, _, is_file in seen if is_file], [path for path, is_dir, _ in seen if is_dir]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _keys(photo: Path) -> tuple[str, str]:
    return _key(photo.stem), _key(photo.name)


def _without_suffix(mask: Path) -> str | None:
    """The key of what a file is the mask of, if its name ends like a mask's."""
    end = re.search(_MASK_SUFFIX, mask.stem)
    return _key(mask.stem[: end.start()]) if end else None


def _by_key(files: Iterable[Path]) -> Mapping[str, list[Path]]:
    found = defaultdict(list)
    for file in files:
        found[_key(file.stem)].append(file)
        if shorter := _without_suffix(file):
            found[shorter].append(file)
    return found


def _partner(photo: Path, by_key: Mapping[str, list[Path]]) -> Path | None:
    """The file that belongs to a photo; of several the one that is written the same."""
    for key in _keys(photo):
        if key in by_key:
            return min(by_key[key], key=lambda file: file.stem != photo.stem)
    return None


def _remarks(
    photos: Sequence[Photo], masks: Sequence[Path], captions: Sequence[Path], other: Sequence[Path]
) -> Iterator[str]:
    for advice, files in _by_advice(other).items():
        yield f"Left out, for they cannot be opened here: {listed(files)}. {advice}"
    names = {key for photo in photos for key in _keys(photo.path)}
    for files, kind in ((masks, "mask"), (captions, "caption")):
        if stray := [file for file in files if _key(file.stem) not in names and _without_suffix(file) not in names]:
            yield f"These belong to no photo: {listed(stray)}. Give each {kind} the name of its photo."
    if masks and (bare := [photo.path for photo in photos if photo.mask is None]):
        yield f"These have no mask, while others have: {listed(bare)}."
    if lone := [photo.path for photo in photos if _without_suffix(photo.path)]:
        yield f"These count as photos, for no photo has the name before the ending of a mask: {listed(lone)}."


def _by_advice(files: Iterable[Path]) -> Mapping[str, list[Path]]:
    found = defaultdict(list)
    for file in files:
        found[how_to_open(file.suffix.lower())].append(file)
    return found


def listed(files: Sequence[Path]) -> str:
    names = [file.name for file in files[:_SHOWN]]
    return ", ".join(names) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
