"""Image-text models in the host's folders models/open_clip and models/clip. Names from outside are untrusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from safetensors import safe_open

from ...perfusion_core import openclip
from .files import register_folder, stamp

FOLDER = "open_clip"
_SHARED = "clip"  # mostly text encoders alone
_AUTO = "auto"
_CONFIG = "open_clip_config.json"  # a folder with it is one model
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def register() -> None:
    register_folder(FOLDER, {*_WEIGHTS, ".json"})


def scorer_input(**options) -> io.Combo.Input:
    return io.Combo.Input(
        "scorer",
        options=[_AUTO, *scorer_names()],
        tooltip=f"An open_clip model from models/{FOLDER} or models/{_SHARED}. auto: the first one there is.",
        **options,
    )


def chosen_scorer(choice: str) -> str:
    """The name of the model chosen in a ``scorer_input``. Raises ValueError when there is none at all."""
    names = scorer_names()
    if choice == _AUTO and not names:
        raise ValueError(
            f"Scores need an image-text model of open_clip's. Put one into models/{FOLDER}, as docs/open-clip.md says, "
            "and refresh (R)."
        )
    return names[0] if choice == _AUTO else choice


def scorer_names() -> list[str]:
    """Models that can be chosen, relative to their model folder: folders in open_clip's layout, and single files."""
    files = folder_paths.get_filename_list(FOLDER)
    folders = {os.path.dirname(file) for file in files if os.path.basename(file) == _CONFIG} - {""}
    single = {file for file in files if file.lower().endswith(_WEIGHTS) and os.path.dirname(file) not in folders}
    return list(dict.fromkeys([*sorted(folders | single), *sorted(set(_shared_names()))]))


def scorer_path(name: str) -> Path:
    """The folder or file of a chosen model. Raises ValueError when it is none of ``scorer_names``."""
    if name in scorer_names():
        for folder in (FOLDER, _SHARED):
            if file := folder_paths.get_full_path(folder, name):
                return Path(file)
            if config := folder_paths.get_full_path(folder, os.path.join(name, _CONFIG)):
                return Path(config).parent
    raise ValueError(f"There is no model {name!r} in models/{FOLDER}. Put it there and refresh (R).")


def _shared_names() -> Iterator[str]:
    """The folders in open_clip's layout in models/clip, and the single files that say they are image-text models."""
    for file in folder_paths.get_filename_list(_SHARED):
        folder = os.path.dirname(file)
        if folder and folder_paths.get_full_path(_SHARED, os.path.join(folder, _CONFIG)):
            yield folder
        elif file.lower().endswith(".safetensors") and _is_image_text_model(folder_paths.get_full_path(_SHARED, file)):
            yield file


def _is_image_text_model(path: str | None) -> bool:
    try:
        return _has_both_towers(path, stamp([Path(path)]))
    except Exception:  # damaged headers make the library raise nearly anything
        return False


@lru_cache
def _has_both_towers(path: str, version: str) -> bool:
    """Remembered by the file's stamp, for the lists of three nodes ask for it each time they are made."""
    with safe_open(path, framework="pt") as file:
        return openclip.other_kind(file.keys()) is None
