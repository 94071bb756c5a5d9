"""Lumina 2 and Z-Image: one network of different sizes, in whose blocks text and picture share all projections."""

from __future__ import annotations

from torch import Tensor

from .family import Joint, configured_as, in_qkv, joint_family


def _more(encoding: Tensor) -> dict[str, int]:
    return {"num_tokens": encoding.shape[1]}


_JOINT = Joint({r"(layers\.\d+\.attention)\.qkv": in_qkv}, "cap_embedder.1", more=_more, moved_by_references=True)
LUMINA_2 = joint_family("lumina-2", "Lumina 2", configured_as("Lumina2"), 1024, {"gemma2_2b"}, _JOINT, cfg=4.0)
Z_IMAGE = joint_family("z-image", "Z-Image", configured_as("ZImage"), 1024, {"qwen3_4b"}, _JOINT, cfg=1.0)
