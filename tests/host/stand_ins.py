"""What the server tests have in place of a user's checkpoint and photos, and the shipped workflows set up for them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfy.ops
import torch
from comfy.cldm.cldm import ControlNet
from comfyui_version import __version__ as HOST
from safetensors import safe_open
from safetensors.torch import save_file

from comfyui import REPO, Server
from draw_photos import draw_photos
from environment.setup_env import CACHE
from random_checkpoint import KINDS, UNET, initialise
from sample_concepts import PHOTOS as DEMO_PHOTOS
from sample_concepts import write_sample_concepts

CHECKPOINT = "perfusion-random-sd1.safetensors"
KEPT = CACHE / f"perfusion-random-sd1-{HOST}.safetensors"  # older hosts cannot read its narrow decoder
PHOTOS = "perfusion_photos"  # folder in ComfyUI's input
LORA, CONTROLNET, PICTURE = "my-style.safetensors", "control_v11p_sd15_canny_fp16.safetensors", "example.png"
WORKFLOW_TRIGGER = "<my-teddy>"  # as the prompts in workflows/ have it


def add_checkpoint(base: Path) -> None:
    """Puts a random checkpoint into a ComfyUI base folder; it is made once and kept in the cache."""
    if not KEPT.exists():
        subprocess.run([sys.executable, REPO / "scripts" / "make" / "random_checkpoint.py", "sd1", KEPT], check=True)
    link = base / "models" / "checkpoints" / CHECKPOINT
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(KEPT)


def add_concepts(base: Path) -> None:
    """Those that the workflows choose, made for the random checkpoint."""
    with safe_open(KEPT, "pt") as file:
        names = [name for name in file.keys() if name.endswith(".attn2.to_v.weight")]  # noqa: SIM118
        widths = {name: file.get_slice(name).get_shape()[0] for name in names}
    layers = {name.removeprefix("model.diffusion_model.").removesuffix(".to_v.weight"): widths[name] for name in names}
    write_sample_concepts(base / "models" / "perfusion", layers)


def add_lora(base: Path) -> None:
    """A random LoRA of rank 1 for one layer of the checkpoint."""
    layer = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    path = base / "models" / "loras" / LORA
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{layer}.lora_up.weight": torch.randn(320, 1), f"{layer}.lora_down.weight": torch.randn(1, 768)}, path)


def add_controlnet(base: Path) -> None:
    """A random ControlNet of the checkpoint's depth, with the picture that its workflow shows it."""
    config = dict(KINDS["sd1"].host_config({**UNET, "adm_in_channels": None, **KINDS["sd1"].unet}).unet_config)
    del config["out_channels"], config["transformer_depth_output"]
    network = ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    path = base / "models" / "controlnet" / CONTROLNET
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(initialise(network, torch.Generator().manual_seed(0)).state_dict(), path)
    shutil.copyfile(DEMO_PHOTOS / "teddy" / "1.png", base / "input" / PICTURE)


def add_photos(base: Path) -> None:
    """With a caption, in place of which the whole text encoder would read all templates before a training begins."""
    draw_photos(base / "input" / PHOTOS, count=2)
    for photo in (base / "input" / PHOTOS).glob("*.png"):
        photo.with_suffix(".txt").write_text("a photo of a {}")


def load_workflow(server: Server, name: str, trigger: str) -> dict[str, Any]:
    """A workflow of this repository as a prompt, with the random checkpoint and the chosen trigger."""
    prompt = server.to_prompt(json.loads((REPO / "workflows" / name).read_text(encoding="utf-8")))
    for node in prompt.values():
        if node["class_type"] == "CheckpointLoaderSimple":
            node["inputs"]["ckpt_name"] = CHECKPOINT
        for key, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][key] = value.replace(WORKFLOW_TRIGGER, trigger)
    return prompt
