"""The model folder of concepts, models/perfusion, with covariances, training states and a trash below it; the input
directory.

Names from outside are untrusted.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import folder_paths
from torch import Tensor

from ...perfusion_core import Concept, save_concept, save_training
from ...perfusion_core.concept_file import remove_abandoned
from ...perfusion_core.training_file import digest
from ..file_name import is_file_name
from ..photo_folder import is_hidden
from .listing import files_below

FOLDER = "perfusion"
TRASH = ".trash"
COVARIANCES, IMPORTS, TRAININGS = "covariance", "import", "training"
_OTHER_FILES = (COVARIANCES, IMPORTS, TRAININGS, TRASH)  # folders with these names hold no concepts
_FOREIGN = {  # endings of other programs' files
    COVARIANCES: {".npy", ".pt", ".pth", ".bin", ".safetensors"},
    IMPORTS: {".pt", ".pth", ".bin"},
}
_LONGEST = 240  # bytes of a file's name; file systems take 255, extension included


def register() -> None:
    register_folder(FOLDER, {".safetensors"})
    for home in folder_paths.get_folder_paths(FOLDER):
        remove_abandoned(Path(home))


def register_folder(name: str, endings: set[str] | None = None) -> None:
    """Makes models/<name> known to the host, beside those that extra_model_paths.yaml names; endings of its files."""
    folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    if endings is not None:
        paths, _ = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, endings)


def input_path(name: str) -> Path | None:
    """A file or folder below ComfyUI's input directory, there or not; None for a name that leads out of it.

    It is for reading: links that lead out are followed (see ``stays_inside``).
    """
    home = Path(folder_paths.get_input_directory())
    path = Path(os.path.normpath(home / name))
    return path if path.is_relative_to(os.path.normpath(home)) else None


def concept_names() -> list[str]:
    """Concept files that can be chosen, relative to the model folder."""
    names = [(name, Path(name).parts) for name in folder_paths.get_filename_list(FOLDER)]
    return [name for name, parts in names if parts[0] not in _OTHER_FILES and not any(map(is_hidden, parts))]


def concept_path(name: str) -> Path:
    """The file of a chosen concept. Raises ValueError when it is not there."""
    found = folder_paths.get_full_path(FOLDER, name)
    if found is None:
        raise ValueError(f"There is no concept {name!r} in models/{FOLDER}. Put the file there and refresh (R).")
    return Path(found)


def listed_concept_path(name: str) -> Path:
    """The file of a concept that is in the list by exactly this name. Raises ValueError for no such."""
    if name not in concept_names():
        raise ValueError(f"There is no concept {name[:100]!r} in models/{FOLDER}.")
    return concept_path(name)


def own_concept_path(name: str) -> Path:
    """The same of a concept that may be changed: ValueError also for a link that leads out of the model folder."""
    path = listed_concept_path(name)
    if not stays_inside(path, model_folder(path)):
        raise ValueError(f"{name} is a link that leads out of models/{FOLDER}. Change the file where it is.")
    return path


def stays_inside(path: Path, home: Path) -> bool:
    """Whether what is written to ``path`` is below ``home`` on the disk, too. Links that the user made are followed
    everywhere, but only to read."""
    return path.resolve().is_relative_to(home.resolve())


def concept_stamp(name: str | None) -> str:
    """Changes when the file of a chosen concept does; of None, a linked input that is not known yet, when any does."""
    return stamp(map(concept_path, concept_names() if name is None else [name]))


def foreign_stamp(folder: str, name: str | None) -> str:
    """The same for one of ``foreign_names``."""
    return stamp(foreign_path(folder, one) for one in (foreign_names(folder) if name is None else [name]))


def stamp(paths: Iterable[Path]) -> str:
    """Changes when one of the files does, and when they are others."""
    stats = [(path, path.stat()) for path in paths]
    return " ".join(f"{path} {stat.st_mtime_ns} {stat.st_size}" for path, stat in stats)


def foreign_names(folder: str) -> list[str]:
    """Other programs' files that can be chosen, relative to models/perfusion/<folder>: COVARIANCES or IMPORTS."""
    return sorted(_foreign_files(folder))


def foreign_path(folder: str, name: str) -> Path:
    """The chosen one of other programs' files. Raises ValueError when it is not there."""
    found = _foreign_files(folder).get(name)
    if found is None:
        raise ValueError(
            f"There is no file {name[:100]!r} in models/{FOLDER}/{folder}. Put the file there and refresh (R)."
        )
    return found


def _foreign_files(folder: str) -> dict[str, Path]:
    homes = [Path(home) / folder for home in folder_paths.get_folder_paths(FOLDER)]
    return {
        name: home / name
        for home in reversed(homes)  # the first one counts
        for name in files_below(str(home), _FOREIGN[folder])
    }


def covariance_path(fingerprint: str) -> Path:
    """Where the covariance of a text encoder is kept."""
    return _home() / COVARIANCES / f"{fingerprint}.safetensors"


