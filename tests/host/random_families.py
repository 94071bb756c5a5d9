"""Small random MODELs, CLIPs and VAEs of the families beyond the UNet: the host's own classes, fewer and narrower
layers, but whole vocabularies."""

from __future__ import annotations

import io
import json
from typing import Any
from unittest import mock

import comfy.ldm.wan.vae
import comfy.model_patcher
import comfy.sd
import torch
from comfy import supported_models
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.pixart import pixartms
from comfy.text_encoders import qwen_vl
from comfyui_perfusion.perfusion_core.captions import captions
from sentencepiece import SentencePieceTrainer

from random_checkpoint import NARROW_VAE, initialise

WIDTH = 64  # of encodings
PIECES = 350  # in umT5's vocabulary
MINI_TRAIN_DIT = {  # as the host finds it in Cosmos-Predict2's and Anima's files, but for size
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True, "crossattn_emb_channels": WIDTH,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
    "use_adaln_lora": True, "adaln_lora_dim": 16, "num_blocks": 4, "num_heads": 2, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
    "extra_h_extrapolation_ratio": 1.0, "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
WAN = {
    "model_type": "t2v", "patch_size": (1, 2, 2), "text_dim": WIDTH, "dim": 96, "ffn_dim": 64, "freq_dim": 32,
    "num_heads": 3, "num_layers": 4, "cross_attn_norm": True,
}  # fmt: skip
LTX = {
    "in_channels": 128, "cross_attention_dim": 96, "attention_head_dim": 32, "num_attention_heads": 3,
    "caption_channels": WIDTH, "num_layers": 4,
}  # fmt: skip
PIXART = {
    "hidden_size": 96, "num_heads": 3, "depth": 4, "caption_channels": WIDTH, "in_channels": 4, "patch_size": 2,
    "micro_condition": False,
}  # fmt: skip
QWEN_IMAGE = {
    "in_channels": 64, "num_layers": 4, "attention_head_dim": 32, "num_attention_heads": 3,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
LUMINA = {  # as narrow as Z-Image's modulation can be
    "in_channels": 16, "dim": 256, "n_layers": 4, "n_heads": 4, "qk_norm": True, "cap_feat_dim": WIDTH,
    "axes_dims": [16, 24, 24], "multiple_of": 32, "ffn_dim_multiplier": 1.0,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": WIDTH, "context_in_dim": WIDTH, "hidden_size": 96,
    "mlp_ratio": 2.0, "num_heads": 3, "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
KLEIN = {
    **FLUX, "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 3 * WIDTH,
    "axes_dim": [8, 8, 8, 8], "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": False,
    "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "pos_embed_scaling_factor": None, "depth": 3, "num_blocks": 4, "mlp_ratio": 1.0,
    "pos_embed_max_size": 16, "num_patches": 256, "adm_in_channels": 2 * WIDTH, "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 192},  # as wide as T5
    },
}  # fmt: skip
VIDEO = ("wan", "ltx-video")
PROJECTED = (*VIDEO, "pixart-sigma")  # whose forward projects the text for all layers
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cosmos-predict2": ("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **MINI_TRAIN_DIT}),
    "anima": ("Anima", {"image_model": "anima", **MINI_TRAIN_DIT}),
    "wan": ("WAN21_T2V", {"image_model": "wan2.1", "in_dim": 16, "out_dim": 16, **WAN}),
    "ltx-video": ("LTXV", {"image_model": "ltxv", **LTX}),
    "pixart-sigma": ("PixArtSigma", {"image_model": "pixart_sigma", **PIXART}),
}
JOINT: dict[str, tuple[str, dict[str, Any]]] = {  # text and picture in one attention
    "qwen-image": ("QwenImage", {"image_model": "qwen_image", **QWEN_IMAGE}),
    "z-image": ("ZImage", {
        "image_model": "lumina2", **LUMINA, "n_kv_heads": 4, "z_image_modulation": True, "time_scale": 1000.0,
        "pad_tokens_multiple": 32, "rope_theta": 256.0,
    }),
    "lumina-2": ("Lumina2", {"image_model": "lumina2", **LUMINA, "n_kv_heads": 1}),
    "flux": ("Flux", {"image_model": "flux", **FLUX}),
    "flux-2-klein": ("Flux2", {"image_model": "flux2", **KLEIN}),
    "sd3": ("SD3", SD3),
}  # fmt: skip
TEXTS = {
    "qwen3_06b_model_config": {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    **{
        f"{name}_model_config": {
            "hidden_size": WIDTH, "num_hidden_layers": 3, "intermediate_size": 64, "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        for name in ("qwen25_7b", "qwen3_4b")
    },
    "gemma2_2b_model_config": {
        "hidden_size": WIDTH, "num_hidden_layers": 3, "intermediate_size": 64, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": PIECES,
    },
    **{
        f"{name}_model_config": {
            "hidden_size": WIDTH, "num_hidden_layers": 3, "intermediate_size": 64, "num_attention_heads": 2,
        }
        for name in ("clip_l", "clip_g")
    },
    "t5xxl_model_config": {"num_layers": 2, "d_model": WIDTH, "d_ff": 64, "d_kv": 32, "num_heads": 2},
    "umt5xxl_model_config": {
        "num_layers": 2, "d_model": WIDTH, "d_ff": 64, "d_kv": 32, "num_heads": 2, "vocab_size": PIECES,
    },
}  # fmt: skip
LTX_VAE = {
    "dims": 3, "latent_channels": 128, "blocks": [["res_x", 1], *[["compress_all", 1]] * 3, ["res_x", 1]],
    "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform", "encoder_base_channels": 8,
    "decoder_base_channels": 8,
}  # fmt: skip
VAE = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
       "temperal_downsample": [False, True, True]}  # fmt: skip


def _positions(embed_dim, w, h, pe_interpolation, base_size, of=pixartms.get_2d_sincos_pos_embed_torch, **options):
    """PixArt's, which the host divides by zero for in pictures of less than 272 pixels."""
    return of(embed_dim, w=w, h=h, pe_interpolation=pe_interpolation or 1, base_size=base_size or 16, **options)


pixartms.get_2d_sincos_pos_embed_torch = _positions


SPECIAL = {  # tokens of SentencePiece vocabularies, beside the padding
    "wan": {"eos_id": 1, "unk_id": 2, "bos_id": -1}, "lumina-2": {"eos_id": 1, "bos_id": 2, "unk_id": 3},
}  # fmt: skip


def random_family(family: str, seed: int = 0):
    """(MODEL, CLIP, VAE) of the family in fp32."""
    settings, generator = _settings(family), torch.Generator().manual_seed(seed)
    model = random_model(family, seed)
    tokenizer = {"spiece_model": _pieces(**SPECIAL[family])} if family in SPECIAL else {}
    options = {**TEXTS, "dtype": torch.float32}
    held = {}  # what files of text encoders hold that tells the host which they are
    if family == "flux-2-klein":
        held = {"text_encoders.qwen3_4b.transformer.model.norm.weight": torch.zeros(1)}
        layers = {"num_hidden_layers": 28}  # of which the last that is taken is the 27th
        options["qwen3_4b_model_config"] = TEXTS["qwen3_4b_model_config"] | layers
    if family == "sd3":
        ends = "text_model.final_layer_norm", "text_model.final_layer_norm", "encoder.final_layer_norm"
        for encoder, end in zip(("clip_l", "clip_g", "t5xxl"), ends, strict=True):
            held[f"text_encoders.{encoder}.transformer.{end}.weight"] = torch.zeros(1)
        options["t5xxl_model_config"] = TEXTS["t5xxl_model_config"] | {
            "d_model": 4096
        }  # to which CLIP's rows are padded
    with mock.patch.object(qwen_vl, "Qwen2VLVisionTransformer", _no_vision):
        clip = comfy.sd.CLIP(settings.clip_target(held), tokenizer_data=tokenizer, model_options=options)
    initialise(clip.cond_stage_model, generator)
    if family == "ltx-video":
        return model, clip, _ltx_vae(generator)
    if family in ("z-image", "lumina-2", "flux", "sd3"):
        return model, clip, _narrow_vae(generator, 16)
    if family == "flux-2-klein":
        return model, clip, _flux_2_vae(generator)
    if family == "pixart-sigma":
        return model, clip, _narrow_vae(generator)
    network = initialise(comfy.ldm.wan.vae.WanVAE(**VAE), generator)
    return model, clip, comfy.sd.VAE(sd=network.state_dict())


def random_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, computing: torch.dtype | None = None):
    """A MODEL of the family with weights of a dtype, which computes in it or in another one."""
    settings = _settings(family, dtype)
    settings.set_inference_dtype(dtype, computing)
    model, cpu = settings.get_model({}, device=torch.device("cpu")), torch.device("cpu")
    if family == "anima":
        from comfy.ldm.anima.model import LLMAdapter

        parts = {"device": cpu, "dtype": torch.float32, "operations": comfy.ops.manual_cast}
        model.diffusion_model.llm_adapter = LLMAdapter(WIDTH, WIDTH, WIDTH, num_layers=1, num_heads=2, **parts)
    generator = torch.Generator().manual_seed(seed)
    initialise(model.diffusion_model, generator)
    if family == "sd3":
        model.diffusion_model.pos_embed.normal_(0, 0.02, generator=generator)
    if family in PROJECTED or family in JOINT:
        for name, parameter in model.diffusion_model.named_parameters():
            if not name.endswith("weight"):  # biases, and what latents are shifted by
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def empty_latent(model, side: int, frames: int = 1, pictures: int = 1) -> dict[str, torch.Tensor]:
    """The LATENT that a MODEL of any family starts from."""
    latent_format = model.get_model_object("latent_format")
    sizes = (frames, side, side) if latent_format.latent_dimensions == 3 else (side, side)
    return {"samples": torch.zeros(pictures, latent_format.latent_channels, *sizes)}


