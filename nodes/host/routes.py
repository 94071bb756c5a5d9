"""The server's routes below /perfusion/: which concepts there are, their files, thumbnails, metadata, trash and undo;
and what is asked of a training.

docs/routes.md describes them. What comes in is untrusted: a file is named as in the list of concepts and in no other
way, and nothing but metadata, names and the trash is written.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web

from ...perfusion_core import load_concept
from ...perfusion_core.concept import trigger_problem
from ...perfusion_core.concept_file import edit_metadata, read_metadata, recommended_settings
from . import thumbnail, trainings
from .estimate import estimate, job_of, photo_warnings
from .files import (
    concept_names,
    listed_concept_path,
    model_folder,
    own_concept_path,
    rename_with_training,
    renamed,
)
from .photos import has_mask, photo_folder
from .superclass import locked_without_model
from .trash import move_to_trash, restore

_LARGEST_BODY = 64 * 2**10  # bytes
_LONGEST = {  # characters
    "file": 1000, "undo": 100, "name": 200, "trigger": 100, "notes": 4000, "tags": 500, "thumbnail": 60_000,
    "words": 200, "node": 100, "training": 100, "step": 10,
}  # fmt: skip
_TAGS = "modelspec.tags"  # where other tools look for them, too
_UNWRITABLE = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]"  # control characters and half ones

_files = ThreadPoolExecutor(1, "perfusion-files")  # off the server's loop, and one at a time


class Refusal(Exception):
    """Why something is not done, with the HTTP status for it."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def register() -> None:
    """Adds the routes to the server, if there is one."""
    from server import PromptServer  # there is none when nodes run outside a server

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        add_to(server.routes)


def add_to(routes: web.RouteTableDef) -> None:
    for path, method, work, kind in (
        ("concepts", "GET", list_concepts, "application/json"),
        ("thumbnail", "GET", get_thumbnail, "image/webp"),
        ("file", "GET", get_file, "application/octet-stream"),
        ("superclass", "GET", read_superclass, "application/json"),
        ("metadata", "POST", change_metadata, "application/json"),
        ("rename", "POST", rename, "application/json"),
        ("trash", "POST", trash, "application/json"),
        ("undo", "POST", undo, "application/json"),
        ("estimate", "GET", estimate_training, "application/json"),
        ("stop", "POST", stop_training, "application/json"),
        ("continue", "POST", continue_training, "application/json"),
        ("choose", "POST", choose_checkpoint, "application/json"),
    ):
        # all methods, for the host looks up among its static files what is asked by another one
        routes.route("*", f"/perfusion/{path}")(_handler(method, work, kind))


def list_concepts(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_entry(name) for name in concept_names()]


def get_thumbnail(asked: Mapping[str, Any]) -> bytes:
    path = _path(asked.get("file", ""), listed_concept_path)
    picture = thumbnail.decoded(read_metadata(path))
    if picture is None:
        raise Refusal(404, f"{path.name} has no thumbnail.")
    return picture


def get_file(asked: Mapping[str, Any]) -> bytes:
    path = _path(asked.get("file", ""), listed_concept_path)
    read_metadata(path)  # raises ValueError for a file that holds something else
    return path.read_bytes()


def read_superclass(asked: Mapping[str, Any]) -> dict[str, Any]:
    read = locked_without_model(_texts(asked, "words")["words"])
    return {**dataclasses.asdict(read), "warning": read.warning}


def change_metadata(asked: Mapping[str, Any]) -> dict[str, Any]:
    changes = _texts(asked, "file", "name", "trigger", "notes", "tags", "thumbnail")
    file = changes.pop("file")
    path = _path(file)
    if not changes:
        raise Refusal(400, "There is nothing to change: give name, trigger, notes, tags or thumbnail.")
    _check_name(changes.get("name", "a name"))
    if "trigger" in changes and (problem := trigger_problem(changes["trigger"])):
        raise Refusal(400, f"This cannot be a trigger: {problem}.")
    if "tags" in changes:
        changes[_TAGS] = ", ".join(_tags(changes.pop("tags")))
    if "thumbnail" in changes:
        base_model = _entry(file).get("base_model", "")
        changes[thumbnail.KEY] = thumbnail.from_page(changes.pop("thumbnail"), base_model)
    there = read_metadata(path)  # what is empty and was not there is no change
    edit_metadata(path.resolve(), {key: text for key, text in changes.items() if text or key in there})
    return _entry(file)


