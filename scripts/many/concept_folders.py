"""A folder of concept folders: photos, masks, captions and settings of each, checked before anything is trained."""

import importlib.util
import json
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from comfyui import REPO

RESERVED = ("covariance", "import", "training")  # folders in models/perfusion that hold other files
NOT_IN_TRIGGERS = re.compile(r'[\s()\[\]{}:,\\"]')  # as perfusion_core, which needs torch


def of_the_pack(module: str) -> ModuleType:
    """A module of nodes/ that needs no ComfyUI; by another name, for ComfyUI has a module called nodes."""
    if "perfusion_nodes" not in sys.modules:
        home = REPO / "nodes"
        spec = importlib.util.spec_from_file_location(
            "perfusion_nodes", home / "__init__.py", submodule_search_locations=[str(home)]
        )
        sys.modules["perfusion_nodes"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"perfusion_nodes.{module}")


_photos = of_the_pack("photo_folder")
is_file_name, read_folder = of_the_pack("file_name").is_file_name, _photos.read_folder


@dataclass
class Concept:
    name: str
    folder: Path
    files: list[Path]  # photos, masks and captions
    settings: dict[str, Any]  # inputs of PerfusionTrainConcept
    state: str = "not started"  # skipped; running; trained, failed or stopped
    note: str = ""  # the file it was saved to, or what went wrong
    where: str = ""
    attempts: int = 0
    under_way: bool = False  # and not behind others' prompts in the queue
    steps_done: float = 0.0
    start: float = 0.0  # time.monotonic()
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        return self.settings["steps"]

    @property
    def file(self) -> str:
        """Its name in models/perfusion."""
        return f"{self.name}.safetensors"


def find_concepts(root: Path, output: Path, superclass: str | None, steps: int | None) -> list[Concept]:
    """The concept folders in ``root``. Ends the program with the list of all that is wrong with them."""
    if not root.is_dir():
        sys.exit(f"{root} is not a folder.")
    if any(_photos.is_photo(path.name) for path in root.iterdir() if path.is_file()):
        sys.exit(f"{root} holds photos itself. Make one subfolder per concept and put its photos there.")
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not _photos.is_hidden(path.name) and path != output
    )
    if not folders:
        sys.exit(f"{root} has no subfolders. Make one per concept and put its photos there.")
    given = {"superclass": superclass, "steps": steps}
    concepts, problems = [], []
    for folder in folders:
        try:
            concepts.append(read_concept(folder, {name: value for name, value in given.items() if value is not None}))
        except ValueError as error:
            problems.append(f"  {folder.name}: {error}")
    if problems:
        sys.exit("\n".join(["Nothing was started:", *problems]))
    return concepts


def read_concept(folder: Path, given: dict[str, Any]) -> Concept:
    name = unicodedata.normalize("NFC", folder.name)  # a Mac's é is an e and an accent
    if not is_file_name(name) or not name.isprintable() or len(name.encode()) > 200 or name.lower() in RESERVED:
        raise ValueError("a concept file cannot have this name. Rename the folder; use letters, digits, - and _.")
    held = read_folder(folder)
    for remark in held.remarks:
        print(f"{name}: {remark}")
    for file in held.files:
        if not file.name.isprintable():
            raise ValueError(f"the file name {file.name!r} cannot be sent. Rename the file.")
    settings = {"trigger": f"<{'-'.join(name.split())}>", **given, **read_settings(folder / "concept.json")}
    settings["trigger"] = trigger = unicodedata.normalize("NFC", str(settings["trigger"]).strip())
    if not trigger:
        raise ValueError("the trigger is empty. Write another into its concept.json, or leave it out.")
    if found := NOT_IN_TRIGGERS.search(trigger):
        shown = "a space" if found.group().isspace() else found.group()
        raise ValueError(f"the trigger {trigger!r} contains {shown}. Write another into its concept.json.")
    if not trigger.isprintable():
        raise ValueError(f"the trigger {trigger!r} contains an invisible character. Type it anew in its concept.json.")
    if not settings.get("superclass"):
        raise ValueError('no superclass. Write {"superclass": "..."} into its concept.json, or give --superclass.')
    return Concept(name, folder, held.files, settings)


def read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error}).") from error
    if not isinstance(settings, dict) or any(isinstance(value, list | dict | None) for value in settings.values()):
        raise ValueError(
            f'{path.name} must be like {{"superclass": "toy", "steps": 200}}: names, and texts or numbers.'
        )
    return settings
