"""Writes nodes/covariances: the covariance of the demo model's text encoder, which trainings on it then need not make.

benchmarks/world/export.py runs it for a new model. The file is named after the encoder's weights, as the one that any
other model gets in models/perfusion/covariance.
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from comfyui import REPO, Server

COVARIANCES = REPO / "nodes" / "covariances"
GRAPH = {
    "1": {"class_type": "PerfusionDemoModel", "inputs": {}},
    "2": {
        "class_type": "PerfusionCovariance",
        "inputs": {
            "clip": ["1", 1], "captions": "", "count": 10_000, "tokens": "all", "ridge": 0.01, "caption_file": "none",
        },
    },
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}},
}  # fmt: skip


def main() -> None:
    shutil.rmtree(COVARIANCES, ignore_errors=True)  # or it would be read from there
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        server.run(GRAPH)
        shutil.copytree(server.base / "models" / "perfusion" / "covariance", COVARIANCES)
    print(*COVARIANCES.iterdir())


if __name__ == "__main__":
    main()
