"""Makes web/docs/*.jpg for the help pages: what nodes make on the demo model, else the nodes themselves.

    bash scripts/env.sh python scripts/make/help_pictures.py [NODE ...]

What nodes make takes the concepts that scripts/demo.sh trained.
"""

import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from browser import Frontend, add_stand_ins, open_frontend
from comfyui import REPO, Server
from demo import BASE, CELL, Graph, ProgressLine, cells, opened
from demo_model import SAMPLING, SIDE
from gallery import TEDDY, TIGER, TOGETHER, USE, everything, only
from nodes.pictures import contact_sheet
from template_pictures import clear_the_screen

HELP = REPO / "web" / "docs"
QUALITY = 76
WIDTH = 640  # pixels at most
MADE = {  # the picture of the gallery that shows what a node makes
    "PerfusionAttentionMap": "attention",
    "PerfusionCombineConcepts": "overlap",
    "PerfusionConceptInfo": "info",
    "PerfusionGateMap": "gates",
    "PerfusionSweep": "temperature",
}
APART = ("PerfusionKeepApart", "PerfusionRegions")  # shown on two pictures of two concepts
SEED = 5  # of these
IMPORTS = ("import/my-teddy.pt", "covariance/my-encoder.pt")  # files for the nodes that choose one
MARGIN = 12
SHOW = """async ([name, margin]) => {
    for (const node of [...app.graph.nodes]) app.graph.remove(node)  // clear() would give their ids away again
    const node = LiteGraph.createNode(name)
    app.graph.add(node)
    app.canvas.ds.scale = 1
    await new Promise(done => setTimeout(done, 1000))
    const [left, top, width, height] = node.boundingRect
    app.canvas.ds.offset = [2 * margin - left, 2 * margin - top]
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 500))
    const canvas = app.canvas.canvas.getBoundingClientRect()
    return { x: canvas.left + margin, y: canvas.top + margin, width: width + 2 * margin, height: height + 2 * margin }
}"""


def main(names: Sequence[str]) -> None:
    made = {name: key for name, key in MADE.items() if not names or name in names}
    if made:
        show_what_is_made(made)
    if not names or set(names) & set(APART):
        show_two_kept_apart()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        add_stand_ins(base)
        (base / "input" / "example.png").unlink()  # so that input itself is no folder of photos
        for name in IMPORTS:
            path = base / "models" / "perfusion" / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
        with Server(base) as server, open_frontend(server.address) as frontend:
            clear_the_screen(frontend)
            frontend.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None")
            frontend.page.set_viewport_size({"width": 1000, "height": 1400})
            for name in frontend.get("/object_info").json():
                if name.startswith("Perfusion") and name not in (*MADE, *APART) and (not names or name in names):
                    save(name, node_picture(frontend, name))


def show_what_is_made(made: Mapping[str, str]) -> None:
    """made: of MADE."""
    with Server(BASE) as server:
        nodes, shown = everything()
        outputs = server.run(only(nodes, {shown[key] for key in made.values()}), ProgressLine())
        for name, key in made.items():
            save(name, opened(server, outputs[shown[key]]))


def show_two_kept_apart() -> None:
    graph = Graph()
    demo = graph.add("PerfusionDemoModel")
    both = graph.load(graph.load(demo, TEDDY, USE["beta"]), TIGER, USE["beta"])
    apart = graph.add("PerfusionKeepApart", model=[both, 0], strength=1.0, end_percent=1.0)
    latent = graph.add("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=2)
    positive, negative = (
        [graph.add("CLIPTextEncode", clip=[both, 1], text=text), 0] for text in (TOGETHER.splitlines()[0], "")
    )
    previews = {}
    for label, model in (("without", both), ("kept apart", apart)):
        samples = graph.add(
            "KSampler", model=[model, 0], positive=positive, negative=negative, latent_image=[latent, 0], seed=SEED,
            **SAMPLING, sampler_name="dpmpp_2m", denoise=1.0,
        )  # fmt: skip
        image = graph.add("VAEDecode", samples=[samples, 0], vae=[demo, 2])
        previews[label] = graph.add("PreviewImage", images=[image, 0])
    regions = graph.add("PerfusionRegions", model=[apart, 0], samples=[samples, 0], image=[image, 0])
    with Server(BASE) as server:
        outputs = server.run(graph.nodes, ProgressLine())
        save("PerfusionRegions", opened(server, outputs[regions]))
        columns = [
            cells([opened(server, {"images": [image]}) for image in outputs[node]["images"]])
            for node in previews.values()
        ]
    rows = [(f"{number}", row) for number, row in enumerate(zip(*columns, strict=True), 1)]
    save("PerfusionKeepApart", contact_sheet(list(previews), rows, CELL))


def node_picture(frontend: Frontend, name: str) -> Image.Image:
    area = frontend.run(SHOW, [name, MARGIN])
    return Image.open(io.BytesIO(frontend.page.screenshot(clip=area)))


def save(name: str, picture: Image.Image) -> None:
    picture = picture.convert("RGB")
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    target = HELP / f"{name}.jpg"
    picture.save(target, quality=QUALITY, optimize=True)
    print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main(sys.argv[1:])
