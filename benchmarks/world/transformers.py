"""Two diffusion transformers in the UNet's place, ComfyUI's own classes in small: do concepts fit them, too?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perfusion_core import ConceptSet, Values, ValueWiring, Wiring

from .networks import LATENT, TEXT, initialise  # first: it finds the host, and puts an attention of its own into it

# isort: split
import comfy.ops
import comfy.quant_ops
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy_kitchen.backends.eager import rope

CHANNELS, SIZE, _ = LATENT
HEADS, BLOCKS, PATCH = 3, 6, 2
WIDTH = 64 * HEADS
JOINT = {  # of Stable Diffusion 3's class: text and picture in one attention
    "input_size": SIZE, "patch_size": PATCH, "in_channels": CHANNELS, "depth": HEADS, "num_blocks": BLOCKS,
    "qk_norm": "rms", "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": TEXT["hidden_size"], "out_features": WIDTH},
    },
}  # fmt: skip
CROSS = {  # of Cosmos-Predict2's and Anima's class: cross-attention to the text
    "max_img_h": SIZE, "max_img_w": SIZE, "max_frames": 1, "in_channels": CHANNELS, "out_channels": CHANNELS,
    "patch_spatial": PATCH, "patch_temporal": 1, "concat_padding_mask": False, "model_channels": WIDTH,
    "num_blocks": BLOCKS, "num_heads": HEADS, "crossattn_emb_channels": TEXT["hidden_size"], "pos_emb_cls": "rope3d",
}  # fmt: skip


class CrossAttentionDiT(MiniTrainDIT):
    """Of pictures, which it takes for videos of one frame."""

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **options) -> Tensor:
        return super().forward(x[:, :, None], timesteps, context, **options)[:, :, 0]


def make_transformer(kind: str) -> nn.Module:
    """ "joint" or "cross", with blocks that start as if they were not there."""
    made, settings = {"joint": (OpenAISignatureMMDITWrapper, JOINT), "cross": (CrossAttentionDiT, CROSS)}[kind]
    model = made(**settings, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(model)
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and ("adaln_modulation" in name.lower() or name == "final_layer.linear"):
            nn.init.zeros_(part.weight)
    return model


def joint_wiring(model: nn.Module, concepts: ConceptSet | None = None) -> Wiring:
    layers = [f"joint_blocks.{index}" for index in range(len(model.joint_blocks))]
    values = {layer: Values(f"{layer}.context_block.attn.qkv", 2 * WIDTH, WIDTH) for layer in layers}
    return ValueWiring(model, values, concepts)


def cross_wiring(model: nn.Module, concepts: ConceptSet | None = None) -> Wiring:
    layers = [f"blocks.{index}.cross_attn" for index in range(len(model.blocks))]
    return Wiring(model, {layer: (f"{layer}.k_proj", f"{layer}.v_proj") for layer in layers}, concepts)


comfy.quant_ops.ck.rms_rope_split_half = rope.rms_rope_split_half  # the host's has no backward
