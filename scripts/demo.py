"""From a few photos to a concept file to pictures with it, in a real ComfyUI, with the workflows of this repository."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from comfyui import REPO, Server, override
from draw_photos import draw_photos

CACHE = Path(os.environ.get("PERFUSION_CACHE") or Path.home() / ".cache" / "comfyui-perfusion")
BASE = CACHE / "demo"
OUTPUT = REPO / "output"
CHECKPOINT = "perfusion-demo-random.safetensors"
PHOTOS = "perfusion_demo"  # folder in ComfyUI's input
CONCEPT = "perfusion_demo"
KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
WORKFLOW_TRIGGER = "<my-teddy>"  # as the prompts in workflows/ have it

# Small enough for two CPU cores to finish in under two minutes
TRAINING = {
    "steps": 30, "resolution": 128, "batch_size": 1, "accumulation": 1, "seed": 0, "flip": False,
    "checkpoint_every": 15, "previews": "a photo of {}\n{} on the beach",
}  # fmt: skip
COVARIANCE_PROMPTS = 100
PICTURE = {"width": 256, "height": 256, "batch_size": 2}
SAMPLING_STEPS = 6


def main() -> None:
    options = parse_options()
    make_checkpoint(BASE)
    print("The demo's model is random: its pictures show that everything works, not how good it looks.")
    gather_photos(options.folder, BASE / "input" / PHOTOS)
    print("Starting ComfyUI ...", flush=True)
    progress = ProgressLine()
    with Server(BASE, OUTPUT) as server:
        train = load_workflow(server, "perfusion_train.json", options.trigger)
        override(train, "PerfusionLoadPhotos", folder=PHOTOS)
        override(train, "PerfusionCovariance", count=COVARIANCE_PROMPTS)
        concept = {"trigger": options.trigger, "superclass": options.superclass}
        override(train, "PerfusionTrainConcept", **concept, **{**TRAINING, "steps": options.steps})
        override(train, "PerfusionSaveConcept", filename=CONCEPT, overwrite=True)
        trained = server.run(train, progress)

        generate = load_workflow(server, "perfusion_generate.json", options.trigger)
        override(generate, "PerfusionLoader", concept=f"{CONCEPT}.safetensors")
        override(generate, "EmptyLatentImage", **PICTURE)
        override(generate, "KSampler", steps=SAMPLING_STEPS)
        generated = server.run(generate, progress)
        progress.show("")

        print(f"Concept:     {', '.join(texts(train, trained, 'PerfusionSaveConcept'))}")
        print(f"Training:    {', '.join(pictures(server, trained))}")
        print(f"Pictures:    {', '.join(pictures(server, generated))}", flush=True)
        if options.serve:
            print(f"ComfyUI runs at {server.address} until Ctrl-C.", flush=True)
            try:
                server.process.wait()
            except KeyboardInterrupt:
                print()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo.sh", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="your photos, masks in FOLDER/mask (default: a drawn toy's)"
    )
    parser.add_argument("--trigger", default="<my-toy>", help="the word for your subject in prompts")
    parser.add_argument("--superclass", default="toy", help="what it is, in one word")
    parser.add_argument("--steps", type=int, default=TRAINING["steps"], help="training steps")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running afterwards")
    options = parser.parse_args()
    if options.folder and not any(path.suffix.lower() in KINDS for path in options.folder.glob("*")):
        parser.error(f"there are no pictures ({', '.join(sorted(KINDS))}) in {options.folder}")
    return options


def make_checkpoint(base: Path) -> None:
    """Puts the random checkpoint into a ComfyUI base folder; it is made once and kept in the cache."""
    kept = CACHE / CHECKPOINT
    if not kept.exists():
        print("Making a checkpoint of random weights (once) ...", flush=True)
        subprocess.run([sys.executable, REPO / "scripts" / "random_checkpoint.py", "sd1", kept], check=True)
    link = base / "models" / "checkpoints" / CHECKPOINT
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(kept)


def gather_photos(source: Path | None, target: Path) -> None:
    """Fills `target` afresh: photos, and masks by the same names in mask/."""
    shutil.rmtree(target, ignore_errors=True)
    if source is None:
        draw_photos(target)
        return
    for folder in (source, source / "mask"):
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() in KINDS:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def load_workflow(server: Server, name: str, trigger: str) -> dict[str, Any]:
    """A workflow of this repository as a prompt, with the demo's checkpoint and the chosen trigger."""
    prompt = server.to_prompt(json.loads((REPO / "workflows" / name).read_text(encoding="utf-8")))
    override(prompt, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][key] = value.replace(WORKFLOW_TRIGGER, trigger)
    return prompt


class ProgressLine:
    """One terminal line: the running node, its percent, and what it says of itself, or the seconds left."""

    def __init__(self) -> None:
        self.node, self.start, self.text = "", 0.0, ""

    def __call__(self, node: str, value: float, maximum: float, text: str) -> None:
        if node != self.node:
            if not sys.stdout.isatty():
                print(node, flush=True)
            self.node, self.start, self.text = node, time.monotonic(), ""
        self.text = text or self.text
        left = f"{(time.monotonic() - self.start) / value * (maximum - value):.0f} s left" if value else ""
        percent = f"{value / maximum:.0%}" if maximum else ""
        self.show(f"{node:24} {percent:>4}  {self.text or left}")

    def show(self, line: str) -> None:
        if sys.stdout.isatty():
            print(f"\r{line[:110]}\033[K", end="", flush=True)


def texts(prompt: dict[str, Any], outputs: dict[str, Any], class_type: str) -> list[str]:
    return [text for id, ui in outputs.items() if prompt[id]["class_type"] == class_type for text in ui.get("text", ())]


def pictures(server: Server, outputs: dict[str, Any]) -> list[str]:
    """Paths of the pictures that were saved; ComfyUI clears its previews away at its end."""
    images = [image for ui in outputs.values() for image in ui.get("images", ())]
    return [str(server.path(image)) for image in images if image["type"] == "output"]


if __name__ == "__main__":
    main()
