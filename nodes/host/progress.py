"""Progress, cancel and text on a node, as the host shows them, and what our own pages are told."""

from __future__ import annotations

import html
import logging
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from PIL import Image

from .uses import ConceptUse, clashes

Cancelled = comfy.model_management.InterruptProcessingException  # by the user; the host forgets it when it is raised
_run_again: Counter[str | None] = Counter()


class Progress:
    """A progress bar of ``total`` steps on the running node; every ``update`` also obeys the user's cancel.

    Without ``bar`` only the line of text moves, for work inside a node whose bar counts something else. ``start`` steps
    were done earlier.
    """

    def __init__(self, total: int, node_id: str | None, bar: bool = True, start: int = 0):
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id) if bar else None
        self._total, self._node_id = total, node_id
        self._first, self._start = start, time.monotonic()

    def update(self, done: int, text: str = "", preview: Image.Image | None = None) -> None:
        """Shows ``done`` steps, a line of text with the time left, and a picture. Raises the host's cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        shown = None if preview is None else ("JPEG", preview, 512)
        if self._bar is not None:
            self._bar.update_absolute(done, self._total, shown)
        if text:
            left = (time.monotonic() - self._start) / max(done - self._first, 1) * (self._total - done)
            show_text(f"{text}, {_minutes(left)} left" if done < self._total else text, self._node_id)


class Pace:
    """How long something that is done again and again takes: ``with pace:`` around it."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=20)

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._seconds.append(time.monotonic() - self._start)

    @property
    def mean(self) -> float:
        """Seconds, of the last times; 0 before the first one."""
        return sum(self._seconds) / max(len(self._seconds), 1)


def save_for_page(pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
    """Writes pictures into the host's temporary folder; how its page asks for each of them."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"perfusion_{uuid.uuid4().hex}.webp" for _ in pictures]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name, quality=90)
    return [{"filename": name, "subfolder": "", "type": "temp"} for name in names]


def run_again(node_id: str | None) -> None:
    """Has the host run a node again, though its inputs are the same: it was cancelled and gave what it had, or it will
    give something else."""
    _run_again[node_id] += 1


def times_run_again(node_id: str | None) -> int:
    """In the fingerprint of such a node, or the host would keep its result for the next run."""
    return _run_again[node_id]


def listener() -> Callable[[str, Any], None] | None:
    """What tells the page that queued the running work of an event, if there is such a page."""
    server = _server()
    page = getattr(server, "client_id", None)
    return None if page is None else lambda event, data: server.send_sync(event, data, page)


def _server():
    """The running server, or None when nodes run outside one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def warn_of_clashes(uses: Sequence[ConceptUse], hidden) -> list[str]:
    """Says on the node with these ``hidden`` inputs where concepts do nothing, their triggers being the same."""
    lines = clashes(uses)
    warn(lines, getattr(hidden, "unique_id", None))
    return lines


def warn(lines: Sequence[str], node_id: str | None) -> None:
    """On the running node and in the log."""
    for line in lines:
        logging.warning("Perfusion: %s", line)
    if lines:
        show_text("\n".join(lines), node_id)


def show_text(text: str, node_id: str | None) -> None:
    """A line of text on the running node."""
    server = _server()
    if server is not None and node_id is not None:
        server.send_progress_text(html.escape(text, quote=False), node_id)  # the page takes <my-teddy> for a tag