def _ltx_vae(generator: torch.Generator):
    network = initialise(VideoVAE(config=LTX_VAE), generator)
    weights = network.state_dict()
    weights["per_channel_statistics.mean-of-means"], weights["per_channel_statistics.std-of-means"] = (
        torch.zeros(128), torch.ones(128),
    )  # fmt: skip
    return comfy.sd.VAE(sd=weights, metadata={"config": json.dumps({"vae": LTX_VAE})})


def _narrow_vae(generator: torch.Generator, channels: int = 4):
    sizes = {"ddconfig": {**NARROW_VAE, "z_channels": channels}, "embed_dim": channels}
    network = initialise(AutoencoderKL(**sizes), generator)
    return comfy.sd.VAE(sd=network.state_dict(), config={"params": sizes})


def _flux_2_vae(generator: torch.Generator):
    """Whose latents are of patches."""
    sizes = {"ddconfig": {**NARROW_VAE, "z_channels": 32, "batch_norm_latent": True}, "embed_dim": 32}
    network = initialise(AutoencoderKL(**sizes), generator)
    network.bn.running_mean.zero_()
    network.bn.running_var.fill_(1.0)
    vae = comfy.sd.VAE(sd=network.state_dict(), config={"params": sizes})
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 128, 16, 16
    return vae


def _no_vision(**_) -> torch.nn.Module:
    """In place of what reads pictures for Qwen-Image's text encoder, of 600 million weights."""
    return torch.nn.Module()


def _pieces(**special: int) -> torch.Tensor:
    """A SentencePiece model, which files of umT5 and Gemma bring along."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(captions(400)), model_writer=model, vocab_size=PIECES, pad_id=0, **special,
        user_defined_symbols=["▁dog", "▁cup", "▁cat", "▁tree"], minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def _settings(family: str, dtype: torch.dtype = torch.float32):
    config, unet = (CONFIGS | JOINT)[family]
    return getattr(supported_models, config)({**unet, "dtype": dtype})
