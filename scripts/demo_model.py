"""What a workflow made for Stable Diffusion is set to on the demo model, whose pictures are 28 times smaller."""

from pathlib import Path
from typing import Any

SIDE = 96  # pixels
SAMPLING = {"steps": 20, "cfg": 5.0, "scheduler": "normal"}
CAPTIONS = Path(__file__).with_name("demo_captions.txt")
TRAINING = {  # as in docs/quality.md
    "steps": 400, "batch_size": 4, "accumulation": 1, "seed": 0, "flip": False,
    "learning_rate_values": 0.02, "learning_rate_embedding": 0.006, "key_freedom": 1.0,
    "unmasked_weight": 0.3, "min_timestep": 250,
    "checkpoint_every": 100, "previews": "a photo of a {} in the snow",
}  # fmt: skip


def on_the_demo_model(prompt: dict[str, Any]) -> None:
    """Changes an API prompt."""
    settings = {
        "PerfusionCovariance": {"captions": CAPTIONS.read_text(encoding="utf-8")},
        "PerfusionTrainConcept": TRAINING,
        "EmptyLatentImage": {"width": SIDE, "height": SIDE},
        "KSampler": {**SAMPLING, "sampler_name": "dpmpp_2m"},
    }
    for node in prompt.values():
        if node["class_type"] == "CheckpointLoaderSimple":  # which has the same outputs
            node |= {"class_type": "PerfusionDemoModel", "inputs": {}}
        node["inputs"] |= settings.get(node["class_type"], {})
