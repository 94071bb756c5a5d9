"""Random checkpoints of the real architectures, made shallow: ComfyUI's stock loader takes them, no download needed.

    python scripts/make/random_checkpoint.py sd1 PATH [--seed 0]

Everything that ComfyUI recognises a model by is real: key names, widths, context sizes, SDXL's transformer depths.
Run it where COMFYUI_PATH is set (scripts/env.sh does).
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from torch import nn

if os.environ["COMFYUI_PATH"] not in sys.path:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])

from comfy.cli_args import args as host_arguments

if not torch.cuda.is_available():
    host_arguments.cpu = True  # before model_management looks for a device

import comfy.ops
import comfy.sd
from comfy import supported_models
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel


@dataclass(frozen=True)
class Kind:
    host_config: type
    unet: dict[str, Any]
    v_prediction: bool = False


SD1 = {
    "context_dim": 768, "use_linear_in_transformer": False, "channel_mult": [1, 2], "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1],
}  # fmt: skip
SD2 = {  # twelve output blocks: ComfyUI tells v-prediction by a bias in the last one
    "context_dim": 1024, "use_linear_in_transformer": True, "channel_mult": [1, 1, 1, 1], "num_res_blocks": [2] * 4,
    "transformer_depth": [1, 0, 1, 0, 0, 0, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 0, 0, 1] + [0] * 8,
}  # fmt: skip
SDXL = {  # ComfyUI asks for these input depths; the other halves may be shallow
    "context_dim": 2048, "use_linear_in_transformer": True, "channel_mult": [1, 2, 1], "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 1, 0, 0, 1, 0, 0], "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False,
        "use_spatial_transformer": True, "dtype": torch.float16}  # fmt: skip

KINDS = {
    "sd1": Kind(supported_models.SD15, SD1),
    "sd2": Kind(supported_models.SD20, SD2),
    "sd2v": Kind(supported_models.SD20, SD2, v_prediction=True),
    "sdxl": Kind(supported_models.SDXL, SDXL),
}
LAYER_TELLING_V_PREDICTION = "output_blocks.11.1.transformer_blocks.0.norm1.bias"

# ComfyUI reads the decoder's width from the file, the encoder's is fixed.
VAE_ENCODER = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
               "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
VAE_DECODER = {**VAE_ENCODER, "ch": 32}

# Only in-process loading may shrink the text encoders; three layers, because SD2 and SDXL read the last but one.
SHALLOW_TEXT = {
    f"{name}_model_config": {"num_hidden_layers": 3, "intermediate_size": 1024}
    for name in ("clip_l", "clip_g", "clip_h")
}
# And most tests need no more than a UNet of a fifth of the width, narrower text encoders and a VAE as small as can be.
NARROW = {"model_channels": 64}
NARROW_TEXT = {"intermediate_size": 256}
NARROW_VAE = {**VAE_ENCODER, "ch": 32, "ch_mult": [1, 1, 1, 2], "num_res_blocks": 1}


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights of std 1/sqrt(fan in), also where training starts at zero: there the text would have no effect."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
                parameter.fill_(1)
            elif name == "weight":
                std = 0.02 if isinstance(part, nn.Embedding) else parameter[0].numel() ** -0.5
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))  # fp16 draws are slow
    return module


def random_state_dict(
    kind: str, seed: int = 0, text_options: dict[str, Any] | None = None, narrow: bool = False
) -> dict[str, torch.Tensor]:
    """A whole checkpoint in its usual layout, fp16. `text_options` are the text encoders' model_options."""
    generator = torch.Generator().manual_seed(seed)
    width = NARROW if narrow else {}
    config = KINDS[kind].host_config({**UNET, "adm_in_channels": None, **KINDS[kind].unet, **width})
    unet = initialise(UNetModel(**config.unet_config, operations=comfy.ops.disable_weight_init), generator).state_dict()
    if KINDS[kind].v_prediction:
        unet[LAYER_TELLING_V_PREDICTION].normal_(std=0.3, generator=generator)
    text_class = config.clip_target().clip
    text = initialise(text_class(dtype=torch.float16, model_options=text_options or {}), generator).state_dict()
    encoder, decoder = (NARROW_VAE, NARROW_VAE) if narrow else (VAE_ENCODER, VAE_DECODER)
    vae = initialise(AutoencoderKL(ddconfig=encoder, decoder_ddconfig=decoder, embed_dim=4), generator)
    vae.quant_conv.weight.data[:4] /= config.latent_format.scale_factor  # latents of std about 1, as trained ones have
    return {
        **config.process_unet_state_dict_for_saving(unet),
        **config.process_clip_state_dict_for_saving(text),
        **config.process_vae_state_dict_for_saving(vae.half().state_dict()),
    }


def load_random(kind: str, seed: int = 0) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) loaded in this process without a file, the text encoders three layers deep."""
    state_dict = random_state_dict(kind, seed, SHALLOW_TEXT)
    model, clip, vae, _ = comfy.sd.load_state_dict_guess_config(state_dict, te_model_options=SHALLOW_TEXT)
    return model, clip, vae


def load_narrow(kind: str, seed: int = 0, dtype: torch.dtype | None = None) -> tuple[Any, Any, Any]:
    """The same with narrow networks, which the host has to be told of. dtype: of the network's weights."""
    text = {name: {**options, **NARROW_TEXT} for name, options in SHALLOW_TEXT.items()}
    state_dict = random_state_dict(kind, seed, text, narrow=True)
    with mock.patch.dict(KINDS[kind].host_config.unet_config, NARROW):
        model, clip, *_ = comfy.sd.load_state_dict_guess_config(
            state_dict, output_vae=False, te_model_options=text, model_options={"dtype": dtype} if dtype else {}
        )
    prefix = "first_stage_model."
    weights = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": NARROW_VAE, "embed_dim": 4}})
    return model, clip, vae


def save_random(kind: str, path: Path, seed: int = 0) -> None:
    """Writes beside `path` first: an interrupted run leaves no half checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    safetensors.torch.save_file(random_state_dict(kind, seed), unfinished)
    unfinished.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    save_random(options.kind, options.path, options.seed)
