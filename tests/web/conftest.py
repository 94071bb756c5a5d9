"""A real ComfyUI with this pack, and its frontend in a headless Chromium. Nothing is run, no model is needed."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from steps import LIST_AGAIN, TOGGLE_SIDEBAR, open_workflow

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path += [str(SCRIPTS), str(SCRIPTS / "make")]
SPOILED = pytest.StashKey[bool]()  # of the session: the last test failed, wherever that left the page and the files


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


@pytest.fixture(scope="session")
def opened(server):
    """For all tests, since opening it takes as long as ten of them."""
    from browser import open_frontend

    with open_frontend(server.address) as opened:
        yield opened


@pytest.fixture
def renderer(request):
    """ "classic" or "vue", of the frontend's nodes."""
    return getattr(request, "param", "classic")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Those on the page as it comes up first, and in each file all with the classic renderer: to change it draws every
    node anew."""
    files = list(dict.fromkeys(item.path for item in items))
    items.sort(key=lambda item: (item.path.name != "test_fresh_page.py", files.index(item.path), _is_vue(item)))


def _is_vue(item):
    return hasattr(item, "callspec") and item.callspec.params.get("renderer") == "vue"


@pytest.fixture
def frontend(opened, server, renderer, request):
    """The page, as it was after its start but for the workflow in it, whatever the tests before have done."""
    from browser import add_stand_ins

    if request.session.stash.get(SPOILED, False):
        shutil.rmtree(server.base / "models" / "perfusion")
        add_stand_ins(server.base)
        opened.open()
        request.session.stash[SPOILED] = False
    opened.set("Comfy.VueNodes.Enabled", renderer == "vue")
    yield opened
    opened.set("Comfy.RightSidePanel.IsOpen", False)  # it opens by itself where a file is missing
    opened.page.mouse.move(0, 0)  # where it points to nothing that the next test opens


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        item.session.stash[SPOILED] = True
        if "opened" in item.funcargs:
            report.sections.append(("The page's last complaints", "\n".join(item.funcargs["opened"].complaints[-10:])))
    return report


@pytest.fixture(scope="session")
def object_info(opened):
    return opened.get("/object_info").json()


@pytest.fixture(scope="session")
def our_nodes(object_info):
    return {name: info for name, info in object_info.items() if name.startswith("Perfusion")}


@pytest.fixture
def workflow():
    """What ``page`` opens."""
    return "3 Generate SD1.5"


@pytest.fixture
def page(frontend, workflow):
    """With a workflow, large enough for widgets to be drawn."""
    open_workflow(frontend, workflow)
    return frontend.page


@pytest.fixture
def concepts(page):
    """The sidebar's list, opened."""
    page.evaluate(TOGGLE_SIDEBAR)
    shown = page.get_by_role("region", name="Perfusion concepts")
    shown.get_by_role("searchbox").fill("")
    shown.get_by_role("listitem").first.wait_for()
    yield shown
    page.evaluate(TOGGLE_SIDEBAR)
    shown.wait_for(state="hidden")


@pytest.fixture
def trainer(page):
    """The trainer's panel, in the workflow that trains."""
    page.evaluate("() => Object.assign(app.canvas.ds, { scale: 0.7, offset: [-500, -160] })")  # all of it is seen
    return page.locator(".perfusion-panel").filter(has=page.get_by_text("Stop and keep"))


@pytest.fixture
def no_new_files(server, page):
    models = server.base / "models" / "perfusion"
    before = set(models.rglob("*.safetensors"))
    yield
    for path in set(models.rglob("*.safetensors")) - before:
        path.unlink()
    page.evaluate(LIST_AGAIN)
