"""What folders hold: read once, and again when a folder's time has changed, as the host does with its models.

Links are followed, to files and to folders; hidden and system files are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import folder_paths

from ..photo_folder import is_hidden

_COARSEST = 3_000_000_000  # ns; file systems keep times in steps of up to two seconds


@dataclass(frozen=True)
class Listing:
    time: int  # the folder's, in ns; -1: so new that it may yet change unseen
    folders: tuple[str, ...]
    files: dict[str, frozenset[str]]  # names without ending, by their ending as it is written

    def names(self, endings: Collection[str]) -> Iterator[str]:
        """Of the files with such endings, which are in lower case."""
        for ending, stems in self.files.items():
            if ending.lower() in endings:
                yield from (stem + ending for stem in stems)

    def stems(self, endings: Collection[str]) -> set[str]:
        return set().union(*(stems for ending, stems in self.files.items() if ending.lower() in endings))


_known: dict[str, dict[str, Listing]] = {}  # of each home, by the folder's path below it


def folders_below(home: str) -> dict[str, Listing]:
    """``home`` (".") and every folder below it, by its path from there with /. A link back to above is not entered."""
    asked = f"{__name__} {home}"
    if (listings := folder_paths.cache_helper.get(asked)) is None:  # the host asks many times for one page
        listings = _known[home] = dict(_walk(home, ".", _known.get(home, {}), ()))
        folder_paths.cache_helper.set(asked, listings)
    return listings


def files_below(home: str, endings: Collection[str]) -> Iterator[str]:
    """The files with such endings at and below ``home``, by their paths from there with /."""
    for folder, listing in folders_below(home).items():
        yield from (name if folder == "." else f"{folder}/{name}" for name in listing.names(endings))


def _walk(
    home: str, folder: str, known: dict[str, Listing], above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, Listing]]:
    path = os.path.join(home, folder)
    try:
        stat = os.stat(path)
        if stat.st_ino and (stat.st_dev, stat.st_ino) in above:  # some network drives number nothing
            return
        listing = known.get(folder)
        if listing is None or listing.time != stat.st_mtime_ns:
            listing = _read(path, stat.st_mtime_ns)
    except OSError:  # gone, or not ours to read
        return
    yield folder, listing
    for name in listing.folders:
        below = name if folder == "." else f"{folder}/{name}"
        yield from _walk(home, below, known, (*above, (stat.st_dev, stat.st_ino)))


def _read(path: str, changed: int) -> Listing:
    folders: list[str] = []
    files: dict[str, set[str]] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():
                stem, ending = os.path.splitext(entry.name)
                files.setdefault(ending, set()).add(stem)
    settled = time.time_ns() - changed > _COARSEST
    by_ending = {ending: frozenset(stems) for ending, stems in files.items()}
    return Listing(changed if settled else -1, tuple(sorted(folders)), by_ending)
