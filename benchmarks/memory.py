"""What training a concept needs in memory on a GPU, computed without one.

    bash scripts/env.sh python benchmarks/memory.py [MODEL ...]

The host's true UNets and text encoders are made of meta tensors, which have shapes and types but no contents, in fp16.
Through them goes the trainee's own micro-batch, from token embedding to gradient, with the edit, once as it is and once
with gradient checkpointing. Counted are the tensors that exist, weights apart. Where an offset is learned, the text
encoder comes before the network and alone.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import speed.host  # noqa: F401, starts the host
import torch
from speed.models import ANIMA, SD15, SD21, SDXL
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
META = torch.device("meta")
WAN = {"image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16, "freq_dim": 256}
LUMINA = {"image_model": "lumina2", "in_channels": 16, "qk_norm": True}
FLUX = {"hidden_size": 3072, "num_heads": 24, "theta": 10000}
KLEIN = {
    **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32], "patch_size": 1, "qkv_bias": False, "guidance_embed": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip
MMDIT = {"in_channels": 16, "pos_embed_scaling_factor": None, "adm_in_channels": 2048, "qk_norm": "rms"}


def _text_of_mmdit(width: int) -> dict:
    return {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": width}}


CONFIGS = {
    "SD1.5": SD15, "SD2.1": SD21, "SDXL": SDXL, "Anima": ANIMA,
    "Cosmos-Predict2": {**ANIMA, "image_model": "cosmos_predict2"},
    "Wan 1.3B": {**WAN, "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "Wan 14B": {**WAN, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    "LTX-Video 2B": {"image_model": "ltxv"},
    "LTX-Video 13B": {"image_model": "ltxv", "cross_attention_dim": 4096, "attention_head_dim": 128, "num_layers": 48},
    "PixArt Sigma": {"image_model": "pixart_sigma", "in_channels": 4, "micro_condition": False},
    "Qwen-Image": {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
    "Z-Image": {
        **LUMINA, "dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
        "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "cap_feat_dim": 2560, "pad_tokens_multiple": 32,
    },
    "Lumina 2": {
        **LUMINA, "dim": 2304, "n_layers": 26, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32],
        "cap_feat_dim": 2304,
    },
    "Flux": {
        **FLUX, "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
        "context_in_dim": 4096, "mlp_ratio": 4.0, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
        "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
    },
    "Flux 2 Klein 4B": {**KLEIN, "context_in_dim": 7680, "depth": 5, "depth_single_blocks": 20},
    "Flux 2 Klein 9B": {
        **KLEIN, "context_in_dim": 12288, "hidden_size": 4096, "num_heads": 32, "depth": 8, "depth_single_blocks": 24,
    },
    "SD3.5 Medium": {**MMDIT, "depth": 24, "pos_embed_max_size": 384, "num_patches": 147456,
                     "x_block_self_attn_layers": list(range(13)), "context_embedder_config": _text_of_mmdit(1536)},
    "SD3.5 Large": {**MMDIT, "depth": 38, "pos_embed_max_size": 192, "num_patches": 36864,
                    "context_embedder_config": _text_of_mmdit(2432)},
}  # fmt: skip
KINDS = {  # of the host's supported_models
    "SD1.5": "SD15", "SD2.1": "SD20", "Cosmos-Predict2": "CosmosT2IPredict2", "Wan 1.3B": "WAN21_T2V",
    "Wan 14B": "WAN21_T2V", "LTX-Video 2B": "LTXV", "LTX-Video 13B": "LTXV", "PixArt Sigma": "PixArtSigma",
    "Qwen-Image": "QwenImage", "Z-Image": "ZImage", "Lumina 2": "Lumina2", "Flux 2 Klein 4B": "Flux2",
    "Flux 2 Klein 9B": "Flux2", "SD3.5 Medium": "SD3", "SD3.5 Large": "SD3",
}  # fmt: skip
ROWS = {"flux": 256, "flux-2-klein": 512, "sd3": 154}  # of text
POOLED = {"flux": 768, "sd3": 2048}
SETTINGS = [
    ("SD1.5", 512, 4), ("SD1.5", 512, 1), ("SD2.1", 768, 1), ("SDXL", 1024, 4), ("SDXL", 1024, 1), ("SDXL", 768, 1),
    ("Anima", 1024, 4), ("Anima", 1024, 1), ("Cosmos-Predict2", 1024, 4), ("Cosmos-Predict2", 1024, 1),
    ("Wan 1.3B", 512, 4), ("Wan 1.3B", 512, 1), ("Wan 14B", 512, 4), ("Wan 14B", 512, 1), ("LTX-Video 2B", 512, 4),
    ("LTX-Video 2B", 512, 1), ("LTX-Video 13B", 512, 4), ("LTX-Video 13B", 512, 1), ("PixArt Sigma", 1024, 4),
    ("PixArt Sigma", 1024, 1),
    *((name, 1024, batch) for name in list(CONFIGS)[10:] for batch in (4, 1)),
]  # fmt: skip


@dataclass(frozen=True)
class Need:
    """In bytes. ``kept`` is what exists between forward and backward, ``text`` the text encoders' part of it."""

    weights: int
    text: int
    kept: int
    peak: int  # the most that exists at any time, weights apart
    before: int = 0  # weights of text encoders that make room for the network