def save_with_training(concept: Concept, state: Mapping[str, Tensor], path: Path) -> None:
    """Writes a concept and what is needed to train on from it. Raises OSError.

    Whenever this is cut short, the concept that is there has its own state beside it.
    """
    own = training_path(concept, path)
    save_training(state, concept, own)
    save_concept(concept, path)
    for other in own.parent.glob("*.safetensors"):
        if other != own:
            other.unlink()


def remove_with_training(path: Path) -> None:
    """Deletes a concept file and the states that belong to it."""
    path.unlink(missing_ok=True)
    states = training_folder(path)
    for state in states.glob("*.safetensors"):
        state.unlink()
    with contextlib.suppress(OSError):  # it also holds the states of concepts in a folder of this name
        states.rmdir()


def rename_with_training(path: Path, name: str) -> Path:
    """Renames a concept file and moves the states that belong to it; returns its new path. Raises OSError, and
    ValueError for a name that cannot be or is taken.

    The concept goes last: whenever this is cut short, doing it again completes it.
    """
    target, home, states = renamed(path, name), model_folder(path), training_folder(path)
    for state in states.glob("*.safetensors"):
        move(state, training_folder(target) / state.name, home)
    move(path, target, home)
    remove_empty(states)
    return target


def renamed(path: Path, name: str) -> Path:
    """Where a concept file is when it is called ``name``. Raises ValueError for a name that cannot be or is taken."""
    if "/" in name or "\\" in name:
        raise ValueError(f"{name!r} leads to another folder. Choose a name without / and \\.")
    folder = path.parent.relative_to(model_folder(path))
    target = path.with_name(path_to_save((folder / name).as_posix(), overwrite=True).name)
    if target.exists() and not target.samefile(path):
        raise ValueError(f"There is a file {target.name} already. Choose another name.")
    return target


def move(source: Path, target: Path, home: Path) -> None:
    """Moves a file within the model folder ``home``. Raises ValueError where a link leads out of it."""
    if not stays_inside(target, home):
        raise ValueError(f"{target.parent} is a link that leads out of models/{FOLDER}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    folder_paths.filename_list_cache.pop(FOLDER, None)  # it goes by the times of folders, which are coarse


def remove_empty(folder: Path) -> None:
    """The folder, and those above it that are then empty."""
    with contextlib.suppress(OSError):
        os.removedirs(folder)


def training_path(concept: Concept, path: Path) -> Path:
    """Where the state is kept of the training that made ``concept``, which is saved at ``path`` in the model folder."""
    return training_folder(path) / f"{digest(concept)}.safetensors"


def training_folder(path: Path) -> Path:
    """Where the states are kept that belong to the file ``path`` in the model folder."""
    home = model_folder(path)
    return home / TRAININGS / path.relative_to(home).with_suffix("")


def model_folder(path: Path) -> Path:
    """Which of the model folders ``path`` is in. Raises ValueError for none."""
    for folder in map(Path, folder_paths.get_folder_paths(FOLDER)):
        if path.is_relative_to(folder):
            return folder
    raise ValueError(f"{path} is not in models/{FOLDER}.")


def name_of(trigger: str) -> str:
    """What the file of a concept is called unless a user says otherwise: my-teddy for <my-teddy>."""
    return re.sub(r"\W+", "-", trigger).strip("-") or "concept"


def path_to_save(name: str, overwrite: bool) -> Path:
    """Where a concept called ``name`` is to be written; subfolders are allowed, leaving the model folder is not.

    Without ``overwrite`` a number is added when the name is taken. Raises ValueError for names that cannot be.
    """
    return paths_to_save(name, overwrite, [FOLDER])[0]


def paths_to_save(name: str, overwrite: bool, folders: Sequence[str]) -> list[Path]:
    """Likewise for files that belong together: one in each of these model folders, under one name."""
    name = unicodedata.normalize("NFC", name).strip().removesuffix(".safetensors").replace("\\", "/")
    parts = name.split("/")
    if FOLDER in folders and parts[0].lower() in _OTHER_FILES:
        raise ValueError(f"The folder {parts[0]} holds other files than concepts. Choose another name.")
    if not all(map(is_file_name, parts)):
        raise ValueError(
            f"{name[:200]!r} cannot be a file name in models/{folders[0]} on every system. Use letters, digits and - "
            "or _, such as my-teddy."
        )
    if max(len(part.encode()) for part in parts) > _LONGEST:
        raise ValueError(f"The name {name[:40]}... is too long for a file. Choose another name.")
    homes = [Path(folder_paths.get_folder_paths(folder)[0]) for folder in folders]
    paths = [home.joinpath(*parts[:-1], f"{parts[-1]}.safetensors") for home in homes]
    for folder, home, path in zip(folders, homes, paths, strict=True):
        if not stays_inside(path, home):
            raise ValueError(f"{name!r} leads out of models/{folder}. Choose a name inside it.")
    number = 2
    while not overwrite and any(path.exists() for path in paths):
        paths = [path.with_name(f"{parts[-1]}-{number}.safetensors") for path in paths]
        number += 1
    return paths


def _home() -> Path:
    return Path(folder_paths.get_folder_paths(FOLDER)[0])
