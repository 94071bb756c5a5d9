"""What the pack costs a ComfyUI with 30,000 files below its input folder, to list its nodes and to queue.

bash scripts/env.sh python benchmarks/input_folders.py
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from comfyui import Server

FOLDERS, FILES, REPEATS = 300, 100, 9


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        base = Path(home)
        fill(base / "input")
        without = seconds(base, "--disable-all-custom-nodes", loader="LoadImage")
        ours = seconds(base, "--cpu", loader="PerfusionLoadPhotos")
    print(f"{FOLDERS * FILES} files in {FOLDERS} folders; median seconds of {REPEATS}")
    for what in without:
        print(f"{what:12} {without[what]:.3f} without, {ours[what]:.3f} with ({ours[what] / without[what]:.2f} times)")


def fill(home: Path) -> None:
    for folder in range(FOLDERS):
        path = home / f"toys-{folder}"
        path.mkdir(parents=True)
        for file in range(FILES // 2):
            (path / f"{file}.jpg").touch()
            (path / f"{file}.txt").touch()
    for path in (home / "photo.png", home / "toys" / "photo.png"):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)


def seconds(base: Path, option: str, loader: str) -> dict[str, float]:
    """Medians of a server with this option: of its node list, and of queueing a picture loaded by this node."""
    chosen = {"image": "photo.png"} if loader == "LoadImage" else {"folder": "toys"}
    prompt = {
        "1": {"class_type": loader, "inputs": chosen},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    with Server(base, options=("--cpu", option)) as server:
        asks = {
            "/object_info": lambda: server.request("GET", "/object_info"),
            "/prompt": lambda: server.request("POST", "/prompt", json={"prompt": prompt}),
        }
        return {what: statistics.median(timed(ask) for _ in range(REPEATS)) for what, ask in asks.items()}


def timed(ask) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