def rename(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a concept another name, and its file, in the folder in which it is."""
    names = _texts(asked, "file", "name")
    path, name = _path(names["file"]), names.get("name", "").strip()
    _check_name(name)
    renamed(path, name)  # raises before anything is written
    edit_metadata(path.resolve(), {"name": name})
    path = rename_with_training(path, name)
    return _entry(str(path.relative_to(model_folder(path))))


def trash(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"undo": move_to_trash(_path(_texts(asked, "file")["file"]))}


def undo(asked: Mapping[str, Any]) -> dict[str, Any]:
    path = restore(_texts(asked, "undo")["undo"])
    return _entry(str(path.relative_to(model_folder(path))))


def estimate_training(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What it takes, and what is better mended before; of the photos nothing where no folder is named."""
    folder = asked.get("folder", "")
    photos = photo_folder(folder).photos if folder else ()
    unmasked = sum(not has_mask(photo) for photo in photos)
    return {**estimate(job_of(asked)), "warnings": photo_warnings(len(photos), unmasked) if folder else {}}


def stop_training(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Ends it well after its present step, with what it has."""
    trainings.ask_to_stop(_texts(asked, "node")["node"])
    return {}


def continue_training(asked: Mapping[str, Any]) -> dict[str, Any]:
    trainings.go_on(_texts(asked, "training")["training"])
    return {}


def choose_checkpoint(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The next run gives this one without training again."""
    if "step" not in asked:
        raise Refusal(400, "step is missing.")
    texts = _texts(asked, "training", "step")
    if not texts["step"].isdecimal():
        raise Refusal(400, "step must be a number.")
    trainings.choose(texts["training"], int(texts["step"]))
    return {}


def _entry(file: str) -> dict[str, Any]:
    """What there is to show of a concept, or why there is nothing."""
    entry: dict[str, Any] = {"file": file, "name": Path(file).stem}
    try:
        path = listed_concept_path(file)
        stat = path.stat()
        entry |= {"path": str(path), "bytes": stat.st_size, "modified": stat.st_mtime}
        concept = load_concept(path)
    except (ValueError, OSError) as error:
        return {**entry, "error": str(error)}
    return {
        **entry,
        "name": concept.name[: _LONGEST["name"]],
        "trigger": concept.trigger[: _LONGEST["trigger"]],
        "superclass": concept.superclass[: _LONGEST["name"]],
        "base_model": concept.base_model[: _LONGEST["name"]],
        "dim": concept.dim,
        "date": concept.metadata.get("date", "")[: _LONGEST["name"]],
        "notes": concept.metadata.get("notes", "")[: _LONGEST["notes"]],
        "tags": _tags(concept.metadata.get(_TAGS, "")[: _LONGEST["tags"]]),
        "recommended": recommended_settings(concept.metadata),
        "has_thumbnail": thumbnail.decoded(concept.metadata) is not None,
        "superclass_similarity": concept.superclass_similarity,
    }


def _tags(text: str) -> list[str]:
    return list(dict.fromkeys(tag.strip() for tag in text.split(",") if tag.strip()))


def _check_name(name: str) -> None:
    if len(name.strip().splitlines()) != 1:
        raise Refusal(400, "The name must be one line.")


def _path(file: str, find: Callable[[str], Path] = own_concept_path) -> Path:
    try:
        return find(file)
    except ValueError as error:
        raise Refusal(404, str(error)) from error


def _texts(asked: Mapping[str, Any], required: str, *optional: str) -> dict[str, str]:
    """``asked`` when it holds what it must, and nothing but texts of these names."""
    if required not in asked:
        raise Refusal(400, f"{required} is missing.")
    for name, text in asked.items():
        if name not in (required, *optional):
            raise Refusal(400, f"{name[:100]!r} is not known here.")
        if not isinstance(text, str) or re.search(_UNWRITABLE, text):
            raise Refusal(400, f"{name} must be a text without control characters.")
        if len(text) > _LONGEST[name]:
            raise Refusal(400, f"{name} has {len(text)} characters, at most {_LONGEST[name]} are allowed.")
    return dict(asked)


def _handler(
    method: str, work: Callable[[Mapping[str, Any]], Collection], kind: str
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Hands the query or the body to ``work`` in the thread for files, and sends what it returns or why it does not."""

    async def handle(request: web.Request) -> web.Response:
        try:
            if request.method != method:
                raise Refusal(405, f"Only {method} is allowed here.")
            asked = request.query if method == "GET" else await _body(request)
            answer = await asyncio.get_running_loop().run_in_executor(_files, work, asked)
        except Refusal as refusal:
            return web.json_response({"error": str(refusal)}, status=refusal.status)
        except trainings.Unknown as error:
            return web.json_response({"error": str(error)}, status=409)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        except OSError as error:
            return web.json_response({"error": f"The disk refuses: {error.strerror}."}, status=500)
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type=kind)
        return web.json_response(answer)

    return handle


async def _body(request: web.Request) -> Mapping[str, Any]:
    """A JSON object. Its type is asked for since other sites' pages can send every other one unasked."""
    if request.content_type != "application/json":
        raise Refusal(415, f"Send application/json, this is {request.content_type}.")
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > _LARGEST_BODY:
                raise Refusal(413, f"This is more than {_LARGEST_BODY} bytes.")
        asked = json.loads(body)
    except (web.RequestPayloadError, ValueError, RecursionError) as error:
        raise Refusal(400, f"This is not JSON ({error}).") from error
    if not isinstance(asked, dict):
        raise Refusal(400, "This is not a JSON object.")
    return asked
