"""The host's models made trainable through, for as long as a training lasts.

The host runs nodes under inference mode and its weights are inference tensors, which autograd refuses. For the time of
a training every parameter and buffer is replaced by an alias of the same memory, and the very same objects are put
back at the end: model at beginning == model at end.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from comfy import quant_ops
from comfy.ldm.common_dit import rms_norm
from comfy.ldm.flux import math as flux_math
from comfy.ldm.modules import attention
from comfy.ldm.pixart import blocks as pixart
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
def out_of_place(*models: nn.Module) -> Iterator[None]:
    """The host's layers of CLIP, T5, LTX-Video, Flux add in place, which autograd refuses; for a while they do not."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(
                _forwards(model, _OUT_OF_PLACE, lambda layer: types.MethodType(_OUT_OF_PLACE[_kind(layer)], layer))
            )
        yield


@contextmanager
def bypassed(module: nn.Module) -> Iterator[None]:
    """The module hands on what it gets for a while."""
    with _forwards(module, [_kind(module)], lambda _: lambda x: x):
        yield


_ROTATIONS = (  # of Cosmos-Predict2's kind, Wan's, LTX-Video's, Lumina 2's, Flux's and Qwen-Image's
    "rms_rope_split_half", "apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1", "rms_rope",
    "rms_rope1",
)  # fmt: skip
_LTX_BLOCK = "comfy.ldm.lightricks.model.BasicTransformerBlock"  # the UNet's has the same name
_BLOCKS = (  # of UNets and CLIP, Cosmos-Predict2, Qwen and Anima's adapter, T5, Wan, PixArt, LTX-Video, Qwen-Image,
    # Lumina 2 and Z-Image, Flux, SD3
    "BasicTransformerBlock", "ResBlock", "CLIPLayer", "Block", "TransformerBlock", "T5Block", "WanAttentionBlock",
    "PixArtMSBlock", _LTX_BLOCK, "QwenImageTransformerBlock", "JointTransformerBlock", "DoubleStreamBlock",
    "SingleStreamBlock", "JointBlock",
)  # fmt: skip
_ATTENTION = (  # where the chosen one is called from
    (attention, "optimized_attention"), (attention, "optimized_attention_masked"), (pixart, "optimized_attention"),
)  # fmt: skip
_WITH_BACKWARD = ("attention_basic", "attention_pytorch", "attention_split", "attention_xformers")


@contextmanager
def attention_with_backward() -> Iterator[None]:
    """The host's attention is PyTorch's for a while, where the chosen one cannot be trained through.

    Sage and flash attention have no backward, sub-quadratic attention writes in place when memory is short. Text
    encoders always use another one, which has a backward.
    """
    chosen = [(module, name, getattr(module, name)) for module, name in _ATTENTION]
    usable = [getattr(attention, name) for name in _WITH_BACKWARD]
    for module, name, function in chosen:
        if function not in usable:
            setattr(module, name, attention.attention_pytorch)
    try:
        yield
    finally:
        for module, name, function in chosen:
            setattr(module, name, function)


def attention_options() -> dict:
    """The same for models that hold on to the chosen attention: transformer_options, which they hand to it."""
    chosen = attention.optimized_attention
    return {"optimized_attention_override": lambda _, *args, **kwargs: chosen(*args, **kwargs)}


@contextmanager
def rotation_with_backward() -> Iterator[None]:
    """Comfy Kitchen's rotary embeddings have no backward; for a while the same in plain PyTorch stands in."""
    kitchen, before = getattr(quant_ops, "ck", None), []
    if kitchen is not None:
        from comfy_kitchen.backends.eager import rope

        for owner, mark in ((kitchen, ""), (flux_math, "q_")):  # where older hosts hold on to two of them
            for name in _ROTATIONS:
                if hasattr(owner, mark + name) and hasattr(rope, name):
                    before.append((owner, mark + name, getattr(owner, mark + name)))
                    setattr(owner, mark + name, getattr(rope, name))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


