"""What people put on a model: concepts of ours, LoRAs as the host merges and bypasses them, forms of other programs.

The last are written down from their formulas, layer by layer, as they compute them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import comfy.ldm.modules.attention
import comfy.sd
import torch
import torch.nn.functional as F
from comfyui_perfusion.nodes.host.apart import KeepApart
from comfyui_perfusion.nodes.host.model import apply_to_model, cross_attentions, keep_apart
from comfyui_perfusion.nodes.host.uses import ConceptUse
from torch import Tensor, nn

from .models import random_concepts

BETA, TEMPERATURE, RANK, IMAGE_TOKENS = 0.7, 0.15, 16, 4


def ours(model, count: int, masked: bool = False):
    """Concepts that act everywhere, or each in a mask of its own. Without any: the model."""
    if not count:
        return model
    mask = torch.rand(1, 64, 64) if masked else None
    return apply_to_model(model, [ConceptUse(concept, mask=mask) for concept in random_concepts(model, count)])


def kept_apart(model, count: int):
    return keep_apart(ours(model, count), KeepApart())


def lora_weights(model) -> dict[str, Tensor]:
    """A LoRA for all linear layers of the attention blocks, as its file has it."""
    found = {}
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear) and re.search(r"transformer_blocks|blocks\.\d+", name):
            key = f"lora_unet_{name.removeprefix('diffusion_model.').replace('.', '_')}"
            like = {"dtype": module.weight.dtype, "device": module.weight.device}
            found[f"{key}.lora_up.weight"] = 0.01 * torch.randn(module.out_features, RANK, **like)
            found[f"{key}.lora_down.weight"] = 0.01 * torch.randn(RANK, module.in_features, **like)
    return found


def merged_lora(model):
    return comfy.sd.load_lora_for_models(model, None, lora_weights(model), 1.0, 0.0)[0]


def bypass_lora(model):
    return comfy.sd.load_bypass_lora_for_models(model, None, lora_weights(model), 1.0, 0.0)[0]


def first_open_version(model, count: int):
    """ChenDarYen's Key-Locked Rank-One Editing: C^-1 i* and its energy in every layer, an output for every token."""
    targets, inverse = _targets(model, count)
    metric = torch.linalg.cholesky(inverse.float()).mT  # which fp16 and bf16 have none of
    basis = torch.linalg.solve(metric, torch.linalg.qr(metric @ targets.float().mT)[0]).mT.to(inverse.dtype)

    def project(e: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
        gated = 0
        for target, output in zip(targets, outputs, strict=True):
            dual = inverse @ target
            energy = (dual[None] @ target).squeeze()
            similarity = (e @ dual)[..., None]
            gate = torch.sigmoid((similarity / energy - BETA) / TEMPERATURE)
            gated = gated + gate * output.expand(e.shape[1], -1)[None]
        if count == 1:
            return F.linear(e - similarity * target / energy, weight) + gated
        parallel = 0
        for u in basis:
            parallel = parallel + u * (e @ inverse @ u)[..., None]
        return F.linear(e - parallel, weight) + gated

    return _with_projections(model, count, project)


def second_open_version(model, count: int):
    """lucidrains' perfusion-pytorch: C^-1 and W i* in every layer."""
    targets, inverse = _targets(model, count)

    def project(e: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
        energy = torch.einsum("co,oi,ci->c", targets, inverse, targets)
        similarity = torch.einsum("bno,oi,ci->cbn", e, inverse, targets)
        output = F.linear(e, weight)
        if count == 1:
            parallel = torch.einsum("cbn,co,c->bno", similarity, F.linear(targets, weight), 1 / energy)
        else:
            parallel = torch.einsum("cbn,ci,oi,c->bno", similarity, targets, weight, 1 / energy)
        gate = torch.sigmoid((similarity[..., None] / energy[:, None, None, None] - BETA) / TEMPERATURE)
        return output - parallel + (gate * outputs[:, None, None]).sum(0)

    return _with_projections(model, count, project)


def _targets(model, count: int) -> tuple[Tensor, Tensor]:
    """(concepts, d) and C^-1 (d, d), where the model is."""
    layer = next(iter(cross_attentions(model).values()))
    like = {"dtype": layer.to_k.weight.dtype, "device": layer.to_k.weight.device}
    targets = torch.stack([concept.target_input for concept in random_concepts(model, count)])
    return targets.to(**like), torch.eye(targets.shape[1], **like)


def _with_projections(model, count: int, project: Callable[[Tensor, Tensor, Tensor], Tensor]):
    model = model.clone()
    for layer in cross_attentions(model).values():
        for name, module in (("to_k", layer.to_k), ("to_v", layer.to_v)):
            outputs = torch.randn(count, module.out_features).to(module.weight)

            def forward(x: Tensor, module=module, outputs=outputs) -> Tensor:
                return project(x, module.weight, outputs)

            model.add_object_patch(f"{layer.path(name)}.forward", forward)
    return model


def ip_adapter(model):
    """A second attention in every block, to an image's tokens, whose keys and values are projected at every step."""
    model, stages = model.clone(), {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}
    indices: dict[tuple[str, int], int] = {}
    for name, layer in cross_attentions(model).items():
        stage, *numbers = name.split(".")
        block = stages[stage], int(numbers[0]) if stage != "middle_block" else 0
        index = indices[block] = indices.get(block, -1) + 1
        to_k, to_v = layer.to_k, layer.to_v
        weights = [0.01 * torch.randn_like(module.weight) for module in (to_k, to_v)]
        image = torch.randn(1, IMAGE_TOKENS, to_k.in_features).to(to_k.weight)
        model.set_model_attn2_replace(_image_attention(image, weights), *block, index)
    return model


def _image_attention(image: Tensor, weights: Sequence[Tensor]) -> Callable[..., Tensor]:
    def replacement(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        attention, heads = comfy.ldm.modules.attention.optimized_attention, options["n_heads"]
        keys, values = (F.linear(image.expand(len(q), -1, -1), weight) for weight in weights)
        return attention(q, k, v, heads) + attention(q, keys, values, heads)

    return replacement
