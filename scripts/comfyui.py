"""Drives a real ComfyUI: starts its server, converts workflows as the frontend does, runs them, returns the outputs.

Used as `with Server(base) as server: outputs = server.run(server.to_prompt(workflow))`. The client libraries there are
lose a run with its connection and can only interrupt everybody; the one that converts workflows has telemetry.
"""

import asyncio
import contextlib
import html
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

REPO = Path(__file__).resolve().parent.parent
LEASHED = Path(__file__).with_name("leashed_comfyui.py")
START_LIMIT = 300  # seconds; importing torch on a busy machine takes most of a minute
SILENCE = 30  # seconds without an event before the queue is asked
TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=10)

# the running node's class, value, maximum (0: it just started), and a line of text where it sent one
Progress = Callable[[str, float, float, str], None]
TEXT_EVENT = 3  # protocol.BinaryEventTypes.TEXT


class RunError(RuntimeError):
    """A prompt that ComfyUI refused, could not finish or was told to stop. ``message`` leaves the traceback out."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(f"{message}\n{traceback}".rstrip())
        self.message = message


class Client:
    """A running ComfyUI, wherever it runs. Its coroutines raise ConnectionError when it is not there (any more) and
    RunError when it will not do what was asked; the plain methods below them are the same for blocking code."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def send(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON or the bytes that a route answers."""
        with self._expected():
            async with aiohttp.request(method, self.address + path, timeout=TIMEOUT, **arguments) as answer:
                answer.raise_for_status()
                return await answer.json() if answer.content_type == "application/json" else await answer.read()

    async def send_file(self, name: str, data: bytes, subfolder: str = "") -> str:
        """Puts a file into the input folder; returns the name that LoadImage takes."""
        form = aiohttp.FormData({"subfolder": subfolder, "overwrite": "true"}, quote_fields=False)  # names as they are
        form.add_field("image", data, filename=name)
        saved = await self.send("POST", "/upload/image", data=form)
        return f"{saved['subfolder']}/{saved['name']}" if saved["subfolder"] else saved["name"]

    async def follow(
        self, prompt: dict[str, Any], on_progress: Progress | None = None, prompt_id: str | None = None
    ) -> dict[str, Any]:
        """Queues an API prompt and follows it to its end, over lost connections too. Returns the ui outputs by node
        id. ``prompt_id`` is a UUID, for ``cancel``."""
        prompt_id, client, queued = prompt_id or str(uuid.uuid4()), uuid.uuid4().hex, False
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while True:
                with self._expected():
                    events = await session.ws_connect(f"{self.address}/ws", params={"clientId": client}, max_msg_size=0)
                async with events:
                    if not queued:
                        await self._queue(session, prompt, client, prompt_id)
                        queued = True
                    await self._watch(events, prompt, prompt_id, on_progress)
                waiting = prompt_id in await self._queued()  # before the history: it may end in between
                if entry := (await self.send("GET", f"/history/{prompt_id}")).get(prompt_id):
                    break
                if not waiting:
                    raise ConnectionError(f"ComfyUI at {self.address} went away during the run.")
                await asyncio.sleep(1)
        if entry["status"]["status_str"] != "success":
            raise _failure(entry["status"]["messages"])
        return entry["outputs"]

    async def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue or interrupts it, and nobody else's."""
        await self.send("POST", "/queue", json={"delete": [prompt_id]})
        await self.send("POST", "/interrupt", json={"prompt_id": prompt_id})

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        return asyncio.run(self.send(method, path, **arguments))

    def object_info(self) -> dict[str, Any]:
        return self.request("GET", "/object_info")

    def upload(self, path: Path, subfolder: str = "") -> str:
        return asyncio.run(self.send_file(path.name, path.read_bytes(), subfolder))

    def interrupt(self) -> None:
        """Stops whatever runs."""
        self.request("POST", "/interrupt", json={})

    def to_prompt(self, workflow: dict[str, Any]) -> dict[str, Any]:
        return to_prompt(workflow, self.object_info())

    def run(self, prompt: dict[str, Any], on_progress: Progress | None = None) -> dict[str, Any]:
        return asyncio.run(self.follow(prompt, on_progress))

    @contextlib.contextmanager
    def _expected(self) -> Iterator[None]:
        """Says which server failed, and tells one that is away from one that refuses."""
        try:
            yield
        except aiohttp.ClientResponseError as error:
            kind = ConnectionError if error.status >= 500 else RunError  # a proxy answers for a server that is away
            raise kind(
                f"{self.address} answered {error.status} {error.message} to {error.request_info.url.path}."
            ) from error
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise ConnectionError(f"ComfyUI at {self.address} does not answer: {reason}.") from error

    async def _queue(self, session: aiohttp.ClientSession, prompt: dict[str, Any], client: str, prompt_id: str) -> None:
        task = {"prompt": prompt, "client_id": client, "prompt_id": prompt_id}
        with self._expected():
            async with session.post(f"{self.address}/prompt", json=task) as answer:
                queued = await answer.json()
        if queued.get("error") or queued.get("node_errors"):
            await self.cancel(prompt_id)  # it runs what it found no fault with
            raise RunError(_refusal(queued))

    async def _queued(self) -> set[str]:
        """The ids of all prompts that run or wait."""
        queue = await self.send("GET", "/queue")
        return {entry[1] for entries in queue.values() for entry in entries}

    async def _watch(
        self, events: aiohttp.ClientWebSocketResponse, prompt: dict[str, Any], prompt_id: str, report: Progress | None
    ) -> None:
        """Reports progress until the prompt ends or vanishes from the queue, or the connection breaks."""
        node, value, maximum = "", 0.0, 0.0
        while True:
            try:
                message = await events.receive(SILENCE)
            except asyncio.TimeoutError:
                if prompt_id in await self._queued():
                    continue
                return
            text = ""
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, length = struct.unpack_from(">II", message.data)
                if kind != TEXT_EVENT:
                    continue
                text = html.unescape(message.data[8 + length :].decode(errors="replace"))
            elif message.type == aiohttp.WSMsgType.TEXT:
                event = message.json()
                data = event["data"]
                if data.get("prompt_id") != prompt_id or event["type"] not in ("executing", "progress"):
                    continue
                if event["type"] == "executing" and data["node"] is None:
                    return
                node = prompt.get(data["node"], {}).get("class_type", "")
                value, maximum = data.get("value", 0), data.get("max", 0)
            else:
                return
            if report:
                report(node, value, maximum, text)


