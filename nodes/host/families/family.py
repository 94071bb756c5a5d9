"""What the rest of nodes/host has to know about a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

UNET_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out"}


Received = Callable[[nn.Module, Tensor, Mapping[str, Any]], Tensor]


def _as_it_is(diffusion_model: nn.Module, encoding: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    return encoding


def through(path: str) -> Received:
    """The layers receive what the module at a path below ``diffusion_model.`` makes of the encoding."""

    def received(diffusion_model: nn.Module, encoding: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
        module = diffusion_model.get_submodule(path)
        return type(module).forward(module, encoding)  # its own, also while that is bypassed for a training

    return received


@dataclass(frozen=True)
class Family:
    """One family of the host's models.

    name: ``base_model`` in concept files. title: for people; empty where only parts of the family may work.
    owns: whether one of the host's BaseModels is of the family, which its class and its configuration's tell.
    attention: matches the module paths of the text cross-attentions below ``diffusion_model.``.
    projections: what the family calls to_q, to_k, to_v and to_out. to_k and to_v may be one, which gives keys and,
    behind them, values. heads: the attribute with the number of heads.
    resolution: pixels on a side of the pictures that the models are made for. texts: names of their text encoders.
    zero_padded: encodings end in rows of zeros, on which no gate may open (see ConceptSet).
    received: what the layers receive of a text encoder's encoding (batch, tokens, d), where something stands between,
    from the diffusion model, the encoding and the conditioning's own dict. adapter: module path of that, below
    ``diffusion_model.``, if it is a part of the model. in_forward: whether it is a part of every forward, where others
    have it done before they sample.
    norms: of to_q and to_k, the attributes with what each head's part goes through before attention, or all heads
    together (whole_norms).
    in_a_row: whether layers get the encodings of a whole batch in one row, (1, batch tokens, d), all of one length.
    channels: what the model's configuration calls the channels of its latents.
    masked: whether the model is told which tokens are padding.
    offset: whether training learns an offset by itself, since the text encoder is too large to learn through.
    large: whether training saves memory by itself. cfg: of sample pictures. no_export: why a concept cannot become a
    LoRA and an embedding, and what to do.
    """

    name: str
    title: str
    owns: Callable[[nn.Module], bool]
    attention: str
    projections: Mapping[str, str]
    heads: str
    resolution: int
    texts: frozenset[str]
    zero_padded: bool = False
    received: Received = _as_it_is
    adapter: str = ""
    in_forward: bool = False
    norms: Mapping[str, str] = field(default_factory=dict)
    whole_norms: bool = False
    in_a_row: bool = False
    large: bool = False
    cfg: float = 7.0
    no_export: str = ""
    channels: str = "in_channels"
    masked: bool = False
    offset: bool = False

    def by_text(self, x: Tensor, batch: int) -> Tensor:
        """What to_k or to_v receives or gives, (batch, tokens, d), also where that is in a row."""
        return x.reshape(batch, -1, x.shape[-1]) if self.in_a_row else x


def made_by(*names: str) -> Callable[[nn.Module], bool]:
    """Whether a BaseModel is of one of these classes of the host, which older hosts need not have."""

    def owns(base_model: nn.Module) -> bool:
        classes = type(base_model).__mro__
        return any(cls.__name__ in names for cls in classes if cls.__module__ == "comfy.model_base")

    return owns
