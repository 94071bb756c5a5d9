"""What a training is said to take before it starts; docs/memory.md has it from the true architectures."""

import re

import pytest
import torch
from comfyui_perfusion.nodes.host import estimate
from comfyui_perfusion.nodes.host.estimate import Job, job_of, photo_warnings
from comfyui_perfusion.nodes.host.photos import has_mask, photo_folder

from comfyui import REPO
from test_routes import ask

PAPER = {"steps": 400, "batch_size": 4, "accumulation": 4, "checkpoint_every": 50}
SLOW = {"batch_size": 1, "accumulation": 16}
ROWS = {  # of the table in docs/memory.md
    "SD1.5 at 512, batch 4": {"base_model": "sd1"},
    "gradient_checkpointing on": {"base_model": "sd1", "gradient_checkpointing": "on"},
    "SDXL at 1024, batch 4": {"base_model": "sdxl"},
    "gradient_checkpointing off |": {"base_model": "sdxl", "gradient_checkpointing": "off"},
    "gradient_checkpointing off, batch_size 1": {"base_model": "sdxl", "gradient_checkpointing": "off", **SLOW},
    "low_memory, resolution 768": {"base_model": "sdxl", "low_memory": True, "resolution": 768},
    "Anima at 1024, batch 4": {"base_model": "anima"},
    "low_memory, Anima": {"base_model": "anima", "low_memory": True},
    "Cosmos-Predict2 at 1024, batch 4": {"base_model": "cosmos-predict2"},
    "SD2.1 at 768, batch_size 1": {"base_model": "sd2", "resolution": 768, **SLOW},
}


@pytest.mark.parametrize("row", ROWS)
def test_memory_is_what_the_docs_say(monkeypatch, row):
    monkeypatch.setattr(estimate, "_device", lambda: torch.device("cuda"))
    (line,) = [
        line for line in (REPO / "docs/memory.md").read_text("utf-8").splitlines() if line.startswith(f"| {row}")
    ]
    expected = float(re.findall(r"\d+\.\d+", line)[-1])
    job = Job(**{**PAPER, **ROWS[row]})
    assert job.memory / 2**30 == pytest.approx(expected, abs=0.35)


def test_time_goes_by_the_last_training(monkeypatch):
    monkeypatch.setattr(estimate, "_speeds", {})
    job = Job("demo", **PAPER)
    assert estimate.estimate(job)["seconds"] > 0
    estimate.learn_speed(job, 2.0)
    assert estimate.estimate(job)["seconds"] == pytest.approx(800, rel=0.1)
    half = Job("demo", **{**PAPER, "steps": 200})
    assert estimate.estimate(half)["seconds"] == pytest.approx(400, rel=0.1)


def test_low_memory_takes_longer_and_samples_take_time():
    plain, low = Job("sd1", **PAPER), Job("sd1", **PAPER, low_memory=True)
    assert low.work > plain.work and low.memory < plain.memory
    assert Job("sd1", **PAPER, previews=4).work > plain.work


@pytest.mark.parametrize(
    "change",
    [
        {"base_model": "flux"},
        {"steps": "0"},
        {"steps": "many"},
        {"gradient_checkpointing": "?"},
        {"steps": None},
        {"steps": "1" + "0" * 400},
        {"resolution": "1" + "0" * 200},
        {"previews": "-1"},
    ],
)
def test_nonsense_is_refused(change):
    asked = {"base_model": "sd1", **{name: str(value) for name, value in PAPER.items()}, **change}
    with pytest.raises(ValueError):
        job_of({name: value for name, value in asked.items() if value is not None})


def test_few_photos_and_missing_masks_are_counted():
    assert photo_warnings(2, 1) == {"few_photos": 2, "without_mask": 1}
    assert photo_warnings(5, 0) == {}
    assert all(map(has_mask, photo_folder("demo: teddy").photos))


def test_the_route_answers_the_page(model_folder):
    asked = {"base_model": "demo", **{name: str(value) for name, value in PAPER.items()}, "folder": "demo: teddy"}
    status, answer = ask("GET", "estimate", params=asked)
    assert status == 200
    assert answer.keys() == {"seconds", "bytes", "device_bytes", "warnings"} and answer["warnings"] == {}
    assert ask("GET", "estimate", params={"base_model": "demo"})[0] == 400
    assert ask("GET", "estimate", params={**asked, "folder": "../.."})[0] == 400
