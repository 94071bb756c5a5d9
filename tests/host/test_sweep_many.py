"""scripts/sweep_many.py: what each picture is made with, and where it is in the sheet."""

import json
from pathlib import Path

import pytest
import torch
from comfyui_perfusion.perfusion_core import Concept, save_concept
from PIL import Image

import sweep_many
from fake_comfyui import FakeComfyUI
from many.comfy_worker import Offer
from ray_machines import Machines, wait_for_all_servers

WORKFLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "PerfusionLoader", "inputs": {"concept": "x.safetensors", "beta": 0.7, "key_lock": 0.0}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "?", "clip": ["2", 1]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["2", 1]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 4}},
    "6": {"class_type": "KSampler", "inputs": {"positive": ["3", 0], "negative": ["4", 0], "seed": 1}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0]}},
}
COLOURS = {0.5: "red", 0.7: "lime", 0.9: "blue"}


@pytest.fixture
def concepts(tmp_path) -> Path:
    """A folder with <one> and <two>."""
    folder = tmp_path / "concepts"
    folder.mkdir()
    for name in ("one", "two"):
        vectors = {"l": torch.ones(8)}, torch.ones(8), torch.ones(8), torch.full((8,), 0.25)
        concept = Concept(name, f"<{name}>", "teddy", "sd1", *vectors, {"layer.attn2": torch.ones(8)})
        save_concept(concept, folder / f"{name}.safetensors")
    return folder


async def paint(fake: FakeComfyUI, prompt_id: str) -> None:
    """Everything in the colour of its beta; the sketches fail."""
    (prompt,) = [post["prompt"] for post in fake.posted("/prompt") if post["prompt_id"] == prompt_id]
    if "sketch" in prompt["3"]["inputs"]["text"]:
        fake.queue.remove(prompt_id)
        error = {"node_type": "KSampler", "node_id": "6", "exception_type": "ValueError"}
        error |= {"exception_message": "no sketches", "traceback": []}
        fake.history[prompt_id] = {"status": {"status_str": "error", "messages": [["execution_error", error]]}}
        await fake.event("executing", prompt_id=prompt_id, node=None)
        return
    where = {"filename": f"{COLOURS[prompt['2']['inputs']['beta']]}.png", "subfolder": "", "type": "output"}
    await fake.finish(prompt_id, {"7": {"images": [where]}})


