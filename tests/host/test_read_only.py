"""A model folder that may be read and not written, as another user's: what is there works and stays as it was."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import folder_paths
import pytest
from comfyui_perfusion.nodes.host.files import concept_names
from comfyui_perfusion.perfusion_core import load_concept

from test_files import OTHER, save
from test_routes import ask, contents

NOBODY = 65534
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has other permissions")


@pytest.fixture
def read_only(monkeypatch):
    """The model folder with one concept, for a user who is not root: root may write anywhere."""
    home = Path(tempfile.mkdtemp())  # pytest's own folders are only for their owner
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "perfusion", ([str(home)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    save("toy")
    home.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        yield home
    finally:
        if root:
            os.seteuid(0)
        home.chmod(0o755)
        shutil.rmtree(home)


def test_nodes_and_routes_say_so_and_change_nothing(read_only):
    before = contents(read_only)
    assert concept_names() == ["toy.safetensors"]
    for name, overwrite in (("toy", True), ("new", False), ("toys/new", False)):
        with pytest.raises(RuntimeError, match=r"could not be written.*Permission denied"):
            save(name, overwrite, OTHER)
    for route, more in {"metadata": {"notes": "mine"}, "rename": {"name": "mine"}, "trash": {}}.items():
        status, answer = ask("POST", route, {"file": "toy.safetensors", **more})
        assert (status, answer) == (500, {"error": "The disk refuses: Permission denied."})
    assert ask("GET", "concepts")[1][0]["trigger"] == "<my-toy>"
    assert contents(read_only) == before
    assert load_concept(read_only / "toy.safetensors").superclass == "teddy"
