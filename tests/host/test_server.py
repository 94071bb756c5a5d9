"""The shipped workflows on a real ComfyUI server, driven over its HTTP API."""

import os
import re
import resource
import shutil
import threading
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from comfyui_perfusion.perfusion_core import load_concept
from comfyui_perfusion.perfusion_core.captions import captions
from PIL import Image

import stand_ins
from comfyui import RunError, Server, override
from demo_model import on_the_demo_model

SMALL = {
    "resolution": 64, "batch_size": 1, "accumulation": 1, "trigger": "<my-toy>", "superclass": "toy", "flip": False,
    "previews": "a {}",
}  # fmt: skip

CAPTIONS = "captions.txt"
LONG = 300  # steps; the host tells of every 200th part
TINY = {"width": 64, "height": 64, "batch_size": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    stand_ins.add_checkpoint(base)
    stand_ins.add_photos(base)
    stand_ins.add_lora(base)
    stand_ins.add_controlnet(base)
    stand_ins.add_concepts(base)
    (base / "input" / CAPTIONS).write_text("\n".join(captions(8)))  # of a hundred the text encoder takes half a minute
    with Server(base) as running:
        yield running


def training(server: Server) -> dict:
    """The prompt of the shipped workflow."""
    prompt = stand_ins.load_workflow(server, "2 Train SD1.5.json", "<my-toy>")
    override(prompt, "PerfusionLoadPhotos", folder=stand_ins.PHOTOS)
    override(prompt, "PerfusionCovariance", caption_file=CAPTIONS)
    return prompt


def train(server: Server, steps: int, name: str, on_progress=None, demo: bool = False, **inputs) -> dict:
    prompt = training(server)
    if demo:
        on_the_demo_model(prompt)
        override(prompt, "PerfusionCovariance", captions="")  # but for those in the file
    override(prompt, "PerfusionTrainConcept", steps=steps, **{**SMALL, **inputs})
    override(prompt, "PerfusionSaveConcept", filename=name)
    return server.run(prompt, on_progress)


def generate(server: Server, concept: str | None) -> np.ndarray:
    """The picture of the shipped workflow; with no concept, Perfusion Loader is bypassed as the frontend does it."""
    prompt = stand_ins.load_workflow(server, "3 Generate SD1.5.json", "<my-toy>")
    override(prompt, "EmptyLatentImage", width=64, height=64, batch_size=1)
    override(prompt, "KSampler", steps=2)
    if concept is None:
        (loader,) = [id for id, node in prompt.items() if node["class_type"] == "PerfusionLoader"]
        passed = prompt.pop(loader)["inputs"]
        for node in prompt.values():
            for name, value in node["inputs"].items():
                if isinstance(value, list) and value[0] == loader:
                    node["inputs"][name] = passed["model" if value[1] == 0 else "clip"]
    else:
        override(prompt, "PerfusionLoader", concept=concept)
    outputs = server.run(prompt)
    (saved,) = [image for ui in outputs.values() for image in ui["images"]]
    return np.asarray(Image.open(server.path(saved)))


def test_photos_become_a_concept_becomes_a_picture_and_nothing_is_left_behind(server):
    plain = generate(server, None)
    seen = []
    outputs = train(server, steps=3, name="toys/my-toy", on_progress=lambda *event: seen.append(event))
    saved = server.base / "models" / "perfusion" / "toys" / "my-toy.safetensors"
    assert load_concept(saved).trigger == "<my-toy>"
    listed = server.request("GET", "/perfusion/concepts")
    assert [entry["trigger"] for entry in listed if entry["file"] == "toys/my-toy.safetensors"] == ["<my-toy>"]
    assert any("my-toy.safetensors" in text for ui in outputs.values() for text in ui.get("text", ()))
    assert sum(server.path(image).exists() for ui in outputs.values() for image in ui.get("images", ())) == 2
    (training,) = [ui["perfusion_training"][0] for ui in outputs.values() if "perfusion_training" in ui]
    assert [row["step"] for row in training["rows"]] == [0, 3]
    assert all(server.path(image).exists() for row in training["rows"] for image in row["images"])
    assert any(node == "PerfusionTrainConcept" and maximum == 3 for node, _, maximum, _ in seen)
    assert any(text.startswith("loss ") for *_, text in seen)
    assert np.array_equal(generate(server, None), plain)
    edited = generate(server, "toys/my-toy.safetensors")
    assert not np.array_equal(edited, plain)
    assert np.array_equal(generate(server, None), plain)
    assert (server.base / "models" / "perfusion" / "covariance").is_dir()


def run(server: Server, name: str, **settings: dict) -> dict[str, list[tuple[int, int]]]:
    """Runs a workflow with these inputs of its nodes; the sizes of the pictures that nodes show, by their titles."""
    prompt = stand_ins.load_workflow(server, f"{name}.json", stand_ins.WORKFLOW_TRIGGER)
    for class_type, inputs in settings.items():
        override(prompt, class_type, **inputs)
    outputs = server.run(prompt)
    pictures = {prompt[id]["_meta"]["title"]: ui["images"] for id, ui in outputs.items() if ui.get("images")}
    return {title: [Image.open(server.path(image)).size for image in images] for title, images in pictures.items()}


def test_the_quick_start_needs_nothing_but_the_pack(server):
    few = {"steps": 2}
    shown = run(server, "1 Quick start", PerfusionTrainConcept={**few, "previews": ""}, KSampler=few)
    assert shown["What it learns from"] == [(96, 96)] * 5
    assert shown["What it learned"] == [(96, 96)] * 9


def test_two_concepts_in_one_picture(server):
    shown = run(server, "6 Two concepts", EmptyLatentImage=TINY, KSampler={"steps": 1})
    assert shown["Save Image"] == [(64, 64)]
    assert shown.keys() >= {"How alike the concepts are", "On which words each concept acts"}


@pytest.mark.parametrize("name", ["7 Sweep", "8 Layout or look"])
def test_a_grid_of_settings(server, name):
    values = {"columns.values": "0, 1", "rows.values": "0.1, 0.5"}
    shown = run(server, name, PerfusionSweep={"steps": 1, "resolution": 64, **values})
    ((width, height),) = shown["The grid"]
    assert width > 2 * 64 and height > 2 * 64


def test_a_concept_with_a_lora_and_a_controlnet(server):
    shown = run(server, "9 LoRA and ControlNet", EmptyLatentImage=TINY, KSampler={"steps": 1})
    assert (shown["Outlines"], shown["Save Image"]) == ([(96, 96)], [(64, 64)])


def test_a_slider_runs_nothing_again_that_stands_before_the_loader(server):
    def ran(beta: float) -> set[str]:
        prompt = stand_ins.load_workflow(server, "3 Generate SD1.5.json", stand_ins.WORKFLOW_TRIGGER)
        for class_type, inputs in {"EmptyLatentImage": TINY, "KSampler": {"steps": 1}}.items():
            override(prompt, class_type, **inputs)
        override(prompt, "PerfusionLoader", beta=beta)
        seen = set()
        server.run(prompt, lambda node, *_: seen.add(node))
        return seen

    first, again = ran(0.61), ran(0.62)
    assert {"PerfusionLoader", "CLIPTextEncode", "KSampler"} <= again <= first
    assert not {"CheckpointLoaderSimple", "EmptyLatentImage"} & again


def test_a_cancelled_training_keeps_what_was_learned(server):
    plain = generate(server, None)
    cancels = []

    def cancel(node: str, value: float, *_: object) -> None:
        if node == "PerfusionTrainConcept" and value >= 2 and not cancels:
            cancels.append(threading.Thread(target=server.interrupt))
            cancels[0].start()

    # a seed of its own: where the server goes on from another training, nothing new may be learned until the cancel
    with pytest.raises(RuntimeError, match="interrupt"):
        train(server, steps=LONG, name="never", on_progress=cancel, seed=1, previews="")
    cancels[0].join()
    folder = server.base / "models" / "perfusion"
    assert not (folder / "never.safetensors").exists()
    assert load_concept(folder / "my-toy-unfinished.safetensors").trigger == "<my-toy>"
    assert np.array_equal(generate(server, None), plain)


def test_a_killed_server_loses_no_more_than_since_the_last_autosave(server, tmp_path):
    """And what it saved goes on, to the very file that an undisturbed training gives."""
    base = tmp_path / "comfyui"
    (base / "models").mkdir(parents=True)
    for folder in ("models/checkpoints", "models/perfusion", "input"):
        if (server.base / folder).is_dir():
            shutil.copytree(server.base / folder, base / folder, copy_function=os.link)
    folder = base / "models" / "perfusion"
    there_before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def continued(server: Server, name: str, steps: int, **inputs: object) -> bytes:
        train(server, steps, name, demo=True, checkpoint_every=3, previews="", **inputs)
        return (folder / f"{name}.safetensors").read_bytes()

    with Server(base) as doomed:

        def kill(node: str, value: float, *_: object) -> None:
            if node == "PerfusionTrainConcept" and value >= 4:
                doomed.process.kill()

        with pytest.raises((RuntimeError, OSError, aiohttp.ClientError)):
            train(doomed, steps=LONG, name="never", on_progress=kill, demo=True, checkpoint_every=3, previews="")
    new = {path for path in folder.rglob("*.safetensors") if path.relative_to(folder) not in there_before}
    (unfinished,) = (path for path in new if path.parent == folder)
    learned = int(load_concept(unfinished).metadata["steps"])
    assert learned >= 3
    assert all((folder / path).read_bytes() == content for path, content in there_before.items())

    with Server(base) as revived:
        resumed = continued(revived, "resumed/toy", learned + 3, continue_from=unfinished.name)
        whole = continued(revived, "whole/toy", learned + 3)
    assert resumed == whole


def test_out_of_memory_says_what_to_do_and_the_server_goes_on(server):
    plain = generate(server, None)
    prompt = training(server)
    parts = {node["class_type"]: id for id, node in prompt.items()}
    metric, checkpoint = parts["PerfusionCovariance"], parts["CheckpointLoaderSimple"]
    shown = {"class_type": "PreviewImage", "inputs": {"images": [metric, 1]}}
    server.run({checkpoint: prompt[checkpoint], metric: prompt[metric], "shown": shown})  # while there is memory
    process = server.process.pid
    used = int(re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) * 1024
    limits = resource.prlimit(process, resource.RLIMIT_AS, (used + 300 * 2**20, resource.RLIM_INFINITY))
    try:
        with pytest.raises(RuntimeError, match=r"ran out of memory at 64x64 pixels with 64 photos.*Switch on"):
            train(server, steps=50, name="never", batch_size=64, previews="")
    finally:
        resource.prlimit(process, resource.RLIMIT_AS, limits)
    assert np.array_equal(generate(server, None), plain)


@pytest.fixture
def broken(server) -> Path:
    path = server.base / "models" / "perfusion" / "broken.safetensors"
    path.write_bytes(b"not a concept")
    return path


def test_a_broken_file_is_refused_with_its_name_and_what_to_do(server, broken):
    with pytest.raises(RuntimeError, match=r"broken\.safetensors is not a safetensors file.*Copy or download it again"):
        generate(server, broken.name)


def test_a_name_outside_the_list_is_refused_before_anything_runs(server):
    with pytest.raises(RuntimeError, match="not in list"):
        generate(server, "../../../etc/passwd")


def test_the_server_lists_concepts_and_keeps_to_its_folders(server, broken):
    for listed in (server.request("GET", f"{prefix}/perfusion/concepts") for prefix in ("", "/api")):
        (entry,) = [entry for entry in listed if entry["file"] == "vases/amphora.safetensors"]
        assert entry["trigger"] == "<amphora>" and "damaged" in next(iter(e["error"] for e in listed if "error" in e))
    notes = {"file": entry["file"], "notes": "seen"}
    assert server.request("POST", "/perfusion/metadata", json=notes)["notes"] == "seen"
    for method, path, body, status in (
        ("GET", "/perfusion/metadata", None, 405),
        ("POST", "/perfusion/trash", {"file": "../checkpoints/perfusion-random-sd1.safetensors"}, 404),
    ):
        with pytest.raises(RunError, match=str(status)):
            server.request(method, path, json=body)