def test_every_picture_is_where_its_labels_say_and_what_fails_is_left_grey(tmp_path, concepts, capsys, monkeypatch):
    wait_for_all_servers(monkeypatch)
    path, output = tmp_path / "workflow.json", tmp_path / "sheet.png"
    path.write_text(json.dumps(WORKFLOW))
    given = ["--prompt", "a photo of {}", "a sketch of {}", "--beta", "0.5", "0.7", "0.9", "--cell", "32"]
    with Machines() as machines, FakeComfyUI(paint) as first, FakeComfyUI(paint) as second:
        machines.add()
        first.concepts = second.concepts = ["one.safetensors", "two.safetensors"]
        servers = ["--address", machines.address, "--server", first.address, "--server", second.address]
        code = sweep_many.main([str(concepts), *given, *servers, "--workflow", str(path), "--output", str(output)])
        prompts = [post["prompt"] for fake in (first, second) for post in fake.posted("/prompt")]
    printed = capsys.readouterr().out
    assert code == 1 and f"6 of 12 pictures: {output}" in printed and printed.count("no sketches") == 1
    assert {
        (prompt["2"]["inputs"]["concept"], prompt["3"]["inputs"]["text"], prompt["2"]["inputs"]["beta"])
        for prompt in prompts
    } == {
        (f"{name}.safetensors", f"a {kind} of <{name}>", beta)
        for name in ("one", "two") for kind in ("photo", "sketch") for beta in COLOURS
    }  # fmt: skip
    assert {prompt["5"]["inputs"]["batch_size"] for prompt in prompts} == {1}
    sheet = Image.open(output).convert("RGB")
    left, top = sheet.width - 3 * 38, sheet.height - 4 * 38  # three columns and four rows of cells with their gaps
    middles = [[sheet.getpixel((left + 38 * x + 16, top + 38 * y + 16)) for x in range(3)] for y in range(4)]
    photos, grey = [(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(221, 221, 221)] * 3
    assert middles == [photos, grey, photos, grey]


def test_a_setting_that_is_not_given_is_the_workflows(concepts):
    options = sweep_many.parse_options([str(concepts), "--key-lock", "1", "--seed", "5"])
    offer = Offer("here", WORKFLOW, ["a.safetensors"], [], own=True)
    file = concepts / "one.safetensors"
    cell = sweep_many.Cell({"concept": file, "prompt": "{} at night", "key_lock": 1.0, "seed": 5})
    task = sweep_many.task_of(cell, offer, 1, "a.safetensors", options)
    assert task.prompt["2"]["inputs"] == {"concept": "one.safetensors", "beta": 0.7, "key_lock": 1.0}
    assert (task.prompt["6"]["inputs"]["seed"], task.prompt["3"]["inputs"]["text"]) == (5, "<one> at night")
    assert task.concepts == {"one.safetensors": file.read_bytes()}
    with pytest.raises(ValueError, match=r"there has no concept one\.safetensors and is left out"):
        sweep_many.task_of(
            cell, Offer("there", WORKFLOW, ["a.safetensors"], [], own=False), 1, "a.safetensors", options
        )


def test_the_prompt_is_found_behind_a_controlnet_and_a_workflow_without_one_is_told():
    behind = {**WORKFLOW, "6": {**WORKFLOW["6"], "inputs": {"positive": ["8", 0]}}}
    behind["8"] = {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["3", 0], "negative": ["4", 0]}}
    assert sweep_many.inputs_with_text(behind) is behind["3"]["inputs"]
    behind["8"]["inputs"].clear()
    with pytest.raises(SystemExit, match="from nowhere"):
        sweep_many.inputs_with_text(behind)


def test_the_longest_axis_goes_across_unless_another_is_chosen(concepts):
    axes = {"concept": [1, 2], "prompt": ["a"], "beta": [0.5, 0.7, 0.9]}
    assert sweep_many.columns_of(sweep_many.parse_options([str(concepts)]), axes) == "beta"
    assert sweep_many.columns_of(sweep_many.parse_options([str(concepts), "--columns", "prompt"]), axes) == "prompt"


def test_prompts_come_from_the_line_and_from_a_file(tmp_path, concepts):
    (tmp_path / "prompts.txt").write_text("{} on grass\n\n{} on snow\n")
    options = sweep_many.parse_options(
        [str(concepts), "--prompt", "{} on snow", "--prompts", f"{tmp_path}/prompts.txt"]
    )
    assert sweep_many.read_prompts(options) == ["{} on snow", "{} on grass"]
    assert sweep_many.read_prompts(sweep_many.parse_options([str(concepts)])) == ["a photo of {}"]


def test_what_cannot_be_swept_is_told_before_anything_starts(tmp_path, concepts, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    one = concepts / "one.safetensors"
    for given, problem in (
        ([tmp_path / "empty"], "There is no concept file"), ([tmp_path / "broken.safetensors"], "broken.safetensors"),
        ([concepts, one], "called one.safetensors"), ([concepts, "--prompts", tmp_path / "none"], "cannot be read"),
        ([concepts, "--seed", *range(501)], "These are 1002 pictures"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=problem):
            sweep_many.main([*map(str, given)])
    for given in (["--cell", "1"], ["--output", "x.gif"], ["--output", "none/x.png"], ["--columns", "colour"]):
        with pytest.raises(SystemExit):
            sweep_many.main([str(concepts), *given])
        assert given[0] in capsys.readouterr().err
