"""From a few photos to a concept file to pictures with it, in a real ComfyUI, on the demo model of this repository."""

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from comfyui import REPO, Server, override
from demo_model import SAMPLING, SIDE, TRAINING, on_the_demo_model
from environment.setup_env import CACHE

sys.path.insert(0, str(REPO))
from nodes.photo_folder import read_folder
from nodes.pictures import contact_sheet

BASE = CACHE / "demo"
PHOTOS = REPO / "nodes" / "demo_photos"  # of two that the demo model never saw, made by benchmarks/world/demo.py

PROMPTS = (
    "a photo of a {} in the snow", "a photo of a {} on the beach", "a photo of a {} at night",
    "a photo of a {} and a red car in the room", "a sketch of a {} on the street",
)  # fmt: skip
TOGETHER = (
    "a photo of a {} and a {} in the snow", "a photo of a {} and a {} on the beach",
    "a photo of a {} and a {} at night", "a photo of a {} and a {} in the room",
    "a photo of a {} and a {} on the street",
)  # fmt: skip
BETAS = (0.5, 0.75, 0.95)
CELL = 192  # pixels of a picture in the sheet


@dataclass(frozen=True)
class Subject:
    trigger: str
    superclass: str
    photos: Path
    name: str  # of its folder in ComfyUI's input, and of its concept file

    def pictures(self) -> list[Path]:
        return [photo.path for photo in read_folder(self.photos).photos]


def main() -> None:
    options = parse_options()
    subject = Subject(options.trigger, options.superclass, options.folder or PHOTOS / "teddy", "perfusion_demo")
    other = Subject("<my-tiger>", "cat", PHOTOS / "tiger", "perfusion_demo_tiger")
    print("Starting ComfyUI ...", flush=True)
    progress = ProgressLine()
    with Server(BASE, options.output) as server:
        for one in (subject, other):
            gather_photos(one.photos, BASE / "input" / one.name)
            print(f"Teaching {one.trigger} from {len(one.pictures())} photos ...", flush=True)
            prompt = training_prompt(server, one, options.steps)
            trained = server.run(prompt, progress)
            progress.show("")
            print(f"Concept:     {', '.join(texts(prompt, trained, 'PerfusionSaveConcept'))}")
            print(f"Training:    {', '.join(pictures(server, trained))}", flush=True)
        print("Painting ...", flush=True)
        prompt, rows = painting_prompt(subject, other)
        painted = server.run(prompt, progress)
        progress.show("")
        images = {label: [opened(server, painted[node]) for node in nodes] for label, nodes in rows.items()}
        path = options.output / "perfusion_demo.png"
        sheet(subject, other, images).save(path)
        print(f"Pictures:    {path}", flush=True)
        if options.serve:
            print(f"ComfyUI runs at {server.address} until Ctrl-C. Its input and models are in {BASE}.", flush=True)
            try:
                server.process.wait()
            except KeyboardInterrupt:
                print()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo.sh", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="your photos, masks in FOLDER/mask (default: a teddy of the demo's world)"
    )
    parser.add_argument("--trigger", default="<my-teddy>", help="the word for your subject in prompts")
    parser.add_argument("--superclass", default="bear", help="what it is, in one word that the demo model knows")
    parser.add_argument("--steps", type=int, default=TRAINING["steps"], help="training steps")
    parser.add_argument("--output", type=Path, default=REPO / "output", help="folder for the pictures")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running afterwards")
    options = parser.parse_args()
    try:
        read_folder(options.folder or PHOTOS / "teddy")
    except ValueError as error:
        parser.error(str(error))
    return options


def gather_photos(source: Path, target: Path) -> None:
    """Fills `target` afresh with photos, masks and captions."""
    shutil.rmtree(target, ignore_errors=True)
    for path in read_folder(source).files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def training_prompt(server: Server, subject: Subject, steps: int) -> dict[str, Any]:
    """The workflow 2 Train SD1.5 on the demo model."""
    workflow = json.loads((REPO / "workflows" / "2 Train SD1.5.json").read_text(encoding="utf-8"))
    prompt = server.to_prompt(workflow)
    on_the_demo_model(prompt)
    words = {"trigger": subject.trigger, "superclass": subject.superclass, "steps": steps}
    override(prompt, "PerfusionLoadPhotos", folder=subject.name)
    override(prompt, "PerfusionTrainConcept", **words)
    override(prompt, "PerfusionSaveConcept", filename=subject.name, overwrite=True)
    return prompt


def painting_prompt(subject: Subject, other: Subject) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """A graph that paints everything in one go, and the ids of its preview nodes for every row of the sheet."""
    graph = Graph()
    plain = graph.add("PerfusionDemoModel")
    rows = {"": graph.paint(plain, [prompt.replace("{}", subject.superclass) for prompt in PROMPTS])}
    for beta in BETAS:
        loaded = graph.load(plain, subject, beta)
        rows[f"{subject.trigger} beta {beta}"] = graph.paint(loaded, prompts_of(subject))
    both = graph.load(graph.load(plain, subject, BETAS[1]), other, BETAS[1])
    rows["both"] = graph.paint(both, prompts_of(subject, other))
    return graph.nodes, rows


