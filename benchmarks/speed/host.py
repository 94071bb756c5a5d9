"""Makes the host and this pack importable, on the GPU where there is one. To be imported first."""

import importlib.util
import os
import sys
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[2]

if "comfyui_perfusion" not in sys.modules:
    sys.path[:0] = [os.environ["COMFYUI_PATH"], str(REPO / "scripts" / "make")]
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    comfy.cli_args.args.novram = "--streamed" in sys.argv  # read when the host is imported
    spec = importlib.util.spec_from_file_location("comfyui_perfusion", REPO / "__init__.py")
    sys.modules["comfyui_perfusion"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["comfyui_perfusion"])
