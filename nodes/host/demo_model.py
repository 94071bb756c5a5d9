"""The small text-to-image model that comes with the pack, as the host's own MODEL, CLIP and VAE.

benchmarks/world/export.py writes its file: per weight int8 with a scale for every output row, or fp16; of the token
table the rows of the known words, and last the one that all other words share; the networks' configurations in the
metadata.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy.model_base import ModelType
from comfy.sd1_clip import SDClipModel, SDTokenizer
from safetensors import safe_open
from torch import Tensor, nn

FILE = Path(__file__).parents[1] / "demo_model.safetensors"
_TABLE = "embeddings.token_embedding.weight"
_TOKENS = 49408  # of CLIP's tokenizer
_END = 49407  # which also pads


class DemoConfig(comfy.supported_models.SD15):
    """SD1.5 in small: its noise schedule and its names for text encoders. It predicts v, as SD2.x does."""

    unet_extra_config = {}
    latent_format = comfy.latent_formats.LatentFormat

    def model_type(self, state_dict, prefix=""):
        return ModelType.V_PREDICTION

    def inpaint_model(self):
        return False  # more than 4 channels are its latent's own


class _TextEncoder(SDClipModel):
    """Encodings of the end of the text and of the padding are zero: the host leaves what stands before the first "pad".
    So padding, which words do not see, is not encoded."""

    def __init__(self, **options):
        super().__init__(zero_out_masked=True, special_tokens={"start": 49406, "pad": _END}, **options)

    def forward(self, tokens):
        longest = max([isinstance(token, int) and token == _END for token in row].index(True) for row in tokens) + 1
        place = self.transformer.text_model.embeddings.position_embedding
        positions = place.weight
        place.weight = nn.Parameter(positions[:longest], requires_grad=False)
        try:
            encoding, *more = super().forward([row[:longest] for row in tokens])
        finally:
            place.weight = positions
        return F.pad(encoding, (0, 0, 0, len(tokens[0]) - longest)), *more


def load_demo_model(path: Path = FILE, disable_dynamic: bool = False) -> tuple[Any, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE. Raises RuntimeError when the file is missing or damaged."""
    tensors, metadata = _read(path)
    config = DemoConfig(metadata["unet"])
    config.latent_format.latent_channels = metadata["unet"]["in_channels"]
    config.latent_format.latent_rgb_factors = metadata["latent_rgb_factors"]
    config.latent_format.latent_rgb_factors_bias = metadata["latent_rgb_factors_bias"]
    ratio = config.latent_format.spacial_downscale_ratio = 2 ** (len(metadata["vae"]["ch_mult"]) - 1)

    model = _load_unet(config, _weights(tensors, "unet."), disable_dynamic)
    clip = _load_text(config, metadata["text"], tensors, disable_dynamic)
    vae_config = {"params": {"ddconfig": metadata["vae"], "embed_dim": metadata["vae"]["z_channels"]}}
    vae = comfy.sd.VAE(_weights(tensors, "vae."), config=vae_config)
    vae.downscale_ratio = vae.upscale_ratio = ratio
    vae.latent_channels = metadata["vae"]["z_channels"]
    for index, patcher in enumerate((model, clip.patcher, vae.patcher)):
        patcher.cached_patcher_init = (_load_patcher, (path, index))  # how the host makes another of its kind
    return model, clip, vae


def _load_unet(config: DemoConfig, weights: dict[str, Tensor], disable_dynamic: bool):
    """As comfy.sd.load_diffusion_model_state_dict, which recognises only architectures that it knows."""
    management, dtypes = comfy.model_management, list(config.supported_inference_dtypes)
    device, offload_device = management.get_torch_device(), management.unet_offload_device()
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes))
    model = config.get_model(weights)
    patchers = comfy.model_patcher
    patcher = (patchers.ModelPatcher if disable_dynamic else patchers.CoreModelPatcher)(model, device, offload_device)
    if not management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(weights, assign=patcher.is_dynamic())
    return patcher


def _load_text(config: DemoConfig, text: dict[str, Any], tensors: dict[str, Tensor], disable_dynamic: bool):
    weights = _weights(tensors, "text.")
    rows = weights[_TABLE]
    weights[_TABLE] = rows[-1].repeat(_TOKENS, 1)
    weights[_TABLE][tensors["tokens"].long()] = rows[:-1]
    return comfy.sd.CLIP(
        config.clip_target(),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"clip_l_tokenizer_class": partial(SDTokenizer, embedding_size=text["hidden_size"])},
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict={f"clip_l.transformer.text_model.{name}": weight for name, weight in weights.items()},
        model_options={"clip_l_model_config": text, "clip_l_class": _TextEncoder},
        disable_dynamic=disable_dynamic,
    )


def _load_patcher(path: Path, index: int, disable_dynamic: bool = False):
    model, clip, vae = load_demo_model(path, disable_dynamic)
    return (model, clip.patcher, vae.patcher)[index]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118, it is no dict
    except Exception as error:  # damaged headers make the library raise nearly anything
        raise RuntimeError(
            f"The demo model's file {path} is missing or damaged ({error}). It comes with ComfyUI-Perfusion: install "
            "that again, or copy the file anew from its repository."
        ) from error


def _weights(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One network's weights in fp16, as most checkpoints have them, without the prefix of their names."""
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix) and not name.endswith(".scale"):
            if (scale := tensors.get(f"{name}.scale")) is not None:
                tensor = tensor.float() * scale.float().view(-1, *[1] * (tensor.ndim - 1))
            weights[name.removeprefix(prefix)] = tensor.to(torch.float16, copy=True)  # or the file stays mapped
    return weights
