"""Makes workflows/*.jpg, which the template browser shows, from the graphs as the real frontend draws them.

bash scripts/env.sh python scripts/template_pictures.py
"""

import io
import tempfile
from pathlib import Path

from PIL import Image

from browser import Frontend, add_stand_ins, open_frontend
from comfyui import REPO, Server

SIZE = (640, 400)  # half of what the browser draws: smooth, and under 60 KB
QUALITY = 88
HIDDEN = ("Comfy.Minimap.Visible", "Comfy.Graph.CanvasInfo", "Comfy.Graph.CanvasMenu")
FIT = """async () => {
    const nodes = app.graph.nodes.map(node => node.boundingRect)
    const left = Math.min(...nodes.map(([x]) => x)), top = Math.min(...nodes.map(([, y]) => y))
    const right = Math.max(...nodes.map(([x, , width]) => x + width))
    const bottom = Math.max(...nodes.map(([, y, , height]) => y + height))
    app.canvas.ds.fitToBounds([left, top, right - left, bottom - top], { zoom: 0.96 })
    app.canvas.setDirty(true, true)
    for (let frame = 0; frame < 10; frame++) await new Promise(requestAnimationFrame)
}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        add_stand_ins(base)
        with Server(base) as server, open_frontend(server.address) as frontend:
            clear_the_screen(frontend)
            for path in sorted((REPO / "workflows").glob("*.json")):
                frontend.load(path.stem)
                frontend.run(FIT)
                picture = Image.open(io.BytesIO(frontend.page.screenshot())).convert("RGB")
                target = path.with_suffix(".jpg")
                picture.resize(SIZE, Image.Resampling.LANCZOS).save(target, quality=QUALITY, optimize=True)
                print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


def clear_the_screen(frontend: Frontend) -> None:
    """Leaves nothing but the graph."""
    for setting in HIDDEN:
        frontend.set(setting, False)
    frontend.run("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    frontend.page.add_style_tag(content="button:has(> .pi-bars) { visibility: hidden }")


if __name__ == "__main__":
    main()
