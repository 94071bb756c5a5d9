"""A disk that is really full, a small tmpfs: what was there stays, messages say so, and with room again all goes on."""

import os
import subprocess
import sys
import types
from pathlib import Path

import comfy.model_management
import pytest
from comfyui_perfusion.nodes import run
from comfyui_perfusion.nodes.load import PerfusionSaveConcept
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import load_concept

from makers import train_node
from test_bad_input import CANCEL, after_step
from test_files import OTHER, save
from test_routes import ask, contents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="where disks are made of memory in this way")
FILE = "toys/toy.safetensors"


@pytest.fixture
def disk(tmp_path, monkeypatch, model_folder):
    """A disk of one megabyte that is the model folder, with one concept."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", model_folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.decode().strip()}")
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None))
    try:
        save("toys/toy")
        yield model_folder
    finally:
        subprocess.run(["umount", model_folder], check=True)


def fill(disk: Path) -> None:
    room = os.statvfs(disk)
    with (disk / "filled").open("ab") as file:
        file.write(bytes(room.f_bavail * room.f_frsize))


def make_room(disk: Path) -> None:
    (disk / "filled").unlink()


def test_saving_and_editing_fail_and_leave_everything(disk):
    fill(disk)
    before = contents(disk)
    for name, overwrite in (("toys/toy", True), ("new", False), ("more/new", False)):
        with pytest.raises(RuntimeError, match=r"could not be written.*No space left.*Make room"):
            save(name, overwrite, OTHER)
    for route, change in (("metadata", {"notes": "mine"}), ("rename", {"name": "mine"})):
        answer = ask("POST", route, {"file": FILE, **change})
        assert answer == (500, {"error": "The disk refuses: No space left on device."})
    assert contents(disk) == before
    make_room(disk)
    assert ask("POST", "metadata", {"file": FILE, "notes": "mine"})[0] == 200
    save("toys/toy", True, OTHER)
    assert load_concept(disk / FILE).superclass == "cup"


def test_deleting_and_undo_need_no_room(disk):
    fill(disk)
    before = contents(disk)
    status, undo = ask("POST", "trash", {"file": FILE})
    assert status == 200
    assert ask("POST", "undo", undo)[0] == 200
    assert contents(disk) == before


def test_a_training_on_a_full_disk_ends_well_and_is_saved_once_there_is_room(models, disk, monkeypatch, caplog):
    monkeypatch.setattr(run, "_SAVE_EVERY", 0)
    after_step(monkeypatch, 2, lambda: fill(disk))
    ((use,), *_) = train_node(models, steps=[4]).args
    assert "No space left" in caplog.text
    fill(disk)  # where the unfinished concept was
    before = contents(disk)
    with pytest.raises(RuntimeError, match=r"No space left.*the training is not repeated"):
        PerfusionSaveConcept.execute((use,), "trained", False)
    assert contents(disk) == before
    make_room(disk)
    PerfusionSaveConcept.execute((use,), "trained", False)
    assert load_concept(disk / "trained.safetensors").trigger == "<my-toy>"


def test_a_training_that_is_cancelled_on_a_full_disk_goes_on_where_it_was(models, disk, monkeypatch, caplog):
    fill(disk)
    before = contents(disk)
    with monkeypatch.context() as patch, pytest.raises(CANCEL):
        after_step(patch, 1, comfy.model_management.interrupt_current_processing)
        train_node(models)
    assert "No space left" in caplog.text
    assert contents(disk) == before
    make_room(disk)
    steps = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda _, value, *__: steps.append(value))
    train_node(models, remembered=True)
    assert steps[0] == 1
