"""A real ComfyUI with this pack, and its frontend in a headless Chromium. Nothing is run, no model is needed."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if shutil.which("chromium") is None:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("These tests need chromium in PATH (Debian: apt-get install chromium).")
    from browser import add_stand_ins
    from comfyui import Server

    base = tmp_path_factory.mktemp("comfyui")
    add_stand_ins(base)
    with Server(base) as server:
        yield server


@pytest.fixture(scope="module")
def frontend(server):
    from browser import open_frontend

    with open_frontend(server.address) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def object_info(frontend):
    return frontend.get("/object_info").json()


@pytest.fixture(scope="module")
def our_nodes(object_info):
    return {name: info for name, info in object_info.items() if name.startswith("Perfusion")}
