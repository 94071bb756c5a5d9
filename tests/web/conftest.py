"""A real ComfyUI with this pack, and its frontend in a headless Chromium. Nothing is run, no model is needed."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from steps import TOGGLE_SIDEBAR, open_workflow

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path += [str(SCRIPTS), str(SCRIPTS / "make")]


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


@pytest.fixture
def page(frontend, request):
    """With the generate workflow, large enough for widgets to be drawn, in the renderer that a test asks for."""
    frontend.set("Comfy.VueNodes.Enabled", getattr(request, "param", "classic") == "vue")
    open_workflow(frontend, "3 Generate SD1.5")
    yield frontend.page
    frontend.set("Comfy.RightSidePanel.IsOpen", False)  # it opens by itself where a file is missing
    frontend.set("Comfy.VueNodes.Enabled", False)


@pytest.fixture
def concepts(page):
    """The sidebar's list, opened."""
    shown = page.get_by_role("region", name="Perfusion concepts")
    if not shown.is_visible():
        page.evaluate(TOGGLE_SIDEBAR)
    shown.get_by_role("searchbox").fill("")
    yield shown
    page.evaluate(TOGGLE_SIDEBAR)


@pytest.fixture
def no_new_files(server):
    models = server.base / "models" / "perfusion"
    before = set(models.rglob("*.safetensors"))
    yield
    for path in set(models.rglob("*.safetensors")) - before:
        path.unlink()
