"""What a LoRA and an embedding for hosts without this pack are made of: the model's projections, and names."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...perfusion_core import Concept
from .adapter import network_dtype
from .model import base_model, cross_attentions


def projector(model) -> Callable[[str, str, Tensor], Tensor]:
    """project(layer, "to_k" or "to_v", x): W x as the MODEL computes it, (d) -> (d_out) in fp32 on the CPU.

    The host loads the model and casts, dequantises and patches its weights as for sampling. Raises ValueError, here or
    in project, for weights that are not there or are no numbers.
    """
    modules = {
        (layer, name): getattr(module, name)
        for layer, module in cross_attentions(model).items()
        for name in ("to_k", "to_v")
    }
    for place, module in modules.items():
        if module.weight.is_meta:  # the checkpoint lacked it; the host would make zeros of it
            raise _unusable(*place)
    comfy.model_management.load_models_gpu([model])
    dtype = network_dtype(model.model)

    def project(layer: str, projection: str, x: Tensor) -> Tensor:
        module = modules[layer, projection]
        with torch.no_grad():  # past the patched forward, which is our own edit's
            output = type(module).forward(module, x.to(model.load_device, dtype)[None])[0]
        if not torch.isfinite(output).all():
            raise _unusable(layer, projection)
        return output.float().cpu()

    return project


def lora_names(model) -> dict[tuple[str, str], str]:
    """{(layer, "to_k" or "to_v"): what LoRA files call it}: by diffusers' modules as kohya's trainer does for SD1.x and
    SD2.x, for others by the checkpoint's."""
    key = ".to_k.weight"
    diffusers = {}
    if base_model(model) != "sdxl":
        names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items()
        diffusers = {own.removesuffix(key): name.removesuffix(key) for name, own in names if own.endswith(key)}
    return {
        (layer, name): f"lora_unet_{diffusers.get(layer, layer)}.{attention.family.projections[name]}".replace(".", "_")
        for layer, attention in cross_attentions(model).items()
        for name in ("to_k", "to_v")
    }


def embedding_tensors(concept: Concept) -> dict[str, Tensor]:
    """The trigger as textual inversion files hold it, (1, d_encoder): "emb_params", for SDXL "clip_l" and "clip_g"."""
    rows = {f"clip_{name}": vector[None].contiguous() for name, vector in concept.token_embeddings.items()}
    return rows if len(rows) > 1 else {"emb_params": next(iter(rows.values()))}


def _unusable(layer: str, projection: str) -> ValueError:
    return ValueError(
        f"The weights of this model cannot be used: {layer}.{projection} has none or gives no numbers. Load a whole "
        "checkpoint with the stock loader, in fp16, bf16 or fp32."
    )
