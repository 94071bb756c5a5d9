"""Small random MODELs of the families beyond the UNet: the host's own classes, fewer and narrower layers."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import torch
from comfy import supported_models

from random_checkpoint import initialise

MINI_TRAIN_DIT = {  # as the host finds it in Cosmos-Predict2's and Anima's files, but for size
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True, "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
    "use_adaln_lora": True, "adaln_lora_dim": 16, "num_blocks": 4, "num_heads": 2, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
    "extra_h_extrapolation_ratio": 1.0, "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cosmos-predict2": ("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **MINI_TRAIN_DIT}),
    "anima": ("Anima", {"image_model": "anima", **MINI_TRAIN_DIT}),
}


def random_model(family: str, seed: int = 0):
    """A MODEL of the family in fp32."""
    config, unet = CONFIGS[family]
    settings = getattr(supported_models, config)({**unet, "dtype": torch.float32})
    settings.set_inference_dtype(torch.float32, None)
    model, cpu = settings.get_model({}, device=torch.device("cpu")), torch.device("cpu")
    if family == "anima":
        del model.diffusion_model.llm_adapter.blocks[1:]
    initialise(model.diffusion_model, torch.Generator().manual_seed(seed))
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)