class Server(Client):
    """A ComfyUI process with this repository as its only custom node, which ends with ours. `base` holds its models,
    input and log; `scratch`: nobody needs it afterwards."""

    def __init__(
        self, base: Path, output: Path | None = None, options: Sequence[str] = ("--cpu",), scratch: bool = False
    ) -> None:
        super().__init__("")
        self.base, self.scratch = base.resolve(), scratch
        self.output = (output or self.base / "output").resolve()
        self.options = [*options, "--disable-api-nodes"]
        if frontend := os.environ.get("COMFYUI_FRONTEND"):  # by scripts/host.sh
            self.options += ["--front-end-root", frontend]
        self.log = self.base / "comfyui.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        for folder in (self.base / "custom_nodes", self.base / "models" / "checkpoints", self.base / "input"):
            folder.mkdir(parents=True, exist_ok=True)
        self.output.mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / "ComfyUI-Perfusion"
        link.unlink(missing_ok=True)
        link.symlink_to(REPO, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [
            sys.executable, str(LEASHED), str(self.base) if self.scratch else "",
            "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch",
            "--base-directory", str(self.base), "--output-directory", str(self.output),
            "--database-url", f"sqlite:///{self.base / 'comfyui.db'}", *self.options,
        ]  # fmt: skip
        with self.log.open("w") as log:
            comfyui = os.environ["COMFYUI_PATH"]
            self.process = subprocess.Popen(command, cwd=comfyui, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.scratch:
            shutil.rmtree(self.base, ignore_errors=True)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _wait_until_up(self) -> None:
        limit = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(ConnectionError):
                self.request("GET", "/system_stats")
                return
            if not self.is_running():
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode} at its start.\n{self.log_tail()}")
            if time.monotonic() > limit:
                raise RuntimeError(f"ComfyUI did not answer within {START_LIMIT} s.\n{self.log_tail()}")
            time.sleep(0.3)

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join([f"The end of {self.log}:", *self.log.read_text(errors="replace").splitlines()[-lines:]])

    def path(self, saved: dict[str, str]) -> Path:
        """The file behind an entry such as {"filename": …, "subfolder": …, "type": "output"}."""
        folder = self.output if saved["type"] == "output" else self.base / saved["type"]
        return folder / saved["subfolder"] / saved["filename"]

    def run(self, prompt: dict[str, Any], on_progress: Progress | None = None) -> dict[str, Any]:
        try:
            return super().run(prompt, on_progress)
        except ConnectionError as error:
            raise RuntimeError(f"{error}\n{self.log_tail()}") from error


def _refusal(answer: dict[str, Any]) -> str:
    error = answer.get("error") or {}
    lines = [f"ComfyUI refused the prompt: {error.get('message', '')} {error.get('details', '')}".rstrip()]
    for node_id, node in answer.get("node_errors", {}).items():
        lines += [f"{node['class_type']} ({node_id}): {e['message']}: {e['details']}" for e in node["errors"]]
    return "\n".join(lines)


def _failure(messages: list[Any]) -> RunError:
    for name, data in messages:
        if name == "execution_interrupted":
            return RunError(f"{data['node_type']} ({data['node_id']}) was interrupted.")
        if name == "execution_error":
            where = f"{data['node_type']} ({data['node_id']}) failed"
            kind = data["exception_type"].rpartition(".")[2]  # without the path of the module
            what = f"{where}: {kind}: {data['exception_message']}"
            return RunError(what.rstrip(), "".join(data["traceback"]))
    return RunError("The run failed without saying why.")


def override(prompt: dict[str, Any], class_type: str, **inputs: Any) -> None:
    """Sets inputs on every node of a class."""
    nodes = [node for node in prompt.values() if node["class_type"] == class_type]
    if not nodes:
        raise KeyError(f"no {class_type} in the prompt")
    for node in nodes:
        node["inputs"].update(inputs)


# From a workflow as the frontend saves it to a prompt as the server takes it

MUTED, BYPASSED = 2, 4
FRONTEND_ONLY = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3"}
CONTROLS = {"fixed", "increment", "decrement", "randomize"}
UPLOADS = {"image_upload", "video_upload", "audio_upload", "animated_image_upload"}


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """What the frontend's graphToPrompt makes of a saved workflow (subgraphs are not supported)."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"] if link}

    def source(link: int | None) -> Any:
        """What a link brings: [node, output], a primitive's value, or None where a muted node is behind it."""
        if link not in links:
            return None
        origin, slot = links[link]
        node = nodes[origin]
        if node.get("mode") == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            return source(node["inputs"][0].get("link"))
        if node.get("mode") == BYPASSED:
            wanted = node["outputs"][slot]["type"]
            alike = [entry for entry in node["inputs"][slot : slot + 1] + node["inputs"] if entry["type"] == wanted]
            return source(alike[0].get("link")) if alike else None
        return [str(origin), slot]

    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in FRONTEND_ONLY or node.get("mode") in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"This ComfyUI has no node {node['type']} (number {node['id']} in the workflow).")
        inputs = _widget_inputs(node, object_info[node["type"]])
        for entry in node.get("inputs", []):
            linked = source(entry.get("link"))
            if linked is not None:
                inputs[entry["name"]] = linked
        title = node.get("title") or object_info[node["type"]]["display_name"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def _widget_inputs(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    drawn = {entry["widget"]["name"] for entry in node.get("inputs", []) if entry.get("widget")}
    found = dict(_read_widgets(info["input"], list(reversed(values)), drawn))
    return {name: {"__value__": value} if isinstance(value, list) else value for name, value in found.items()}


def _read_widgets(
    inputs: dict[str, Any], values: list[Any], drawn: set[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Takes `values` from the end, one for each input that has a widget, in the frontend's order."""
    for group in ("required", "optional"):
        upload_buttons = 0
        for name, (kind, *rest) in inputs.get(group, {}).items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options", [])
            is_widget = isinstance(kind, list) or kind in WIDGETS or prefix + name in drawn
            if not is_widget or options.get("forceInput"):
                continue
            value = values.pop() if values else options.get("default", choices[0] if choices else None)
            yield prefix + name, value
            seed_like = options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed"))
            if seed_like and values and values[-1] in CONTROLS:
                values.pop()
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for choice in choices:
                    if choice["key"] == value:
                        yield from _read_widgets(choice["inputs"], values, drawn, f"{prefix}{name}.")
            upload_buttons += any(options.get(upload) for upload in UPLOADS)
        del values[len(values) - min(upload_buttons, len(values)) :]  # the button comes last among the required
