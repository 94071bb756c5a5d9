"""Cosmos-Predict2, and Anima, which puts an adapter between its text encoder and the same network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .family import Family, made_by

_BLOCKS = re.compile(r"blocks\.\d+\.cross_attn")
_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj"}


def _adapted(diffusion_model: nn.Module, encoding: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    """As the host's Anima.extra_conds makes it: (batch, tokens of Qwen, d) to (batch, at least 512 tokens of T5, d)."""
    ids, weights = conditioning.get("t5xxl_ids"), conditioning.get("t5xxl_weights")
    if ids is None:
        return encoding
    weights = None if weights is None else weights[None, :, None].to(encoding)
    return diffusion_model.preprocess_text_embeds(encoding, ids[None].to(encoding.device), t5xxl_weights=weights)


COSMOS_PREDICT2 = Family(
    "cosmos-predict2", "", made_by("CosmosPredict2"), _BLOCKS, _PROJECTIONS, "n_heads", 1024,
    zero_padded=True,
)  # fmt: skip
ANIMA = Family(
    "anima", "", made_by("Anima"), _BLOCKS, _PROJECTIONS, "n_heads", 1024, zero_padded=True, received=_adapted
)
