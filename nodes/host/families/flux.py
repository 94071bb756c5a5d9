"""Flux 1 and Flux 2 Klein: blocks with projections of the text's own, then blocks where text and picture share them."""

from __future__ import annotations

from torch import nn

from .family import Joint, configured_as, in_qkv, joint_family


def _in_linear1(projection: nn.Module) -> tuple[int, int]:
    """Queries, keys, values and what goes into the MLP, in this order."""
    return 2 * projection.in_features, projection.in_features


_VALUES = {r"(double_blocks\.\d+\.txt_attn)\.qkv": in_qkv, r"(single_blocks\.\d+)\.linear1": _in_linear1}
FLUX = joint_family(
    "flux", "Flux", configured_as("Flux", "FluxInpaint", "FluxSchnell"), 1024, {"l", "t5xxl"},
    Joint(_VALUES, "txt_in", guided=True), cfg=1.0,
)  # fmt: skip
FLUX_2_KLEIN = joint_family(
    "flux-2-klein", "Flux 2 Klein", configured_as("Flux2"), 1024, {"qwen3_4b", "qwen3_8b"},
    Joint(_VALUES, "txt_in"), cfg=1.0,
)  # fmt: skip
