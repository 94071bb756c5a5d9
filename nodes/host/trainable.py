"""The host's models made trainable through, for as long as a training lasts.

The host runs nodes under inference mode and its weights are inference tensors, which autograd refuses. For the time of
a training every parameter and buffer is replaced by an alias of the same memory, and the very same objects are put
back at the end: model at beginning == model at end.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def trainable_through(*models: nn.Module) -> Iterator[None]:
    """Autograd may run through ``models``, whose weights stay as they are.

    Raises TypeError for weights that are not plain tensors (quantised checkpoints).
    """
    replaced: list[tuple[dict, str, Tensor, Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for module in (module for model in models for module in model.modules()):
                for store in (module._parameters, module._buffers):
                    for name, tensor in store.items():
                        if tensor is not None:
                            alias = _alias(tensor)
                            replaced.append((store, name, tensor, alias))
                            store[name] = alias
            yield
        finally:
            for store, name, tensor, alias in replaced:
                # a weight that was offloaded meanwhile is a new object: that one stays
                if store.get(name) is alias and alias.data_ptr() == tensor.data_ptr():
                    store[name] = tensor


@contextmanager
def out_of_place_clip(model: nn.Module) -> Iterator[None]:
    """The host's CLIP layers add in place, which autograd refuses; for a while they do not."""
    layers = [module for module in model.modules() if type(module).__name__ == "CLIPLayer"]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.__dict__["forward"] = types.MethodType(_clip_layer, layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward


def _clip_layer(self, x: Tensor, mask: Tensor | None = None, optimized_attention=None) -> Tensor:
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))


def _alias(tensor: Tensor) -> Tensor:
    """The same memory as a normal tensor; for all, since inference tensors that were moved deny being any."""
    if type(tensor.data) is not Tensor:
        raise TypeError(
            f"Cannot train on a quantised model (its weights are {type(tensor.data).__name__}). "
            "Load the checkpoint in fp16, bf16 or fp32."
        )
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias
