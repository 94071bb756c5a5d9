"""What the server tests have in place of a user's checkpoint and photos, and the shipped workflows set up for them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from comfyui import REPO, Server, override
from draw_photos import draw_photos
from setup_env import CACHE

CHECKPOINT = "perfusion-random-sd1.safetensors"
PHOTOS = "perfusion_photos"  # folder in ComfyUI's input
WORKFLOW_TRIGGER = "<my-teddy>"  # as the prompts in workflows/ have it


def add_checkpoint(base: Path) -> None:
    """Puts a random checkpoint into a ComfyUI base folder; it is made once and kept in the cache."""
    kept = CACHE / CHECKPOINT
    if not kept.exists():
        subprocess.run([sys.executable, REPO / "scripts" / "random_checkpoint.py", "sd1", kept], check=True)
    link = base / "models" / "checkpoints" / CHECKPOINT
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(kept)


def add_photos(base: Path) -> None:
    draw_photos(base / "input" / PHOTOS)


def load_workflow(server: Server, name: str, trigger: str) -> dict[str, Any]:
    """A workflow of this repository as a prompt, with the random checkpoint and the chosen trigger."""
    prompt = server.to_prompt(json.loads((REPO / "workflows" / name).read_text(encoding="utf-8")))
    override(prompt, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][key] = value.replace(WORKFLOW_TRIGGER, trigger)
    return prompt
