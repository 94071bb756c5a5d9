"""Every picture of a grid is the one that Perfusion Loader and the host's own nodes make with these settings."""

import asyncio
import json
import logging
import types
from pathlib import Path

import comfy.model_management
import execution
import folder_paths
import pytest
import torch
from comfyui_perfusion.nodes.compose import PerfusionLoadConcept
from comfyui_perfusion.nodes.demo import PerfusionDemoModel
from comfyui_perfusion.nodes.host.sampling import Sampling
from comfyui_perfusion.nodes.load import PerfusionLoader
from comfyui_perfusion.nodes.sweep import PerfusionSweep
from comfyui_perfusion.perfusion_core import save_concept
from PIL import Image

import nodes as host_nodes
from makers import make_concept

CANCEL = comfy.model_management.InterruptProcessingException
SAMPLING = {"seed": 3, "steps": 2, "cfg": 5.0, "sampler": "euler", "scheduler": "normal", "resolution": 64}
NAMES = ("my-toy.safetensors", "my-cup.safetensors")
SETTINGS = {"beta": 0.6, "temperature": 0.15, "key_lock": 0.0, "strength": 1.0}
TEXT = "a photo of {} on snow"


class World:
    def __init__(self, model, clip, vae, folder):
        self.models = model, clip, vae
        for seed, (trigger, superclass) in enumerate([("<my-toy>", "bear"), ("<my-cup>", "cup")], 1):
            concept = make_concept(model, clip, trigger, superclass, seed)
            save_concept(concept, folder / f"{trigger.strip('<>')}.safetensors")
        self.toy, self.cup = (PerfusionLoadConcept.execute(name, **SETTINGS).args[0] for name in NAMES)

    def sweep(self, columns, rows, text=TEXT, concepts=None, negative="blurry"):
        concepts = self.toy if concepts is None else concepts
        return PerfusionSweep.execute(*self.models, concepts, text, columns, rows, negative, **SAMPLING).args

    def by_hand(self, prompt, name=NAMES[0], **settings):
        """IMAGE (height, width, 3) by Perfusion Loader and the host's own nodes."""
        model, clip, vae = self.models
        model, clip = PerfusionLoader.execute(model, clip, name, **{**SETTINGS, **settings}).args
        positive, negative = (host_nodes.CLIPTextEncode().encode(clip, words)[0] for words in (prompt, "blurry"))
        latent = host_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
        sampled = host_nodes.common_ksampler(model, 3, 2, 5.0, "euler", "normal", positive, negative, latent)[0]
        return host_nodes.VAEDecode().decode(vae, sampled)[0][0]


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch, tmp_path):
    monkeypatch.setattr(PerfusionSweep, "hidden", types.SimpleNamespace(unique_id=None))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


@pytest.fixture(scope="module")
def demo():
    with torch.inference_mode():
        return PerfusionDemoModel.execute().args


@pytest.fixture
def world(demo, model_folder):
    return World(*demo, model_folder)


def axis(name, kind, values=None):
    """A DynamicCombo as the host hands it to a node."""
    return {name: kind} if values is None else {name: kind, "values": values}


@pytest.mark.parametrize("kind", ["demo", "sd1"])
def test_the_cells_are_the_pictures_of_loader_and_ksampler_bit_for_bit(models, demo, model_folder, kind):
    world = World(*(demo if kind == "demo" else models(kind)), model_folder)
    _, pictures, report = world.sweep(axis("columns", "key_lock", "0, 1"), axis("rows", "beta", "0.8"))
    prompt = "a photo of <my-toy> on snow"
    for picture, lock in zip(pictures, (0.0, 1.0), strict=True):
        assert torch.equal(picture, world.by_hand(prompt, beta=0.8, key_lock=lock))
    assert not torch.equal(pictures[0], pictures[1])
    head, _, line = report.splitlines()
    assert head == "2 of 2 pictures, 64x64, seed 3, 2 steps, cfg 5, euler, normal, negative prompt 'blurry'"
    assert line == f"2. {prompt!r}: <my-toy> beta 0.8, temperature 0.15, key_lock 1, strength 1"


def test_concepts_by_strength_each_alone_and_strength_zero_is_the_base_model(world):
    both = (*world.toy, *world.cup)
    _, pictures, _ = world.sweep(axis("columns", "concept"), axis("rows", "strength", "0, 1"), concepts=both)
    cells = [(name, strength) for strength in (0.0, 1.0) for name in NAMES]
    for picture, (name, strength) in zip(pictures, cells, strict=True):
        prompt = TEXT.replace("{}", f"<{name.removesuffix('.safetensors')}>")
        assert torch.equal(picture, world.by_hand(prompt, name, strength=strength))
    model, clip, vae = world.models
    plain = Sampling(2, 5.0, "euler", "normal", 64).paint(model, clip, vae, "a photo of <my-toy> on snow", "blurry", 3)
    assert torch.equal(pictures[:1], plain)


