"""Small random MODELs, CLIPs and VAEs of the families beyond the UNet: the host's own classes, fewer and narrower
layers, but whole vocabularies."""

from __future__ import annotations

import io
import json
from typing import Any

import comfy.ldm.wan.vae
import comfy.model_patcher
import comfy.sd
import torch
from comfy import supported_models
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.pixart import pixartms
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
VIDEO = ("wan", "ltx-video")
PROJECTED = (*VIDEO, "pixart-sigma")  # whose forward projects the text for all layers
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cosmos-predict2": ("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **MINI_TRAIN_DIT}),
    "anima": ("Anima", {"image_model": "anima", **MINI_TRAIN_DIT}),
    "wan": ("WAN21_T2V", {"image_model": "wan2.1", "in_dim": 16, "out_dim": 16, **WAN}),
    "ltx-video": ("LTXV", {"image_model": "ltxv", **LTX}),
    "pixart-sigma": ("PixArtSigma", {"image_model": "pixart_sigma", **PIXART}),
}
TEXTS = {
    "qwen3_06b_model_config": {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2,
        "num_key_value_heads": 1,
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


def random_family(family: str, seed: int = 0):
    """(MODEL, CLIP, VAE) of the family in fp32."""
    settings, generator = _settings(family), torch.Generator().manual_seed(seed)
    model = random_model(family, seed)
    tokenizer = {"spiece_model": _pieces()} if family == "wan" else {}
    options = {**TEXTS, "dtype": torch.float32}
    clip = comfy.sd.CLIP(settings.clip_target(), tokenizer_data=tokenizer, model_options=options)
    initialise(clip.cond_stage_model, generator)
    if family == "ltx-video":
        return model, clip, _ltx_vae(generator)
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
    if family in PROJECTED:
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


def _narrow_vae(generator: torch.Generator):
    network = initialise(AutoencoderKL(ddconfig=NARROW_VAE, embed_dim=4), generator)
    return comfy.sd.VAE(sd=network.state_dict(), config={"params": {"ddconfig": NARROW_VAE, "embed_dim": 4}})


def _pieces() -> torch.Tensor:
    """A SentencePiece model of umT5's kind, which files of umT5 bring along."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(captions(400)), model_writer=model, vocab_size=PIECES, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, user_defined_symbols=["▁dog", "▁cup", "▁cat", "▁tree"], minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def _settings(family: str, dtype: torch.dtype = torch.float32):
    config, unet = CONFIGS[family]
    return getattr(supported_models, config)({**unet, "dtype": dtype})
