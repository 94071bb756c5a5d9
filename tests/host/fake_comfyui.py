"""The routes of a ComfyUI without what is behind them, to show what a client does when a server misbehaves."""

import asyncio
import io
import json
import threading
from collections.abc import Awaitable, Callable

from aiohttp import web
from PIL import Image

WORKFLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "PerfusionLoadPhotos", "inputs": {"folder": "my_photos"}},
    "3": {
        "class_type": "PerfusionTrainConcept",
        "inputs": {"images": ["2", 0], "trigger": "<my-teddy>", "superclass": "teddy", "steps": 4, "seed": 0},
    },
    "4": {"class_type": "PerfusionSaveConcept", "inputs": {"concept": ["3", 0], "filename": "x", "overwrite": False}},
}


class FakeComfyUI:
    """Runs every prompt as ``play(fake, prompt_id)`` says; ``posts`` is all that came in, as (path, JSON or name), and
    ``gets`` all that was asked for."""

    def __init__(self, play: Callable[["FakeComfyUI", str], Awaitable[None]], checkpoints=("a.safetensors",)) -> None:
        self.play, self.checkpoints = play, list(checkpoints)
        self.concepts: list[str] = []
        self.posts: list[tuple[str, object]] = []
        self.gets: list[str] = []
        self.history: dict[str, dict] = {}
        self.queue: list[str] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.answers: dict[str, int] = {}  # paths that answer a status only
        self.refused_suffix = "nothing"
        self.node_errors: dict[str, dict] = {}

    def __enter__(self) -> "FakeComfyUI":
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()

    def posted(self, path: str) -> list:
        return [body for to, body in self.posts if to == path]

    async def event(self, kind: str, **data: object) -> None:
        await asyncio.sleep(0.02)
        for socket in self.sockets:
            await socket.send_json({"type": kind, "data": data})

    async def progress(self, prompt_id: str, value: int, maximum: int = 4) -> None:
        await self.event("progress", prompt_id=prompt_id, node="3", value=value, max=maximum)

    async def drop(self) -> None:
        """Closes the websockets; the prompt goes on."""
        while self.sockets:
            await self.sockets.pop().close()

    def end(self, prompt_id: str, outputs: dict | None = None) -> None:
        self.queue.remove(prompt_id)
        self.history[prompt_id] = {"status": {"status_str": "success", "messages": []}, "outputs": outputs or {}}

    async def finish(self, prompt_id: str, outputs: dict | None = None) -> None:
        self.end(prompt_id, outputs)
        await self.event("executing", prompt_id=prompt_id, node=None)

    async def _serve(self, ready: threading.Event) -> None:
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._answer])
        app.router.add_get("/ws", self._ws)
        for path in (
            "/object_info",
            "/queue",
            "/models/checkpoints",
            "/models/perfusion",
            "/history/{id}",
            "/perfusion/file",
            "/view",
        ):
            app.router.add_get(path, self._get)
        app.router.add_post("/prompt", self._prompt)
        app.router.add_post("/upload/image", self._upload)
        for path in ("/queue", "/interrupt"):
            app.router.add_post(path, self._taken)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await self.over.wait()
        await self.drop()
        await runner.cleanup()

    @web.middleware
    async def _answer(self, request: web.Request, handler):
        if request.method == "GET":
            self.gets.append(request.path)
        if request.path in self.answers:
            return web.Response(status=self.answers[request.path])
        if request.method == "POST" and request.content_type == "application/json":
            self.posts.append((request.path, await request.json()))
        return await handler(request)

    async def _get(self, request: web.Request) -> web.Response:
        if request.path == "/perfusion/file":
            return web.Response(body=f"the file {request.query['file']}".encode())
        if request.path == "/view":  # a picture in the colour of its name
            picture = io.BytesIO()
            Image.new("RGB", (64, 64), request.query["filename"].removesuffix(".png")).save(picture, "PNG")
            return web.Response(body=picture.getvalue())
        return web.json_response(
            {
                "/object_info": {},
                "/queue": {"queue_running": [[0, id] for id in self.queue], "queue_pending": []},
                "/models/checkpoints": self.checkpoints,
                "/models/perfusion": self.concepts,
            }.get(request.path)
            or {id: entry for id, entry in self.history.items() if request.path == f"/history/{id}"}
        )

    async def _taken(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        await socket.send_json({"type": "status", "data": {"sid": request.query["clientId"]}})
        async for _ in socket:
            pass
        if socket in self.sockets:
            self.sockets.remove(socket)
        return socket

    async def _prompt(self, request: web.Request) -> web.Response:
        prompt_id = (await request.json())["prompt_id"]
        self.queue.append(prompt_id)
        self.running = asyncio.create_task(self.play(self, prompt_id))
        return web.json_response({"prompt_id": prompt_id, "node_errors": self.node_errors})

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        name = f"{form['subfolder']}/{form['image'].filename}"
        self.posts.append((request.path, name))
        if name.endswith(self.refused_suffix):
            return web.Response(status=400)
        return web.json_response({"name": form["image"].filename, "subfolder": form["subfolder"], "type": "input"})


def save_workflow(path) -> None:
    path.write_text(json.dumps(WORKFLOW), encoding="utf-8")