def main(only: Sequence[str]) -> None:
    print("| GiB | weights | kept for backward | the text encoders' part | most at once | with weights | before |")
    print("|---|---|---|---|---|---|---|")
    for name, size, batch in SETTINGS:
        if only and name not in only:
            continue
        model, clip = on_meta(architecture(name))
        for checkpointing in (False, True):
            need = micro_batch(model, clip, size, batch, checkpointing)
            columns = need.weights, need.kept, need.text, need.peak, need.weights + need.peak, need.before
            numbers = " | ".join(f"{number / GIB:.2f}" for number in columns)
            title = f"{name} at {size}, batch {batch}{', checkpointed' * checkpointing}"
            print(f"| {title} | {numbers} |", flush=True)


def architecture(name: str):
    """The host's description of a model."""
    from comfy import supported_models

    return getattr(supported_models, KINDS.get(name, name))({**CONFIGS[name], "dtype": torch.float16})


def on_meta(config, text_options: dict | None = None):
    """(MODEL, CLIP) without contents, the text encoders in fp16; ``text_options`` are their model_options.

    Of models with an offset no CLIP but its encoders: Wan's tokenizer comes with its weights.
    """
    import comfy.model_patcher
    import comfy.sd
    from comfyui_perfusion.nodes.host.families import family_of

    network = config.get_model({}, device=META)
    network.model_sampling.to(META)
    if hasattr(network, "embedder"):  # SDXL's embedding of picture sizes, which it makes on the CPU
        network.embedder.register_forward_hook(lambda module, inputs, output: output.to(META))
    model = comfy.model_patcher.ModelPatcher(network, META, META)
    target = config.clip_target({f"text_encoders.{name}": torch.zeros(1, dtype=torch.float16) for name in held(model)})
    if family_of(model).offset:
        return model, target.clip(device=META, dtype=torch.float16)
    options = {**(text_options or {}), "initial_device": META, "dtype": torch.float16}
    clip = comfy.sd.CLIP(target, model_options=options)
    clip.patcher.load_device = META
    return model, clip


def micro_batch(model, clip, size: int, batch: int, checkpointing: bool) -> Need:
    """Of ``batch`` photos of size x size pixels, each with a template of its own."""
    from comfyui_perfusion.nodes.host import text
    from comfyui_perfusion.nodes.host.adapter import receiver
    from comfyui_perfusion.nodes.host.families import family_of
    from comfyui_perfusion.nodes.host.model import encoding_width
    from comfyui_perfusion.nodes.host.sentences import ReadAnew
    from comfyui_perfusion.nodes.host.trainable import (
        bypassed,
        checkpointed,
        out_of_place,
        rotation_with_backward,
        trainable_through,
    )
    from comfyui_perfusion.nodes.host.trainee import ComfyTrainee, Subject
    from comfyui_perfusion.perfusion_core import Concept, ConceptSet

    device, family = model.load_device, family_of(model)
    networks = (model.model,) if family.offset else (model.model, clip.cond_stage_model)
    if not family.offset:
        text.prepare_encoders(clip)
    with ExitStack() as stack:
        stack.enter_context(trainable_through(*networks))
        stack.enter_context(out_of_place(*networks))
        stack.enter_context(rotation_with_backward())
        if checkpointing:
            stack.enter_context(checkpointed(*networks))
        photos = torch.empty(batch, size, size, 3, device=device)
        sentences = [[f"a photo of {{}} number {i}"] for i in range(batch)]
        latent_format = networks[0].latent_format
        side = size // latent_format.spacial_downscale_ratio
        latents = torch.empty(batch, latent_format.latent_channels, side, side, device=device)
        if latent_format.latent_dimensions == 3:
            latents = latents[:, :, None]
        subject = Subject(photos, None, sentences, "teddy")
        if family.offset:
            if family.adapter:
                stack.enter_context(bypassed(model.model.diffusion_model.get_submodule(family.adapter)))
            texts = read_once(subject.distinct_sentences, family, encoding_width(model))
            texts.open(receiver(model), family, device)
            # texts of one length, which meta tensors cannot be asked for
            stack.enter_context(mock.patch.object(ComfyTrainee, "_denoised", ComfyTrainee._denoised_at_once))
        else:
            texts = ReadAnew(clip, "teddy", subject.distinct_sentences, receiver(model), device)
        trainee = ComfyTrainee(model, texts, None, subject, latents, ())
        embeddings = {name: nn.Parameter(row) for name, row in trainee.superclass_embeddings().items()}
        deltas = {
            layer: nn.Parameter(torch.zeros(width, device=device)) for layer, width in trainee.wiring.widths.items()
        }
        vector = torch.ones(encoding_width(model))
        concept = Concept("toy", "<my-toy>", "teddy", "", embeddings, vector, vector, vector, deltas)
        trainee.wiring.concepts = ConceptSet([concept], 0.75, 0.1)
        stack.enter_context(trainee.wiring)
        stack.enter_context(attention_as_on_a_gpu())
        live = stack.enter_context(Live(*networks))
        prompts = trainee.encode(range(batch), embeddings)
        of_text = live.now
        loss = trainee.loss(torch.arange(batch), prompts, torch.Generator())
        kept = live.now
        loss.backward()
        before = sum(parameter.nbytes for parameter in clip.parameters()) if family.offset else 0
        weights = sum(parameter.nbytes for network in networks for parameter in network.parameters())
        return Need(weights, of_text, kept, live.peak, before)


