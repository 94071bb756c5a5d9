"""The benchmark of speed, tried with networks of a few channels: every way to use a model runs and is told apart."""

import json
import os
import subprocess
import sys

import pytest
import torch

from comfyui import REPO

sys.path.append(str(REPO / "benchmarks"))
import cost
from speed import adapters
from speed.models import random_model


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """rows(*arguments) -> what the benchmark finds, {name: row}."""

    def run(*arguments: str):
        path = tmp_path / "figures.jsonl"
        monkeypatch.setattr(sys, "argv", ["cost.py", *arguments, "--tiny", "--rounds", "1", "--json", str(path)])
        cost.main()
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


def test_all_ways_to_use_a_model_take_their_turns(rows):
    found = {row["name"]: row for row in rows("forward", "--size", "64", "--steps", "3", "--concepts", "0", "1", "16")}
    assert {
        "unpatched", "0 concepts", "1 concept, kept", "1 concept", "16 concepts, kept", "first open version, 1 concept",
        "second open version, 1 concept", "LoRA, merged", "LoRA, bypass", "IP-Adapter's attention",
    } <= found.keys()  # fmt: skip
    assert all(row["seconds"] > 0 and row["first"] > 0 for row in found.values())
    assert found["unpatched"]["ratio"] == 1


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_the_forms_of_other_programs_agree_with_each_other(dtype, close):
    """Of one concept, with the same outputs; of several, the second one takes an approximation."""
    model, forms = random_model("sd1", dtype, text_only=True, **cost.NARROW["sd1"]), []
    for form in (adapters.first_open_version, adapters.second_open_version):
        torch.manual_seed(0)
        forms.append(form(model, 1).object_patches)
    e = torch.randn(2, 5, 8, dtype=dtype)
    with torch.inference_mode():
        for path in forms[0]:
            torch.testing.assert_close(forms[0][path](e), forms[1][path](e), rtol=close, atol=close)


def test_what_grows_is_told_for_every_axis(rows):
    found = rows("growth", "--steps", "2")
    assert {row["axis"] for row in found} == {"concepts", "tokens", "prompts", "layers"}
    assert all(row[kind] > 0 for row in found for kind in ("plain", "edited", "kept"))


def test_a_training_is_compared_with_the_network_alone(rows):
    found = {row["name"]: row for row in rows("training", "--size", "64", "--batch", "1")}
    assert found["the network alone"]["to the network alone"] == 1
    assert "a whole step, per micro-batch" in found and "straightforward loop" in found


def test_memory_that_is_kept_is_that_of_all_keys_and_values(rows):
    plain, kept, unkept = rows("memory", "--model", "sdxl")
    widths = [delta.numel() for delta in cost.random_concepts_of("sdxl")[0].value_deltas.values()]
    keys_and_values = 2 * 2 * 77 * sum(widths) * 4  # of two prompts, in bytes
    assert plain["between"] == 0 and unkept["between"] < 0.01 * keys_and_values
    assert kept["between"] == pytest.approx(keys_and_values, rel=0.01)


def test_a_covariance_is_compared_with_encoding_alone(rows):
    found = {row["name"]: row for row in rows("covariance", "--captions", "4")}
    assert found["encoding"]["to encoding"] == 1 and found["covariance"]["seconds"] > 0


def test_the_script_for_a_gpu_runs_what_fits_and_leaves_the_rest_out(tmp_path):
    asked = tmp_path / "asked"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    script = ["bash", str(REPO / "benchmarks" / "gpu.sh"), str(tmp_path / "out")]
    subprocess.run(script, env=environment, check=True, capture_output=True)
    lines = asked.read_text().splitlines()
    assert len(lines) > 8
    for line in lines:
        cost.parser().parse_args(line.split()[1:])  # the benchmark takes these
    asked.unlink()
    subprocess.run([*script, "--tiny"], env=environment, check=True, capture_output=True)
    assert 0 < len(asked.read_text().splitlines()) < len(lines)


def test_the_script_for_a_gpu_trains_the_demo_model_on_what_it_carries(tmp_path):
    asked, python, carried = tmp_path / "asked", tmp_path / "python", tmp_path / "carried" / "world"
    carried.mkdir(parents=True)
    (carried / "latents").write_text("")
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "CARRIED": str(carried.parent)}
    script = ["bash", str(REPO / "benchmarks" / "gpu.sh"), str(tmp_path / "out"), "--world", "5"]
    train, export = "train_diffusion --minutes 5 --device cuda", f"export --file {tmp_path}/out/demo_model.safetensors"
    for restored in (["export --restore"], []):  # the second time it goes on
        subprocess.run(script, env=environment, check=True, capture_output=True)
        lines = [line.removeprefix("-m benchmarks.world.") for line in asked.read_text().splitlines()]
        assert lines == [*restored, train, export]
        asked.unlink()
    assert (tmp_path / "out" / "world" / "latents").is_file()
