"""Makes workflows/*.jpg, which the template browser shows: what the workflows make, here on the demo model.

    bash scripts/env.sh python scripts/make/template_pictures.py [NAME ...]

It takes the concepts that scripts/demo.sh trained. A workflow that cannot run on the demo model is shown as its graph.
"""

import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

sys.path.append(str(Path(__file__).resolve().parents[1]))

from browser import Frontend, add_stand_ins, open_frontend, workflow
from comfyui import REPO, Server
from demo import BASE, PROMPTS, ProgressLine, opened
from demo_model import SAMPLING, SIDE, TRAINING
from perfusion_core import load_concept, save_concept

SIZE = (640, 400)  # of a graph it is half of what the browser draws: smooth, and under 60 KB
QUALITY = 82
BACKGROUND, GAP = "#202020", 8

MAKERS = {  # the title of the node that shows what a workflow makes
    "1 Quick start": "What it learned",
    "2 Train SD1.5": "Contact sheet",
    "3 Generate SD1.5": "Save Image",
    "6 Two concepts": "Save Image",
    "8 Layout or look": "The grid",
    "7 Sweep": "The grid",
    "perfusion_several_characters": "Each keeps its looks",
}
IN_THE_DEMO = {  # values of widgets, and what stands for them on the demo model
    "my-teddy.safetensors": "perfusion_demo.safetensors",
    "my-tiger.safetensors": "perfusion_demo_tiger.safetensors",
    "vases/amphora.safetensors": "perfusion_demo_tiger.safetensors",
    "my_photos": "demo: teddy",
    "teddy": "bear",
    "blurry, deformed": "",
    "a photo of a <my-teddy> beside an <amphora> on the beach": "a photo of a <my-teddy> and a <my-tiger> on the beach",
    "a photo of a <my-teddy> riding a bicycle in the park": "a photo of a <my-teddy> and a red car in the meadow",
}
SETTINGS = {
    "EmptyLatentImage": {"width": SIDE, "height": SIDE, "batch_size": 6},
    "KSampler": SAMPLING,
    "PerfusionSweep": SAMPLING,
    "PerfusionTrainConcept": {**TRAINING, "checkpoint_every": 200, "previews": "\n".join(PROMPTS[:4])},
}

HIDDEN = ("Comfy.Minimap.Visible", "Comfy.Graph.CanvasInfo", "Comfy.Graph.CanvasMenu")
HIDDEN_BUTTON = "button:has(> .pi-bars) { visibility: hidden }"
FIT = """async () => {
    const nodes = app.graph.nodes.map(node => node.boundingRect)
    const left = Math.min(...nodes.map(([x]) => x)), top = Math.min(...nodes.map(([, y]) => y))
    const right = Math.max(...nodes.map(([x, , width]) => x + width))
    const bottom = Math.max(...nodes.map(([, y, , height]) => y + height))
    app.canvas.ds.fitToBounds([left, top, right - left, bottom - top], { zoom: 0.96 })
    app.canvas.setDirty(true, true)
    for (let frame = 0; frame < 10; frame++) await new Promise(requestAnimationFrame)
}"""


def main(names: Sequence[str]) -> None:
    names = names or sorted(path.stem for path in (REPO / "workflows").glob("*.json"))
    with Server(BASE) as server:
        for name in names:
            if name in MAKERS:
                save(name, sheet(made_by(server, name)))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        add_stand_ins(base)
        with Server(base) as server, open_frontend(server.address) as frontend:
            clear_the_screen(frontend)
            for name in names:
                if name not in MAKERS:
                    if "anima" in name:  # they come last
                        make_concepts_fit(frontend, base / "models" / "perfusion", "anima")
                    frontend.load(name)
                    frontend.run(FIT)
                    picture = Image.open(io.BytesIO(frontend.page.screenshot())).convert("RGB")
                    save(name, picture.resize(SIZE, Image.Resampling.LANCZOS))


def made_by(server: Server, name: str) -> list[Image.Image]:
    """What the node in MAKERS shows after a run on the demo model; nothing is kept."""
    prompt = {id: on_the_demo_model(node) for id, node in server.to_prompt(workflow(name)).items()}
    before = set((BASE / "models" / "perfusion").rglob("*.safetensors"))
    outputs = server.run(prompt, ProgressLine())
    for path in set((BASE / "models" / "perfusion").rglob("*.safetensors")) - before:
        path.unlink()
    (maker,) = [id for id, node in prompt.items() if node["_meta"]["title"] == MAKERS[name]]
    return [opened(server, {"images": [image]}) for image in outputs[maker]["images"]]


def on_the_demo_model(node: dict[str, Any]) -> dict[str, Any]:
    if node["class_type"] == "CheckpointLoaderSimple":  # which has the same outputs
        return {**node, "class_type": "PerfusionDemoModel", "inputs": {}}
    inputs = {
        name: IN_THE_DEMO.get(value, value) if isinstance(value, str) else value
        for name, value in node["inputs"].items()
    }
    return {**node, "inputs": {**inputs, **SETTINGS.get(node["class_type"], {})}}


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture as large as it fits, or many in two rows."""
    rows = 1 if len(pictures) == 1 else 2
    columns = -(-len(pictures) // rows)
    cell = (SIZE[0] - GAP) // columns - GAP, (SIZE[1] - GAP) // rows - GAP
    whole = Image.new("RGB", SIZE, BACKGROUND)
    for i, picture in enumerate(pictures):
        shown = ImageOps.contain(picture, cell, Image.Resampling.LANCZOS)
        corner = [GAP + step * (side + GAP) for step, side in zip((i % columns, i // columns), cell, strict=True)]
        spare = [(side - length) // 2 for side, length in zip(cell, shown.size, strict=True)]
        whole.paste(shown, (corner[0] + spare[0], corner[1] + spare[1]))
    return whole


def save(name: str, picture: Image.Image) -> None:
    target = REPO / "workflows" / f"{name}.jpg"
    picture.save(target, quality=QUALITY, optimize=True)
    print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


def make_concepts_fit(frontend: Frontend, folder: Path, base_model: str) -> None:
    """Or the Loader would say that they are for another model."""
    for path in folder.rglob("*.safetensors"):
        save_concept(load_concept(path).replace(base_model=base_model), path)
    frontend.run("() => app.reloadNodeDefs?.() ?? app.refreshComboInNodes()")


def clear_the_screen(frontend: Frontend) -> None:
    """Leaves nothing but the graph."""
    for setting in HIDDEN:
        frontend.set(setting, False)
    frontend.run("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    frontend.run("style => document.head.appendChild(document.createElement('style')).append(style)", HIDDEN_BUTTON)


if __name__ == "__main__":
    main(sys.argv[1:])
