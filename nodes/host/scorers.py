"""The model folder of image-text models, models/open_clip. Names from outside are untrusted."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from .files import register_folder

FOLDER = "open_clip"
_CONFIG = "open_clip_config.json"  # a folder with it is one model
_WEIGHTS = (".safetensors", ".pt", ".bin")


def register() -> None:
    register_folder(FOLDER, {*_WEIGHTS, ".json"})


def scorer_names() -> list[str]:
    """Models that can be chosen, relative to the model folder: folders in open_clip's layout, and single files."""
    files = folder_paths.get_filename_list(FOLDER)
    folders = {os.path.dirname(file) for file in files if os.path.basename(file) == _CONFIG} - {""}
    single = {file for file in files if file.lower().endswith(_WEIGHTS) and os.path.dirname(file) not in folders}
    return sorted(folders | single)


def scorer_path(name: str) -> Path:
    """The folder or file of a chosen model. Raises ValueError when it is none of ``scorer_names``."""
    if name in scorer_names():
        if file := folder_paths.get_full_path(FOLDER, name):
            return Path(file)
        if config := folder_paths.get_full_path(FOLDER, os.path.join(name, _CONFIG)):
            return Path(config).parent
    raise ValueError(f"There is no model {name!r} in models/{FOLDER}. Put it there and refresh (R).")
