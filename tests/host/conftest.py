"""A real ComfyUI in this process, on the CPU, with a scratch folder for its files, and small random models."""

import gc
import importlib.util
import os
import sys
from functools import cache, lru_cache
from pathlib import Path

import hypothesis
import pytest
import torch

REPO = Path(__file__).resolve().parents[2]


def start_host() -> None:
    """Makes the host importable."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.cli_args
    import utils.extra_config  # noqa: F401, as main.py does before older hosts put another utils on the path

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.disable_auto_launch = True
    spec = importlib.util.spec_from_file_location("comfyui_perfusion", REPO / "__init__.py")
    pack = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_perfusion"] = pack
    spec.loader.exec_module(pack)
    sys.path += [str(REPO / "scripts"), str(REPO / "scripts" / "make")]


def pytest_configure(config):
    """Starts the host before any test module is read, but not where other processes run the tests."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()  # until all that stays is imported
        start_host()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


torch.set_num_threads(1)  # the models are too small for more
RAY_WAITS = {  # half a minute is too short where every core is busy
    "raylet_start_wait_time_s": 300, "gcs_server_port_wait_time_s": 300, "worker_register_timeout_seconds": 300,
    "agent_register_timeout_ms": 300_000,
}  # fmt: skip
os.environ.update({f"RAY_{name}": str(limit) for name, limit in RAY_WAITS.items()})
hypothesis.settings.register_profile("host", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("host")

LONG = """
server train_many training_node stop quality requirements whole_families tune model training packs crew
""".split()


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left with one when the others are done."""
    names = [f"test_{name}.py" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


@pytest.fixture(scope="session")
def models():
    """models(kind) -> (MODEL, CLIP, VAE): narrow random ones of the real architectures, each made once."""
    from random_checkpoint import load_narrow

    return cache(load_narrow)


@pytest.fixture(scope="module")
def wide_models():
    """The same in their real width, for the few tests whose point it is. The last one is kept, others are let go."""
    from random_checkpoint import load_random

    return lru_cache(maxsize=1)(load_random)


@pytest.fixture(scope="session")
def made():
    """made(family) -> (MODEL, CLIP, VAE): small random ones of a family beyond the UNet, each made once."""
    from random_families import random_family

    return cache(random_family)


@pytest.fixture(scope="session")
def reference_model():
    """Another sd1 MODEL with the weights of ``models``."""
    from random_checkpoint import load_narrow

    return load_narrow("sd1")[0]


@pytest.fixture(scope="session")
def make_world():
    from reference_model import World

    return cache(World)


@pytest.fixture
def world(models, reference_model, make_world):
    """A World. Its model's weights are the same bits afterwards, and its modules have their own forward."""
    import comfy.model_management

    model, clip, _ = models("sd1")
    parameters = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    yield make_world(model, clip, reference_model).afresh()
    comfy.model_management.unload_all_models()
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in model.model.named_parameters())
    for module in model.model.modules():
        assert getattr(module.forward, "__func__", None) is type(module).forward


@pytest.fixture
def load_in_part(monkeypatch):
    """load_in_part(size): from then on the host loads no more than so many bytes of a model's weights."""
    import comfy.model_management

    loaded = comfy.model_management.LoadedModel
    load = loaded.model_load

    def call(size: float) -> None:
        monkeypatch.setattr(loaded, "model_load", lambda self, *args, **kwargs: load(self, size, **kwargs))
        comfy.model_management.unload_all_models()

    return call


@pytest.fixture
def model_folder(tmp_path, monkeypatch):
    """An empty models/perfusion for one test, and beside it an empty models/open_clip."""
    import folder_paths
    from comfyui_perfusion.nodes.host import scorers

    folder = tmp_path / "perfusion"
    folder.mkdir()
    scorers.register()
    _, endings = folder_paths.folder_names_and_paths[scorers.FOLDER]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, scorers.FOLDER, ([str(tmp_path / "open_clip")], endings))
    (tmp_path / "open_clip").mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "perfusion", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


@pytest.fixture(autouse=True)
def _as_a_node_would_run():
    """Under inference mode, with no patch of an earlier test left in the weights."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        yield
