"""Whether trainings leave memory behind: many in a row in one ComfyUI server, every fifth of them cancelled, every
tenth with sample pictures.

    bash scripts/env.sh python benchmarks/memory_over_time.py [--trainings 50]

Prints the server's resident memory (MiB) after each, and its growth per training over the second half.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import demo
from comfyui import Server, override

INPUTS = {"steps": 3, "resolution": 64, "batch_size": 2, "accumulation": 1, "checkpoint_every": 3, "flip": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=50)
    count = parser.parse_args().trainings
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        demo.make_checkpoint(base)
        demo.gather_photos(None, base / "input" / demo.PHOTOS)
        with Server(base) as server:
            used = [train(server, seed) for seed in range(count)]
    half = used[count // 2 :]
    slope = np.polyfit(range(len(half)), half, 1)[0]
    print(f"after 1: {used[0]:.0f}, after {count // 2}: {half[0]:.0f}, after {count}: {used[-1]:.0f} MiB")
    print(f"growth over the second half: {slope:.2f} MiB per training")


def train(server: Server, seed: int) -> float:
    """The server's resident memory in MiB after one training."""
    prompt = demo.load_workflow(server, "2 Train SD1.5.json", "<my-toy>")
    override(prompt, "PerfusionLoadPhotos", folder=demo.PHOTOS)
    override(prompt, "PerfusionCovariance", count=100)
    override(prompt, "PerfusionTrainConcept", seed=seed, previews="" if seed % 10 else "a {}", **INPUTS)
    override(prompt, "PerfusionSaveConcept", filename="toy", overwrite=True)
    cancelled = seed % 5 == 4

    def cancel(node: str, value: float, *_: object) -> None:
        if cancelled and node == "PerfusionTrainConcept" and value == 2:
            threading.Thread(target=server.interrupt).start()

    try:
        server.run(prompt, cancel)
    except RuntimeError as error:
        if not cancelled:
            raise
        print(f"  {error}")
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    used = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024
    print(f"training {seed + 1}: {used:.0f} MiB", flush=True)
    return used


if __name__ == "__main__":
    main()
