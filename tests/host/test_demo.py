"""The README's first command, with two training steps, and four for each picture."""

import os
import subprocess
import sys

from comfyui_perfusion.perfusion_core import load_concept
from PIL import Image

from conftest import REPO

FEW = """
import runpy, sys
from pathlib import Path
sys.argv[:1] = []
sys.path.insert(0, str(Path(sys.argv[0]).parent))
import demo_model
demo_model.SAMPLING["steps"] = 4
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_demo_teaches_two_concepts_and_shows_them_in_a_sheet(tmp_path):
    demo = REPO / "scripts" / "demo.py"
    command = [sys.executable, "-c", FEW, demo, "--steps", "2", "--output", tmp_path / "output"]
    environment = {**os.environ, "PERFUSION_CACHE": str(tmp_path)}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=500).stdout
    sheet = Image.open(tmp_path / "output" / "perfusion_demo.png")
    assert f"Pictures:    {tmp_path / 'output' / 'perfusion_demo.png'}" in printed
    assert sheet.width > 5 * 192 and sheet.height > 6 * 192  # five columns; photos, four rows of one concept, both
    assert len(sheet.getcolors(10**7)) > 10_000  # pictures, no placeholders
    folder = tmp_path / "demo" / "models" / "perfusion"
    concepts = [load_concept(folder / f"{name}.safetensors") for name in ("perfusion_demo", "perfusion_demo_tiger")]
    assert [(c.trigger, c.superclass, c.base_model) for c in concepts] == [
        ("<my-teddy>", "bear", "demo"),
        ("<my-tiger>", "cat", "demo"),
    ]
    assert (tmp_path / "output" / "perfusion").is_dir()  # the workflow's own pictures: loss and contact sheet