def prompts_of(subject: Subject, other: Subject | None = None) -> list[str]:
    """Those of one concept, or of two together."""
    if other is None:
        return [prompt.replace("{}", subject.trigger) for prompt in PROMPTS]
    return [prompt.replace("{}", subject.trigger, 1).replace("{}", other.trigger) for prompt in TOGETHER]


class Graph:
    """An API prompt in the making; nodes are known by their ids."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}

    def add(self, class_type: str, **inputs: Any) -> str:
        id = str(len(self.nodes) + 1)
        self.nodes[id] = {"class_type": class_type, "inputs": inputs}
        return id

    def load(self, source: str, subject: Subject, beta: float) -> str:
        """Perfusion Loader behind a node with outputs MODEL and CLIP."""
        settings = {"beta": beta, "temperature": 0.15, "key_lock": 0.0, "strength": 1.0}
        concept = f"{subject.name}.safetensors"
        return self.add("PerfusionLoader", model=[source, 0], clip=[source, 1], concept=concept, **settings)

    def paint(self, source: str, sentences: list[str]) -> list[str]:
        """A picture of each sentence, from the same noise in every call."""
        vae = next(id for id, node in self.nodes.items() if node["class_type"] == "PerfusionDemoModel")
        negative = self.add("CLIPTextEncode", clip=[source, 1], text="")
        previews = []
        for seed, sentence in enumerate(sentences):
            positive = self.add("CLIPTextEncode", clip=[source, 1], text=sentence)
            sampled = self.add(
                "KSampler", model=[source, 0], positive=[positive, 0], negative=[negative, 0], seed=seed,
                **SAMPLING, sampler_name="dpmpp_2m", denoise=1.0,
                latent_image=[self.add("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1), 0],
            )  # fmt: skip
            previews.append(
                self.add("PreviewImage", images=[self.add("VAEDecode", samples=[sampled, 0], vae=[vae, 2]), 0])
            )
        return previews


def sheet(subject: Subject, other: Subject, rows: dict[str, list[Image.Image]]) -> Image.Image:
    """What was shown, what came out at every beta, and both concepts in one picture."""
    taught = [Image.open(path).convert("RGB") for path in subject.pictures()[: len(PROMPTS)]]
    learned = [(label, cells(images)) for label, images in rows.items() if "beta" in label]
    parts = [
        contact_sheet(
            [f"photo {i + 1}" for i in range(len(taught))], [(f"taught: {subject.trigger}", cells(taught))], CELL
        ),
        contact_sheet(prompts_of(subject), [(f"without: {subject.superclass}", cells(rows[""])), *learned], CELL),
        contact_sheet(prompts_of(subject, other), [("two concepts", cells(rows["both"]))], CELL),
    ]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (whole.width - part.width, top))  # their columns are alike, their labels are not
        top += part.height
    return whole


def cells(images: list[Image.Image]) -> list[Image.Image]:
    return [ImageOps.contain(image, (CELL, CELL), Image.Resampling.LANCZOS) for image in images]


class ProgressLine:
    """One terminal line: the running node, its percent, and what it says of itself, or the seconds left."""

    def __init__(self) -> None:
        self.node, self.start, self.text = "", 0.0, ""

    def __call__(self, node: str, value: float, maximum: float, text: str) -> None:
        if node != self.node:
            self.node, self.start, self.text = node, time.monotonic(), ""
        self.text = text or self.text
        left = f"{(time.monotonic() - self.start) / value * (maximum - value):.0f} s left" if value else ""
        percent = f"{value / maximum:.0%}" if maximum else ""
        said = self.text if self.text.endswith(" left") else ", ".join(filter(None, (self.text, left)))
        self.show(f"{node:24} {percent:>4}  {said}")

    def show(self, line: str) -> None:
        if sys.stdout.isatty():
            print(f"\r{line[:110]}\033[K", end="", flush=True)


def texts(prompt: dict[str, Any], outputs: dict[str, Any], class_type: str) -> list[str]:
    return [text for id, ui in outputs.items() if prompt[id]["class_type"] == class_type for text in ui.get("text", ())]


def pictures(server: Server, outputs: dict[str, Any]) -> list[str]:
    """Paths of the pictures that were saved; ComfyUI clears its previews away at its end."""
    images = [image for ui in outputs.values() for image in ui.get("images", ())]
    return [str(server.path(image)) for image in images if image["type"] == "output"]


def opened(server: Server, ui: dict[str, Any]) -> Image.Image:
    return Image.open(server.path(ui["images"][0])).convert("RGB")


if __name__ == "__main__":
    main()
