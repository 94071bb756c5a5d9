"""What comes to the nodes from outside: pictures, captions, requests. An error that is not one of ours is a fault."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from comfyui_perfusion.nodes.host import routes, thumbnail
from comfyui_perfusion.nodes.host.files import save_with_training
from comfyui_perfusion.nodes.host.photos import caption_texts, load_caption, load_photo
from comfyui_perfusion.nodes.photo_folder import Photo
from comfyui_perfusion.perfusion_core import Concept, load_concept

from .core_files import MEMORY

SOUND = Concept(
    "toy", "<my-toy>", "teddy", "sd1", {"l": torch.ones(8)}, torch.ones(8), torch.ones(8), torch.full((8,), 0.25),
    {"layer.attn2": torch.ones(8)},
)  # fmt: skip
_REQUESTS = 6  # of one input


def photo(content: bytes) -> None:
    """As a photo with itself as mask and caption, and as a thumbnail."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "toy.png")
        path.write_bytes(content)
        for mask in (None, path):
            _refused_or(load_photo, Photo(path, mask, None), 16)
        if (caption := _refused_or(load_caption, Photo(path, None, path))) is not None:
            _refused_or(caption_texts, [caption], 1, "<my-toy>", "teddy")
    text = base64.b64encode(content).decode()
    thumbnail.decoded({thumbnail.KEY: text})
    _refused_or(thumbnail.from_page, text)


class Site:
    """A server with our routes and two concepts, one of them damaged; beside its folder is a file of others."""

    def __init__(self, base: Path) -> None:
        self.home, self.secret = base / "perfusion", base / "secret.safetensors"
        self.secret.write_bytes(b"a file that is none of the server's")
        folder_paths.folder_names_and_paths["perfusion"] = ([str(self.home)], {".safetensors"})
        folder_paths.set_input_directory(str(base / "input"))
        save_with_training(SOUND, {"step": torch.ones(1)}, self.home / "toys/toy.safetensors")
        (self.home / "broken.safetensors").write_bytes(b"no concept")
        self.files = self._contents()
        self.loop = asyncio.new_event_loop()
        self.client = self.loop.run_until_complete(self._serve())

    def answer(self, content: bytes) -> None:
        """Every line is a request: method, route with query, and for a POST the body; {undo} is the last token."""
        token = ""
        for line in content.split(b"\n")[:_REQUESTS]:
            method, _, rest = line.partition(b" ")
            route, _, body = rest.partition(b" ")
            path, _, query = route.decode(errors="replace").partition("?")
            body = body.replace(b"{undo}", token.encode())
            status, said = self.loop.run_until_complete(self._ask(method.decode(errors="replace"), path, query, body))
            assert status < 500, (status, said)
            if status == 200 and path == "trash":
                token = json.loads(said)["undo"]
        self._check()

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()

    async def _serve(self) -> TestClient:
        table, app = web.RouteTableDef(), web.Application()
        routes.add_to(table)
        app.add_routes(table)
        client = TestClient(TestServer(app))
        await client.start_server()
        return client

    async def _ask(self, method: str, path: str, query: str, body: bytes) -> tuple[int, bytes]:
        if method not in ("GET", "POST", "PUT") or path not in ROUTES:
            return 404, b""
        parameters = [tuple(pair.partition("=")[::2]) for pair in query.split("&") if pair]
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        async with self.client.request(
            method, f"/perfusion/{path}", params=parameters, data=body or None, headers=headers
        ) as answer:
            return answer.status, await answer.read()

    def _check(self) -> None:
        """Nothing is lost or written elsewhere; then all is put back."""
        assert self.secret.read_bytes() == b"a file that is none of the server's"
        assert len(list(self.secret.parent.iterdir())) == 2
        contents = self._contents()
        if contents == self.files:
            return
        assert len(contents) == len(self.files)
        assert sum(1 for path in self.home.rglob("*.safetensors") if _is_sound(path)) == 1
        for path in contents:
            path.unlink()
        for path, content in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        folder_paths.filename_list_cache.clear()

    def _contents(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.home.rglob("*") if path.is_file()}


ROUTES = "concepts thumbnail file superclass metadata rename trash undo estimate stop continue choose".split()


def _is_sound(path: Path) -> bool:
    return _refused_or(load_concept, path) is not None


def _refused_or(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except ValueError as error:
        assert str(error), "a refusal that says nothing"
        return None
