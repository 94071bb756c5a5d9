"""Makes docs/screens/*.webp: an ordinary graph with our Loader, and, in both renderers and both themes, every node, and
what web/ adds to the graph.

bash scripts/env.sh python scripts/make/screens.py [graph | face | nodes ...]
"""

import io
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from browser import Frontend, add_stand_ins, open_frontend
from comfyui import REPO, Server
from template_pictures import clear_the_screen

SCREENS = REPO / "docs" / "screens"
QUALITY = 65  # of WebP; text stays sharp, and each is under 120 KB
PAUSE = 1500  # milliseconds until the page has settled
GRAPH, NODES = {"width": 1440, "height": 760}, {"width": 1720, "height": 1000}
SMALL = {"width": 1320, "height": 640}
COLUMNS, GAP = 4, 60

# The generate workflow without its note, closer together, so that all of it can be read at half size
ORDINARY = """async () => {
    app.graph.remove(app.graph.nodes.find(({ type }) => type === 'MarkdownNote'))
    const places = [
        [0, 0, 260, 100], [300, 0, 300, 420], [640, 0, 310, 130], [640, 190, 310, 110], [640, 350, 310, 130],
        [990, 0, 270, 270], [990, 370, 270, 60], [1400, 0, 300, 300],
    ]
    for (const [at, [x, y, width, height]] of places.entries())
        Object.assign(app.graph.nodes[at], { pos: [x, y], size: [width, height] })
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [30, 60]
    app.canvas.setDirty(true, true)
}"""
# All our nodes in columns, each where the columns are shortest
ALL_NODES = """async ([names, columns, gap]) => {
    for (const node of [...app.graph.nodes]) app.graph.remove(node)  // clear() would give their ids away again
    const nodes = names.map(name => LiteGraph.createNode(name))
    for (const node of nodes) app.graph.add(node)
    app.canvas.ds.scale = 1
    const pause = () => new Promise(done => setTimeout(done, 1500))
    const drawn = () => document.querySelectorAll('[data-node-id]').length >= nodes.length
    const sizes = () => JSON.stringify(nodes.map(node => [...node.boundingRect]))
    let before
    do { before = sizes(); await pause() } while (sizes() !== before || LiteGraph.vueNodesMode && !drawn())
    const heights = Array(columns).fill(0)
    for (const node of nodes.sort((a, b) => b.boundingRect[3] - a.boundingRect[3])) {
        const column = heights.indexOf(Math.min(...heights))
        node.pos = [column * 420, heights[column]]
        heights[column] += node.boundingRect[3] + gap
    }
    app.canvas.ds.offset = [40, 70]
    app.canvas.setDirty(true, true)
    return Math.max(...heights)
}"""
LOOK_AT_LOADER = """() => {
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [-10, 150]
    app.canvas.setDirty(true, true)
}"""
SIDEBAR = "() => app.extensionManager.sidebarTab.toggleSidebarTab('perfusion')"
MENUS = "() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')"


def main(kinds: Sequence[str]) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        add_stand_ins(base)
        with Server(base) as server, open_frontend(server.address) as frontend:
            clear_the_screen(frontend)
            if "graph" in kinds:
                show_ordinary_graph(frontend)
                save(frontend, "graph")
            frontend.run(SIDEBAR)
            names = [name for name in frontend.get("/object_info").json() if name.startswith("Perfusion")]
            for vue, theme in itertools.product((False, True), ("dark", "light")):
                frontend.set("Comfy.VueNodes.Enabled", vue)
                frontend.set("Comfy.ColorPalette", theme)
                suffix = f"{'vue' if vue else 'classic'}-{theme}"
                if "face" in kinds:
                    frontend.run(MENUS)
                    show_graph(frontend)
                    save(frontend, f"face-{suffix}")
                    frontend.run(MENUS)
                if "nodes" in kinds:
                    show_nodes(frontend, names)
                    save(frontend, f"nodes-{suffix}")


def show_ordinary_graph(frontend: Frontend) -> None:
    frontend.set("Comfy.VueNodes.Enabled", True)
    frontend.set("Comfy.ColorPalette", "light")
    frontend.page.set_viewport_size(SMALL)
    frontend.load("3 Generate SD1.5")
    frontend.run(ORDINARY)
    frontend.page.wait_for_timeout(PAUSE)


def show_graph(frontend: Frontend) -> None:
    """The generate workflow with the list of concepts and a half-typed trigger."""
    page = frontend.page
    page.set_viewport_size(GRAPH)
    frontend.load("3 Generate SD1.5")
    frontend.run(LOOK_AT_LOADER)
    page.wait_for_timeout(PAUSE)
    box = page.locator("textarea:visible").first
    box.fill("")
    box.press_sequentially("a photo of <my-teddy> beside a te")


def show_nodes(frontend: Frontend, names: list[str]) -> None:
    frontend.page.set_viewport_size(NODES)
    height = frontend.run(ALL_NODES, [names, COLUMNS, GAP])
    frontend.page.set_viewport_size({**NODES, "height": int(height) + 60})
    frontend.page.wait_for_timeout(PAUSE)


def save(frontend: Frontend, name: str) -> None:
    target = SCREENS / f"{name}.webp"
    Image.open(io.BytesIO(frontend.page.screenshot())).save(target, quality=QUALITY, method=6)
    print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main(sys.argv[1:] or ("graph", "face", "nodes"))
