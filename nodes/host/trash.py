"""The trash of a model folder: every deleted concept in a folder of its own, in which its files lie as they did.

``.trash/<token>/toys/my-teddy.safetensors`` and ``.trash/<token>/training/toys/my-teddy/<hash>.safetensors``. We never
empty it.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import folder_paths

from .files import FOLDER, TRAININGS, TRASH, model_folder, move, remove_empty, training_folder

_TOKEN = "[0-9a-f]{16}"


def move_to_trash(path: Path) -> str:
    """Moves a concept file and the states that belong to it; returns the token to ``restore`` them by. Raises OSError.

    The concept goes first and comes back last: whenever this is cut short, doing it again completes it.
    """
    home, states, token = model_folder(path), training_folder(path), secrets.token_hex(8)
    for file in (path, *states.glob("*.safetensors")):
        move(file, home / TRASH / token / file.relative_to(home), home)
    remove_empty(states)
    return token


def restore(token: str) -> Path:
    """Puts a concept back; returns its file. Raises ValueError when it is not in the trash or its name is taken."""
    if re.fullmatch(_TOKEN, token):
        for home in map(Path, folder_paths.get_folder_paths(FOLDER)):
            trashed = home / TRASH / token
            files = [file.relative_to(trashed) for file in trashed.rglob("*.safetensors")]
            files.sort(key=lambda file: file.parts[0] != TRAININGS)
            if files and files[-1].parts[0] != TRAININGS:
                return _put_back(trashed, files, home)
    raise ValueError("This is not in the trash any more.")


def _put_back(trashed: Path, files: list[Path], home: Path) -> Path:
    """files: the states, and last the concept, relative to ``trashed`` and ``home``."""
    concept = home / files[-1]
    if concept.exists():
        raise ValueError(f"There is a new {files[-1].as_posix()} in models/{FOLDER}. Move or delete it first.")
    for file in files:
        move(trashed / file, home / file, home)
        remove_empty((trashed / file).parent)
    return concept
