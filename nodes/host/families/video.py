"""Wan 2.1 and 2.2, and LTX-Video: text to video, or with one frame to a picture. Each projects the text once in every
forward, for all layers."""

from __future__ import annotations

from .family import UNET_PROJECTIONS, Family, made_by, through

_NO_EXPORT = "No file for other programs makes {} know your word. Use the concept with Perfusion Loader."


def _family(name: str, title: str, host_class: str, attention: str, projection: str, encoder: str, **more) -> Family:
    return Family(
        name, title, made_by(host_class), attention, received=through(projection), adapter=projection,
        in_forward=True, texts=frozenset([encoder]), whole_norms=True, large=True,
        offset=True, no_export=_NO_EXPORT.format(title), **more,
    )  # fmt: skip


WAN = _family(
    "wan", "Wan", "WAN21", r"blocks\.\d+\.cross_attn", "text_embedding", "umt5xxl", heads="num_heads",
    projections={"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "o"}, norms={"to_q": "norm_q", "to_k": "norm_k"},
    zero_padded=True, resolution=512, cfg=5.0, channels="in_dim",
)  # fmt: skip
LTX_VIDEO = _family(
    "ltx-video", "LTX-Video", "LTXV", r"transformer_blocks\.\d+\.attn2", "caption_projection", "t5xxl",
    heads="heads", projections=UNET_PROJECTIONS, norms={"to_q": "q_norm", "to_k": "k_norm"}, resolution=512, cfg=3.0,
    masked=True,
)  # fmt: skip
