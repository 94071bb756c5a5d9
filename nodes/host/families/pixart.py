"""PixArt Alpha and Sigma. One projection makes keys and values of the text, which another projects for all layers."""

from __future__ import annotations

from functools import partial

from comfy import supported_models
from torch import nn

from .family import Family, through

_TEXT = "y_embedder.y_proj"
_PROJECTIONS = {"to_q": "q_linear", "to_k": "kv_linear", "to_v": "kv_linear", "to_out": "proj"}


def _owns(base_model: nn.Module, config: type) -> bool:
    return type(getattr(base_model, "model_config", None)) is config


def _family(name: str, title: str, config: type) -> Family:
    return Family(
        name, title, partial(_owns, config=config), r"blocks\.\d+\.cross_attn", _PROJECTIONS, "num_heads",
        1024, frozenset(["t5xxl"]), received=through(_TEXT), adapter=_TEXT, in_forward=True, in_a_row=True, large=True,
        offset=True, cfg=4.5,
        no_export=f"No file for other programs makes {title} know your word. Use the concept with Perfusion Loader.",
    )  # fmt: skip


PIXART_ALPHA = _family("pixart-alpha", "PixArt Alpha", supported_models.PixArtAlpha)
PIXART_SIGMA = _family("pixart-sigma", "PixArt Sigma", supported_models.PixArtSigma)