def test_prompts_by_temperature_a_prompt_on_each_line(world):
    text = "a <my-toy> on grass\n\n  a red {} on sand  "
    _, pictures, _ = world.sweep(axis("columns", "prompt"), axis("rows", "temperature", "0.05, .3"), text)
    cells = [(p, t) for t in (0.05, 0.3) for p in ("a <my-toy> on grass", "a red <my-toy> on sand")]
    for picture, (prompt, temperature) in zip(pictures, cells, strict=True):
        assert torch.equal(picture, world.by_hand(prompt, temperature=temperature))


def test_the_grid_shows_every_pixel_of_the_cells_in_their_places(world):
    grid, pictures, _ = world.sweep(axis("columns", "beta", "0.5, 0.6, 0.7"), axis("rows", "key_lock", "0, 1"))
    height, width = grid.shape[1:3]
    left, top = width - 3 * 198, height - 2 * 198  # cells of 64 pixels, each three by three, and gaps of 6
    for i, picture in enumerate(pictures):
        x, y = left + i % 3 * 198, top + i // 3 * 198
        shown = grid[0, y : y + 192, x : x + 192]
        expected = picture.clamp(0, 1).repeat_interleave(3, 0).repeat_interleave(3, 1)
        torch.testing.assert_close(shown, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    assert grid[0, :top].min() < 0.5 and grid[0, :, :left].min() < 0.5  # the labels


def told(world, columns, rows, text=TEXT, concepts=None):
    """(What the page gets to make cells of, the picture that it gets with it.)"""
    given = PerfusionSweep.execute(*world.models, concepts or world.toy, text, columns, rows, "", **SAMPLING)
    ((image,), (geometry,)) = given.ui["images"], given.ui["perfusion_sweep"]
    return json.loads(json.dumps(geometry)), Image.open(Path(folder_paths.get_temp_directory()) / image["filename"])


def test_the_page_is_told_the_values_of_the_cells_and_where_they_are(world):
    geometry, picture = told(world, axis("columns", "beta", "0.5, .6"), axis("rows", "strength", "0, 1, 2"))
    assert geometry == {
        "columns": {"kind": "beta", "values": [0.5, 0.6]}, "rows": {"kind": "strength", "values": [0, 1, 2]},
        "triggers": ["<my-toy>"], "pictures": 6, "size": list(picture.size), "cell": 192, "gap": 6,
    }  # fmt: skip


def test_the_page_is_told_concepts_by_their_triggers(world):
    text, both = "a {} on snow\n<b>a {}</b>", (*world.toy, *world.cup)
    geometry, _ = told(world, axis("columns", "concept"), axis("rows", "prompt"), text, both)
    assert geometry["columns"] == {"kind": "concept", "values": ["<my-toy>", "<my-cup>"]}
    assert geometry["rows"] == {"kind": "prompt", "values": ["a {} on snow", "<b>a {}</b>"]}
    assert geometry["triggers"] == ["<my-toy>", "<my-cup>"]


def test_the_page_is_told_how_many_pictures_of_a_cancelled_grid_there_are(world, monkeypatch):
    cancelled_after(monkeypatch, 3)
    geometry, _ = told(world, axis("columns", "beta", "0.5, 0.6"), axis("rows", "key_lock", "0, 1"))
    assert geometry["pictures"] == 3 and len(geometry["rows"]["values"]) == 2


def test_the_models_are_left_as_they_were(world):
    model, clip, _ = world.models
    before = dict(model.object_patches), clip.tokenizer, dict(clip.patcher.object_patches)
    world.sweep(axis("columns", "beta", "0.5"), axis("rows", "key_lock", "1"))
    assert (model.object_patches, clip.tokenizer, clip.patcher.object_patches) == before
    assert not model.get_attachment("perfusion") and not clip.patcher.get_attachment("perfusion")


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (("beta", "0.5, x"), ("key_lock", "0"), "columns has 'x'; beta is a number from 0 to 1"),
        (("beta", "0.5, 1.2"), ("key_lock", "0"), "columns has '1.2'; beta is a number from 0 to 1"),
        (("beta", "0.5"), ("temperature", "0"), "rows has '0'; temperature is a number from 0.01 to 1"),
        (("beta", "nan"), ("key_lock", "0"), "columns has 'nan'"),
        (("strength", "-inf"), ("key_lock", "0"), "columns has '-inf'; strength is a number from 0 to 2"),
        (("beta", "0.5 0.6"), ("key_lock", "0"), "columns has '0.5 0.6'"),
        (("beta", " , "), ("key_lock", "0"), "nothing in columns. Write numbers with commas between them, such as 0.5"),
        (("beta", "0.5"), ("beta", "0.6"), "both beta. Choose something else"),
        (("beta", ",".join(["0.5"] * 11)), ("key_lock", ",".join("0" * 10)), "11 columns and 10 rows are 110 pictures"),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_painted(world, monkeypatch, columns, rows, message):
    monkeypatch.setattr(Sampling, "paint", None)
    with pytest.raises(ValueError, match=message):
        world.sweep(axis("columns", *columns), axis("rows", *rows))


def test_concepts_that_no_prompt_names_are_refused(world, monkeypatch):
    monkeypatch.setattr(Sampling, "paint", None)
    beta, lock, both = axis("columns", "beta", "0.5"), axis("rows", "key_lock", "0"), (*world.toy, *world.cup)
    with pytest.raises(ValueError, match=r"No prompt names <my-toy>. Write the trigger, or {} in its place"):
        world.sweep(beta, lock, "a photo of a bear")
    with pytest.raises(ValueError, match="No prompt names <my-cup>"):
        world.sweep(beta, axis("rows", "concept"), "a photo of <my-toy>", both)
    with pytest.raises(ValueError, match=r"nothing in rows\. Write prompts"):
        world.sweep(beta, axis("rows", "prompt"), " \n ")


# --- cancel ---


def cancelled_after(monkeypatch, count: int) -> list[int]:
    """The user cancels while the next picture after ``count`` is made; the list counts those that were begun."""
    begun, paint = [], Sampling.paint

    def paint_until(self, *args, **kwargs):
        begun.append(1)
        if len(begun) == count + 1:
            comfy.model_management.interrupt_current_processing()
        return paint(self, *args, **kwargs)

    monkeypatch.setattr(Sampling, "paint", paint_until)
    return begun


def test_a_cancel_before_the_first_picture_ends_the_run(world, monkeypatch):
    cancelled_after(monkeypatch, 0)
    with pytest.raises(CANCEL):
        world.sweep(axis("columns", "beta", "0.5, 0.6"), axis("rows", "key_lock", "0"))


def test_finished_pictures_of_a_cancelled_grid_go_on_and_the_next_run_paints_it_whole(world, monkeypatch):
    """As the host runs it: the nodes after it get what there is, and nothing of it is taken for the whole later."""
    seen = []

    class Source:
        FUNCTION, RETURN_TYPES, CATEGORY = "make", ("MODEL", "CLIP", "VAE", "PERFUSION_CONCEPTS"), "tests"

        @classmethod
        def INPUT_TYPES(cls):
            return {}

        def make(self):
            return (*world.models, world.toy)

    class Sink:
        FUNCTION, RETURN_TYPES, OUTPUT_NODE, CATEGORY = "take", (), True, "tests"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"grid": ("IMAGE",), "pictures": ("IMAGE",), "report": ("STRING",)}}

        def take(self, grid, pictures, report):
            seen.append((grid, pictures, report))
            return ()

    for name, node in (("Source", Source), ("PerfusionSweep", PerfusionSweep), ("Sink", Sink)):
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, name, node)
    sources = {name: ["1", i] for i, name in enumerate(["model", "clip", "vae", "concepts"])}
    values = {"columns": "beta", "columns.values": "0.5, 0.6", "rows": "key_lock", "rows.values": "0, 1"}
    prompt = {
        "1": {"class_type": "Source", "inputs": {}},
        "2": {
            "class_type": "PerfusionSweep",
            "inputs": {**sources, **values, "text": TEXT, "negative": "", **SAMPLING},
        },
        "3": {
            "class_type": "Sink",
            "inputs": {name: ["2", i] for i, name in enumerate(["grid", "pictures", "report"])},
        },
    }
    server = types.SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
    executor = execution.PromptExecutor(server, cache_args={"ram": 0, "ram_inactive": 0})

    def queue():
        valid = asyncio.run(execution.validate_prompt("run", prompt, None))
        assert valid[0], valid
        executor.execute({id: dict(node) for id, node in prompt.items()}, "run", {}, valid[2])
        assert executor.success, executor.status_messages

    begun = cancelled_after(monkeypatch, 3)
    queue()
    (grid, pictures, report), *_ = seen
    assert len(pictures) == 3 and report.startswith("3 of 4 pictures") and len(begun) == 4
    assert grid[0, -190:, -190:].min() == 1 and grid[0, -190:, -380:-200].std() > 0  # a blank and a picture
    queue()
    assert len(begun) == 8 and len(seen[1][1]) == 4
    assert torch.equal(seen[1][1][:3], pictures)
    queue()
    assert len(begun) == 8 and len(seen) == 2  # now it is kept


def test_a_grid_loads_each_model_once(world, caplog):
    comfy.model_management.unload_all_models()
    with caplog.at_level(logging.INFO):
        world.sweep(axis("columns", "beta", "0.5, 0.6"), axis("rows", "key_lock", "0, 1"))
    assert sum("loaded completely" in record.message for record in caplog.records) == 3  # text encoder, UNet, VAE
