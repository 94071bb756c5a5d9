"""A Ray actor that runs prompts on a ComfyUI, of its own or running already, and hands back all that came out."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import json
import os
import re
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from PIL import Image

from comfyui import Client, RunError, Server, override, to_prompt
from many.crew import Done, Failed, Progress

OFTEN = 0.3  # seconds between two reports of progress


@dataclass(frozen=True)
class Offer:
    """What there is on a ComfyUI."""

    where: str
    prompt: dict[str, Any]  # the workflow as it takes it
    checkpoints: list[str]
    concepts: list[str]
    own: bool  # nobody else uses it


@dataclass(frozen=True)
class Task:
    prompt: dict[str, Any]
    prompt_id: str  # a UUID
    photos: Mapping[str, bytes] = field(default_factory=dict)  # for PerfusionLoadPhotos, by path in its folder
    photo_folder: str = ""
    concepts: Mapping[str, bytes] = field(default_factory=dict)  # to put into models/perfusion; only of an own ComfyUI
    wanted: tuple[str, ...] = ()  # files in models/perfusion to bring back


@dataclass(frozen=True)
class Result:
    texts: dict[str, list[str]]  # by class of node
    pictures: dict[str, bytes]  # by name, of our own making: a server's are not to be trusted
    concepts: dict[str, bytes]
    notes: list[str]


@ray.remote(max_restarts=-1)
class ComfyWorker:
    def __init__(self, address: str, comfyui: str, workflow: dict[str, Any]) -> None:
        """With an address it uses the ComfyUI there, else one of its own: COMFYUI_PATH's, or the one in a folder."""
        self.client, self.starts_its_own = Client(address), not address
        self.comfyui, self.workflow = comfyui, workflow
        self.where = address
        self.server: Server | None = None
        self.prompt: dict[str, Any] = {}  # the workflow as this ComfyUI takes it
        self.unfinished = ""  # id of a prompt that may still run, or wait
        self.taking_back = asyncio.Lock()

    async def ready(self) -> Offer:
        """Once ComfyUI answers. Raises RuntimeError when it cannot be started, ValueError when it lacks nodes."""
        while True:
            if self.starts_its_own and not (self.server and self.server.is_running()):
                await asyncio.to_thread(self._start)
            try:
                await self._take_back()
                return await self._offer()
            except ConnectionError:
                await asyncio.sleep(2)

    def _start(self) -> None:
        if self.server:
            self.server.__exit__()
        os.environ.setdefault("COMFYUI_PATH", self.comfyui)
        models = Path(os.environ["COMFYUI_PATH"]) / "models"
        gpus = ray.get_gpu_ids()
        if gpus:
            os.environ.pop("OMP_NUM_THREADS", None)  # one, as Ray sets it, is too few for what is left to the CPU
        base = Path(tempfile.mkdtemp(prefix="perfusion-"))
        folders = {path.name: path.name for path in models.glob("*") if path.is_dir() and path.name != "perfusion"}
        paths = base / "models_of_this_machine.yaml"
        paths.write_text(json.dumps({"this_machine": {"base_path": str(models), **folders}}), encoding="utf-8")
        options = ["--extra-model-paths-config", str(paths)]
        if not gpus and sys.platform != "darwin":
            options.append("--cpu")
        self.where = ", ".join([socket.gethostname(), *(f"GPU {gpu}" for gpu in gpus)])
        self.server = self.client = Server(base, options=options, scratch=True)
        self.server.__enter__()

    async def _offer(self) -> Offer:
        send = self.client.send
        try:
            if not self.prompt:
                is_saved = "nodes" in self.workflow  # by the frontend, and not exported in API format
                self.prompt = to_prompt(self.workflow, await send("GET", "/object_info")) if is_saved else self.workflow
            checkpoints, concepts = await send("GET", "/models/checkpoints"), await send("GET", "/models/perfusion")
        except RunError as error:
            raise ValueError(f"{error} Is it a ComfyUI with the Perfusion nodes?") from error
        except ValueError as error:
            raise ValueError(f"{self.client.address}: {error} Install or update what it comes with.") from error
        return Offer(self.where, self.prompt, checkpoints, concepts, self.starts_its_own)

    async def _take_back(self) -> None:
        """What is unfinished."""
        async with self.taking_back:
            if self.unfinished:
                await self.client.cancel(self.unfinished)
                self.unfinished = ""

    async def leave(self) -> None:
        """Leaves nothing on its machine."""
        with contextlib.suppress(ConnectionError, RunError):
            await self._take_back()  # where Ray has dropped work() at a yield, nobody has done it yet
        if self.server:
            await asyncio.to_thread(self.server.__exit__)

    async def fetch(self, name: str) -> bytes:
        """A concept file."""
        try:
            return await self.client.send("GET", "/perfusion/file", params={"file": name})
        except RunError as error:
            raise RunError(f"{name} cannot be fetched: {error} Update the Perfusion nodes there.") from error

    async def work(self, task: Task) -> AsyncIterator[Progress | Done | Failed]:
        """Raises ConnectionError when ComfyUI goes away."""
        latest: Progress | None = None
        doing, self.unfinished = "", task.prompt_id

        def report(node: str, value: float, maximum: float, text: str) -> None:
            nonlocal latest, doing
            doing = text or (doing if maximum else node)
            latest = Progress(node, value, maximum, doing)

        run = asyncio.create_task(self._run(task, report))
        try:
            while not run.done():
                await asyncio.wait([run], timeout=OFTEN)
                if latest:
                    yield latest
                    latest = None
            event = Done(run.result())
        except RunError as error:
            event = Failed(error.message)
        finally:
            if run.cancel():
                with contextlib.suppress(ConnectionError, RunError):
                    await self._take_back()
        self.unfinished = ""
        yield event

    async def _run(self, task: Task, report: Callable[[str, float, float, str], None]) -> Result:
        prompt, notes = copy.deepcopy(task.prompt), []
        if task.photos:
            override(prompt, "PerfusionLoadPhotos", folder=task.photo_folder)
        for path, data in task.photos.items():
            subfolder, _, name = f"{task.photo_folder}/{path}".rpartition("/")
            try:
                await self.client.send_file(name, data, subfolder)
            except RunError as error:
                if not name.endswith((".txt", ".caption")):
                    raise
                notes.append(f"Trained without the caption {name}. {error}")
        for name, data in task.concepts.items():
            path = self.server.base / "models" / "perfusion" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        outputs = await self.client.follow(prompt, report, task.prompt_id)
        texts: dict[str, list[str]] = {}
        for node_id, ui in outputs.items():
            texts.setdefault(prompt[node_id]["class_type"], []).extend(map(str, ui.get("text", ())))
        concepts = {name: await self.fetch(name) for name in task.wanted}
        return Result(texts, await self._pictures(prompt, outputs), concepts, notes)

    async def _pictures(self, prompt: dict[str, Any], outputs: dict[str, Any]) -> dict[str, bytes]:
        pictures: dict[str, bytes] = {}
        counts: Counter[str] = Counter()
        for node_id, ui in outputs.items():
            title = prompt[node_id].get("_meta", {}).get("title") or prompt[node_id]["class_type"]
            name = re.sub(r"\W+", "-", title).strip("-").lower()
            for image in ui.get("images", ()):
                if image["type"] != "output":  # previews of what is saved
                    continue
                counts[name] += 1
                where = {key: image[key] for key in ("filename", "subfolder", "type")}
                data = await self.client.send("GET", "/view", params=where)
                with Image.open(io.BytesIO(data)) as picture:
                    kind = str(picture.format).lower()
                pictures[f"{name}-{counts[name]}.{kind}"] = data
        return pictures
