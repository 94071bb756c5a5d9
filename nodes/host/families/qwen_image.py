"""Qwen-Image, whose text has projections of its own in every block."""

from __future__ import annotations

from .family import Joint, configured_as, joint_family

QWEN_IMAGE = joint_family(
    "qwen-image", "Qwen-Image", configured_as("QwenImage"), 1024, {"qwen25_7b"},
    Joint({r"(transformer_blocks\.\d+\.attn)\.add_v_proj": lambda projection: (0, projection.out_features)}, "txt_in"),
    cfg=4.0, channels="",  # it tells those of patches
)  # fmt: skip