def read_once(sentences: Sequence[str], family, width: int):
    """Sentences as a large text encoder leaves them: twelve tokens, which Wan's projection gets as 512; where text and
    picture share attention, with instructions or padding."""
    from comfyui_perfusion.nodes.host.sentences import ReadOnce, _Tokens

    rows = (ROWS.get(family.name, 24), width) if family.joint else (12, 4096)
    texts, tokens = object.__new__(ReadOnce), _Tokens({"": [0] * 512}, {"": 12}, 5, 5)
    pooled = torch.empty(1, POOLED[family.name], device=META) if family.name in POOLED else None
    texts._rows = {sentence: (tokens, torch.empty(1, *rows, device=META), pooled) for sentence in sentences}
    return texts


def held(model) -> list[str]:
    """Some weights of text encoders' files, by which the host knows these."""
    from comfyui_perfusion.nodes.host.model import base_model, encoding_width

    if base_model(model) == "sd3":
        clips = [f"clip_{name}.transformer.text_model.final_layer_norm.weight" for name in "lg"]
        return [*clips, "t5xxl.transformer.encoder.final_layer_norm.weight"]
    if base_model(model) == "flux-2-klein":
        return [f"qwen3_{'4b' if encoding_width(model) == 7680 else '8b'}.transformer.model.norm.weight"]
    return []


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations have made while it was entered and that still exist.

    What shares memory counts once, what shares it with ``models`` not at all.
    """

    def __init__(self, *models: nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet(
            tensor.untyped_storage() for model in models for tensor in [*model.parameters(), *model.buffers()]
        )

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, change: int) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)


@contextmanager
def attention_as_on_a_gpu() -> Iterator[None]:
    """The host's attention as it is on NVIDIA GPUs, also for tensors without contents."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_management
    import comfy.ops
    from comfy.ldm.pixart import blocks as pixart
    from comfyui_perfusion.perfusion_core import edit

    with (
        mock.patch.object(attention, "optimized_attention", attention.attention_pytorch),
        mock.patch.object(pixart, "optimized_attention", attention.attention_pytorch),
        mock.patch.object(comfy.model_management, "pytorch_attention_enabled", lambda: True),
        mock.patch.object(comfy.ops, "scaled_dot_product_attention", fused_attention),
        mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()),  # meta tensors know none
        mock.patch.object(edit, "_full_precision", lambda device: nullcontext()),
    ):
        yield


def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_) -> Tensor:
    """The kernel that torch takes on a GPU, called by name, so that autograd keeps what it keeps for this one.

    That is q, k, v, the output and a number per row, never the matrix of all pairs. The flash kernel takes no masks and
    no fp32, which text encoders have.
    """
    if k.shape[1] != q.shape[1]:  # heads that share keys
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    mask = attn_mask.expand(*q.shape[:-1], k.shape[-2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True)[0]


if __name__ == "__main__":
    main(sys.argv[1:])
