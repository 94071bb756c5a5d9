"""Run as a program: loads concept files in a process of its own and samples one latent with each.

Three arguments for each: the file, where to put the latent, the kind of model.
"""

import sys
from pathlib import Path

import torch


def sample_with(concept_file: Path, models) -> torch.Tensor:
    from comfyui_perfusion.nodes.host.families import family_of
    from comfyui_perfusion.nodes.host.model import apply_to_model
    from comfyui_perfusion.nodes.host.text import apply_to_clip
    from comfyui_perfusion.nodes.host.uses import ConceptUse
    from comfyui_perfusion.perfusion_core import load_concept

    import nodes

    model, clip, _ = models
    uses = [ConceptUse(load_concept(concept_file), key_lock=0.0 if family_of(model).joint else 1.0)]
    model, clip = apply_to_model(model, uses), apply_to_clip(clip, uses)
    positive, negative = (nodes.CLIPTextEncode().encode(clip, prompt)[0] for prompt in ("a <my-teddy> in snow", ""))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return nodes.common_ksampler(model, 1, 2, 5.0, "euler", "normal", positive, negative, latent)[0]["samples"]


if __name__ == "__main__":
    from conftest import start_host

    start_host()
    from random_checkpoint import load_random
    from random_families import CONFIGS, JOINT, random_family

    torch.set_num_threads(1)
    given = iter(sys.argv[1:])
    with torch.inference_mode():
        for file, place, kind in zip(given, given, given, strict=True):
            models = random_family(kind) if kind in CONFIGS | JOINT else load_random(kind)
            torch.save(sample_with(Path(file), models), place)
