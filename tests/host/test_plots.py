"""Plots are alike whatever the rest of the process does with matplotlib, and leave it, and home, as they were."""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from comfyui_perfusion.nodes.plots import gate_curve, heat_map, heat_overlay, loss_curve, similarities, spectrum
from comfyui_perfusion.perfusion_core import Covariance
from PIL import Image

REPO = Path(__file__).parents[2]
PICTURE = Image.new("RGB", (120, 90), "green")
COVARIANCE = Covariance(6, 0.01)
COVARIANCE.update(torch.logspace(1, -3, 6, dtype=torch.float64).diag())
LOSSES = [0.1 + 0.03 * math.sin(step) for step in range(120)]
PLOTS = {
    "loss": lambda: loss_curve(LOSSES, {0: 0.12, 60: 0.1, 120: 0.09}),
    "loss of one step": lambda: loss_curve([0.1], {}),
    "spectrum": lambda: spectrum(COVARIANCE),
    "similarities": lambda: similarities(
        [(0.6, 0.2), (0.7, 0.3), (0.8, 0.1)], [(0.8, 0.1), (0.7, 0.3)], (0.7, 0.3), "best"
    ),
    "gate": lambda: gate_curve(0.7, 0.15, {"other words": 0.0, "teddy": 0.4, "<toy>": 1.0}, (0.5, 0.8), PICTURE),
    "overlap": lambda: heat_map(["<toy>", "<cup>"], [[1, -0.2], [-0.2, 1]]),
    "attention": lambda: heat_overlay(PICTURE, torch.rand(8, 8, generator=torch.Generator().manual_seed(0))),
}
OTHER_SETTINGS = {
    "axes.facecolor": "black", "axes.edgecolor": "white", "axes.grid": True, "axes.labelcolor": "white",
    "axes.labelsize": 30, "axes.linewidth": 5, "axes.spines.top": False, "axes.axisbelow": False, "axes.xmargin": 0.5,
    "figure.facecolor": "black", "figure.dpi": 30, "figure.figsize": (2, 2), "font.family": "serif", "font.size": 30,
    "grid.color": "red", "grid.linewidth": 4, "grid.linestyle": ":", "image.cmap": "gray", "image.origin": "lower",
    "image.interpolation": "nearest", "legend.fontsize": 30, "legend.frameon": True, "legend.labelcolor": "red",
    "lines.linestyle": ":", "lines.linewidth": 9, "lines.marker": "x", "lines.markersize": 20, "savefig.dpi": 20,
    "savefig.facecolor": "black", "text.color": "white", "xtick.color": "white", "xtick.direction": "in",
    "xtick.labelsize": 30, "xtick.major.size": 20, "ytick.labelsize": 30, "ytick.minor.visible": True,
    "axes.formatter.use_mathtext": True, "axes.formatter.use_locale": True, "axes.grid.which": "both",
    "figure.constrained_layout.h_pad": 1, "legend.handlelength": 9, "axes.labelpad": 40, "xtick.major.pad": 40,
}  # fmt: skip


@pytest.mark.parametrize("name", PLOTS)
def test_other_packs_settings_change_nothing_and_stay(name):
    plain = np.asarray(PLOTS[name]())
    with matplotlib.rc_context(OTHER_SETTINGS):
        before = dict(matplotlib.rcParams)
        among_others = np.asarray(PLOTS[name]())
        assert dict(matplotlib.rcParams) == before
    assert np.array_equal(among_others, plain)


def test_plots_drawn_at_once_are_those_drawn_one_by_one():
    one_by_one = [np.asarray(draw()) for draw in PLOTS.values()]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda draw: np.asarray(draw()), [*PLOTS.values()] * 2))
    assert all(map(np.array_equal, at_once, one_by_one * 2))


@pytest.mark.parametrize("name", ["<$toy$>", "_toy", "$\\frac$", "<猫の絵>", "100% {x}", "W" * 60, ""])
def test_any_name_can_be_written(name):
    tall, wide = heat_map([name, "<cup>"], [[1, 0], [0, 1]]).size
    assert 160 < tall == wide < 700
    words = np.asarray(gate_curve(0.7, 0.15, {name: 0.5, "<cup>": 1.0}, None, None))
    blank = np.asarray(gate_curve(0.7, 0.15, {"\u2003" * 3: 0.5, "<cup>": 1.0}, None, None))
    assert words.shape == (400, 720, 3)
    assert not name or not np.array_equal(words, blank)  # it is there, also when matplotlib would hide it


def test_a_plot_has_white_around_it_for_dark_themes():
    for name in ("loss", "spectrum", "similarities", "gate", "overlap"):
        picture = np.asarray(PLOTS[name]())
        for edge in (picture[:6], picture[-6:], picture[:, :6], picture[:, -6:]):
            assert (edge == 255).all(), name


# --- a process of its own ---

START = """
import importlib.util, json, os, sys
sys.path.insert(0, os.environ["COMFYUI_PATH"])
import comfy.cli_args
comfy.cli_args.args.cpu = True
import folder_paths
import utils.extra_config  # as main.py does before older hosts put another utils on the path
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("comfyui_perfusion", sys.argv[1] + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules["comfyui_perfusion"] = pack
spec.loader.exec_module(pack)
"""
LIST = """
import asyncio
async def nodes():
    extension = await pack.comfy_entrypoint()
    await extension.on_load()
    return await extension.get_node_list()
for node in asyncio.run(nodes()):
    node.define_schema()
"""
DRAW = """
started = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
folder_paths.set_user_directory(sys.argv[2])
from comfyui_perfusion.nodes.plots import loss_curve
loss_curve([0.1, 0.2], {})
import matplotlib
pyplot, named = "matplotlib.pyplot" in sys.modules, "MPLCONFIGDIR" in os.environ
print(json.dumps([started, pyplot, named, matplotlib.get_cachedir()]))
"""


def fresh_process(tmp_path: Path, code: str, *folders: str):
    """What it says after this code and a plot; its home has these folders."""
    for folder in ("home", "user", *(f"home/{folder}" for folder in folders)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name[:3] not in ("XDG", "MPL")}
    environment |= {"HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, str(REPO), str(tmp_path / "user")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_start_up_imports_no_library_that_only_some_nodes_need_and_home_stays_empty(tmp_path):
    packages, pyplot, named, fonts = fresh_process(tmp_path, START + LIST + DRAW)
    assert "comfyui_perfusion" in packages
    assert not {"matplotlib", "optuna", "open_clip", "timm"} & set(packages)
    assert not pyplot and not named
    assert Path(fonts) == tmp_path / "user/__perfusion/matplotlib" and any(Path(fonts).iterdir())
    assert not list((tmp_path / "home").rglob("*matplotlib*"))


@pytest.mark.skipif(sys.platform != "linux", reason="where matplotlib keeps its files on Linux")
def test_a_folder_of_matplotlibs_own_is_used(tmp_path):
    *_, fonts = fresh_process(tmp_path, START + DRAW, ".cache/matplotlib")
    assert Path(fonts) == tmp_path / "home/.cache/matplotlib"
    assert not list((tmp_path / "user").iterdir())