@contextmanager
def checkpointed(*models: nn.Module) -> Iterator[None]:
    """Backward computes the blocks of the models again instead of keeping what is inside of them."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_forwards(model, _BLOCKS, _checkpointed))
        yield


def _checkpointed(block: nn.Module) -> Callable:
    plain = block.forward

    def forward(*args, transformer_options: dict | None = None, **kwargs):
        if not torch.is_grad_enabled():
            return plain(*args, **_options(transformer_options), **kwargs)
        seen = _options(transformer_options)  # as they are now: the host changes the dictionary on its way

        def run(*inputs):
            return plain(*inputs, **_options(**seen), **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)

    return forward


def _options(transformer_options: dict | None = None) -> dict[str, dict]:
    return {} if transformer_options is None else {"transformer_options": dict(transformer_options)}


@contextmanager
def _forwards(model: nn.Module, kinds: Sequence[str], make: Callable[[nn.Module], Callable]) -> Iterator[None]:
    """Modules of these classes get another forward for a while."""
    modules = [module for module in model.modules() if _kind(module) in kinds]
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = make(module)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _kind(module: nn.Module) -> str:
    """The name of its class, with its place where two have that name."""
    whole = f"{type(module).__module__}.{type(module).__name__}"
    return whole if whole == _LTX_BLOCK else type(module).__name__


def _clip_layer(self, x: Tensor, mask: Tensor | None = None, optimized_attention=None) -> Tensor:
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))


def _t5_attention(self, x: Tensor, mask: Tensor | None = None, past_bias=None, optimized_attention=None):
    output, past_bias = self.SelfAttention(
        self.layer_norm(x), mask=mask, past_bias=past_bias, optimized_attention=optimized_attention
    )
    return x + output, past_bias


def _t5_feed_forward(self, x: Tensor) -> Tensor:
    return x + self.DenseReluDense(self.layer_norm(x))


def _ltx_block(self, x, context=None, attention_mask=None, timestep=None, pe=None, transformer_options={}, **_):  # noqa: B006
    table = self.scale_shift_table[None, None].to(x)
    shifts = (table + timestep.reshape(len(x), timestep.shape[1], len(self.scale_shift_table), -1)).unbind(2)
    shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = shifts
    own = rms_norm(x) * (1 + scale_attention) + shift_attention
    x = x + self.attn1(own, pe=pe, transformer_options=transformer_options) * gate_attention
    x = x + self.attn2(x, context=context, mask=attention_mask, transformer_options=transformer_options)
    return x + self.ff(rms_norm(x) * (1 + scale_mlp) + shift_mlp) * gate_mlp


def _flux_double(self, img, txt, vec, pe, attn_mask=None, transformer_options={}, **_):  # noqa: B006
    (img_mod, img_mod2), (txt_mod, txt_mod2) = (self.img_mod(vec), self.txt_mod(vec)) if self.modulation else vec
    txt_q, txt_k, txt_v = _flux_qkv(self.txt_attn, self.txt_norm1(txt) * (1 + txt_mod.scale) + txt_mod.shift)
    img_q, img_k, img_v = _flux_qkv(self.img_attn, self.img_norm1(img) * (1 + img_mod.scale) + img_mod.shift)
    q, k, v = torch.cat([txt_q, img_q], 2), torch.cat([txt_k, img_k], 2), torch.cat([txt_v, img_v], 2)
    attended = flux_math.attention(q, k, v, pe=pe, mask=attn_mask, transformer_options=transformer_options)
    of_txt, of_img = attended.split([txt.shape[1], img.shape[1]], 1)
    img = img + self.img_attn.proj(of_img) * img_mod.gate
    img = img + self.img_mlp(self.img_norm2(img) * (1 + img_mod2.scale) + img_mod2.shift) * img_mod2.gate
    txt = txt + self.txt_attn.proj(of_txt) * txt_mod.gate
    txt = txt + self.txt_mlp(self.txt_norm2(txt) * (1 + txt_mod2.scale) + txt_mod2.shift) * txt_mod2.gate
    return img, txt


def _flux_single(self, x, vec, pe, attn_mask=None, transformer_options={}, **_):  # noqa: B006
    mod = self.modulation(vec)[0] if self.modulation else vec
    both = self.linear1(self.pre_norm(x) * (1 + mod.scale) + mod.shift)
    qkv, mlp = both.split([3 * self.hidden_size, self.mlp_hidden_dim_first], -1)
    q, k, v = _in_heads(qkv, self.num_heads)
    q, k = self.norm(q, k, v)
    attended = flux_math.attention(q, k, v, pe=pe, mask=attn_mask, transformer_options=transformer_options)
    return x + self.linear2(torch.cat([attended, self.mlp_act(mlp)], 2)) * mod.gate


def _flux_qkv(stream: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _in_heads(stream.qkv(x), stream.num_heads)
    return *stream.norm(q, k, v), v


def _in_heads(qkv: Tensor, heads: int) -> Tensor:
    return rearrange(qkv, "batch n (three heads d) -> three batch heads n d", three=3, heads=heads)


_OUT_OF_PLACE = {
    "DoubleStreamBlock": _flux_double,
    "SingleStreamBlock": _flux_single,
    "CLIPLayer": _clip_layer,
    "T5LayerSelfAttention": _t5_attention,
    "T5LayerFF": _t5_feed_forward,
    _LTX_BLOCK: _ltx_block,
}


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
