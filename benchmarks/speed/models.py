"""The host's own SD1.5, SDXL and Anima with random weights, whole or with nothing but what projects the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False, "num_heads": 8,
    "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 768, "use_linear_in_transformer": False,
    "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "dtype": torch.float32,
    "adm_in_channels": None,
}  # fmt: skip
SD21 = {**SD15, "context_dim": 1024, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64}
SDXL = {
    **SD21, "context_dim": 2048, "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
ANIMA = {
    "image_model": "anima", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "concat_padding_mask": True,
    "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 256,
    "num_blocks": 28, "num_heads": 16, "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0, "rope_enable_fps_modulation": False,
    "dtype": torch.float32,
}  # fmt: skip
KINDS = {"sd1": ("SD15", SD15), "sdxl": ("SDXL", SDXL), "anima": ("Anima", ANIMA)}  # of the host's supported_models
TOKENS = {"sd1": 77, "sdxl": 77, "anima": 512}


def random_model(
    kind: str, dtype: torch.dtype = torch.float32, text_only: bool = False, streamed: bool = False, **changes: Any
):
    """A MODEL on the device that the host would use.

    text_only: see ``_keep_text``; streamed: its weights on the CPU; changes: of the configuration.
    """
    import comfy.model_management
    import comfy.model_patcher
    from comfy import supported_models

    device = comfy.model_management.get_torch_device()
    home = torch.device("cpu") if streamed else device
    name, config = KINDS[kind]
    settings = getattr(supported_models, name)({**config, **changes, "dtype": dtype})
    settings.set_inference_dtype(dtype, None)
    model = settings.get_model({}, device=torch.device("meta") if text_only else home)
    if text_only:
        _keep_text(model)
        model.diffusion_model.to(home)
    _fill(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, device, home)


def _keep_text(model) -> None:
    """Leaves of the diffusion model its text K and V projections, which is all that a forward then computes."""
    from comfyui_perfusion.nodes.host.model import cross_attentions

    network = model.diffusion_model
    layers = list(cross_attentions(_Named(model)).values())
    projections = [module for layer in layers for module in (layer.to_k, layer.to_v)]
    left = [*projections, *(layer.to_q for layer in layers)]  # the last only tell how wide a layer is
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if child not in left and not list(child.children()):
                setattr(module, name, nn.Identity())
        for name in list(module._parameters) if module not in left else []:
            module._parameters[name] = None
        module._buffers.clear()
    for module in left:
        module.to_empty(device="cpu")

    def forward(x: Tensor, timestep: Tensor, context: Tensor, **_: Any) -> Tensor:
        for projection in projections:
            projection(context)
        return torch.zeros_like(x)

    network.forward = forward


class _Named:
    """As much of a MODEL as finding its layers takes."""

    def __init__(self, model):
        self.model = model


@torch.no_grad()
def _fill(network: nn.Module) -> None:
    """Weights of std 1/sqrt(fan in), drawn where they are."""
    for part in network.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)) or parameter.ndim < 2:
                parameter.fill_(name == "weight")
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def clip_l(dtype: torch.dtype = torch.float32, **options: Any):
    """The CLIP of SD1.5, likewise; options: the host's model_options."""
    import comfy.sd
    from comfy import supported_models

    clip = comfy.sd.CLIP(supported_models.SD15(SD15).clip_target(), model_options={**options, "dtype": dtype})
    _fill(clip.cond_stage_model)
    return clip


def photo_encoder(dtype: torch.dtype = torch.float32, channels: int = 128) -> nn.Module:
    """The part of SD1.5's VAE that encodes photos, likewise: (n, 3, h, w) to moments (n, 8, h / 8, w / 8)."""
    import comfy.model_management
    from comfy.ldm.modules.diffusionmodules.model import Encoder

    encoder = Encoder(
        ch=channels, out_ch=3, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=[], in_channels=3,
        resolution=256, z_channels=4,
    )  # fmt: skip
    _fill(encoder)
    return encoder.requires_grad_(False).to(comfy.model_management.get_torch_device(), dtype)


def random_concepts(model, count: int) -> list:
    from comfyui_perfusion.nodes.host.model import base_model, cross_attentions, encoding_width
    from comfyui_perfusion.perfusion_core import Concept

    outputs = {layer: module.to_v.out_features for layer, module in cross_attentions(model).items()}
    width, generator, made = encoding_width(model), torch.Generator().manual_seed(0), []
    for i in range(count):
        target, superclass, embedding = torch.randn(3, width, generator=generator)
        deltas = {layer: torch.randn(size, generator=generator) for layer, size in outputs.items()}
        dual = target / target.square().sum()
        made.append(
            Concept(f"c{i}", f"<c{i}>", "thing", base_model(model), {"l": embedding}, target, dual, superclass, deltas)
        )
    return made
