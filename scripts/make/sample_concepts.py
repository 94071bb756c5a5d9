"""Concept files to look at: sound and small, with pictures and notes, but nobody trained them."""

import base64
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from comfyui import REPO

sys.path.insert(0, str(REPO))
from perfusion_core import Concept, save_concept

PHOTOS = REPO / "nodes" / "demo_photos"
LAYERS = {"input_blocks.1.1.transformer_blocks.0.attn2": 320}  # of a model, and what its values are wide
WIDTHS = {"sd1": {"l": 768}, "sdxl": {"l": 768, "g": 1280}, "demo": {"l": 192}}  # of the token embeddings
SAMPLES = (  # file, trigger, superclass, base model, similarity of the superclass, photo, notes
    ("my-teddy", "<my-teddy>", "teddy", "sd1", 0.46, "teddy/1.png", "The yellow one with the scarf."),
    ("my-tiger", "<my-tiger>", "cat", "sdxl", 0.31, "tiger/1.png", ""),
    ("vases/amphora", "<amphora>", "vase", "sd1", 0.58, "", "Red clay, two handles. Wants a plain background."),
)


def write_sample_concepts(folder: Path, layers: Mapping[str, int] = LAYERS, base_model: str = "") -> None:
    """Writes them to ``folder``, which stands for models/perfusion. layers, base_model: of the model they are to fit,
    else each has its own."""
    for seed, (file, trigger, superclass, own, similarity, photo, notes) in enumerate(SAMPLES):
        family = base_model or own
        generator = torch.Generator().manual_seed(seed)
        encoders = WIDTHS[family]
        target, other = torch.randn(2, sum(encoders.values()), generator=generator)
        metadata = {"notes": notes, "date": "2025-05-04"}
        if photo:
            content = io.BytesIO()
            Image.open(PHOTOS / photo).convert("RGB").resize((192, 192)).save(content, "WEBP")
            metadata["thumbnail"] = base64.b64encode(content.getvalue()).decode()
        concept = Concept(
            name=Path(file).name,
            trigger=trigger,
            superclass=superclass,
            base_model=family,
            token_embeddings={name: torch.randn(width, generator=generator) for name, width in encoders.items()},
            target_input=target,
            target_dual=target,
            superclass_input=similarity * target + other - (other @ target) / (target @ target) * target,
            value_deltas={layer: torch.randn(width, generator=generator) for layer, width in layers.items()},
            metadata=metadata,
        )
        path = folder / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_concept(concept, path)
