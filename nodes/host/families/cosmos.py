"""Cosmos-Predict2, and Anima, which puts an adapter between its text encoder and the same network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .family import Family, made_by

_BLOCKS = r"blocks\.\d+\.cross_attn"
_NORMS = {"to_q": "q_norm", "to_k": "k_norm"}
_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "output_proj"}


def _adapted(diffusion_model: nn.Module, encoding: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    """As the host's Anima.extra_conds makes it: (batch, tokens of Qwen, d) to (batch, at least 512 tokens of T5, d)."""
    ids, weights = conditioning.get("t5xxl_ids"), conditioning.get("t5xxl_weights")
    if ids is None:
        return encoding
    ids = ids.reshape(-1, ids.shape[-1]).to(encoding.device)  # one row, or one of every encoding
    weights = None if weights is None else weights[None, :, None].to(encoding)
    return diffusion_model.preprocess_text_embeds(encoding, ids, t5xxl_weights=weights)


def _family(name: str, title: str, host_class: str, encoder: str, **more) -> Family:
    return Family(
        name, title, made_by(host_class), _BLOCKS, _PROJECTIONS, "n_heads", 1024, frozenset([encoder]),
        zero_padded=True, norms=_NORMS, large=True, cfg=4.0, **more,
    )  # fmt: skip


COSMOS_PREDICT2 = _family("cosmos-predict2", "Cosmos-Predict2", "CosmosPredict2", "t5xxl")
ANIMA = _family(
    "anima", "Anima", "Anima", "qwen3_06b", received=_adapted, adapter="llm_adapter",
    no_export="Anima reads prompts with two tokenizers, and an embedding can stand among the tokens of only one: no "
    "file for other programs makes it know your word. Use the concept with Perfusion Loader.",
)  # fmt: skip
