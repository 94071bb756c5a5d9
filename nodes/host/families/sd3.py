"""Stable Diffusion 3 and 3.5. Their text is what CLIP made of a prompt, and behind it what T5 made of it."""

from __future__ import annotations

from torch import Tensor

from .family import Joint, configured_as, in_qkv, joint_family

_CLIP = 2048  # numbers that CLIP's rows have; zeros follow, up to the width of T5's


def _of_t5(encoding: Tensor) -> Tensor:
    """A word stands in CLIP's rows and in T5's, with another encoding in each. A concept has one, of T5."""
    return encoding[..., _CLIP:].any(-1)


SD3 = joint_family(
    "sd3", "SD3", configured_as("SD3"), 1024, {"l", "g", "t5xxl"},
    Joint({r"(joint_blocks\.\d+\.context_block\.attn)\.qkv": in_qkv}, "context_embedder", words=_of_t5), cfg=4.5,
)  # fmt: skip
