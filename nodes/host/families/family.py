"""What the rest of nodes/host has to know about a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

UNET_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out"}


Received = Callable[[nn.Module, Tensor, Mapping[str, Any]], Tensor]
Columns = Callable[[nn.Module], tuple[int, int]]


def _as_it_is(diffusion_model: nn.Module, encoding: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    return encoding


def through(path: str) -> Received:
    """The layers receive what the module at a path below ``diffusion_model.`` makes of the encoding."""

    def received(diffusion_model: nn.Module, encoding: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
        module = diffusion_model.get_submodule(path)
        return type(module).forward(module, encoding)  # its own, also while that is bypassed for a training

    return received


def in_qkv(projection: nn.Module) -> tuple[int, int]:
    """The first column of the values and how many there are, in what gives queries, keys and values in this order: keys
    and values may be narrower than queries."""
    width = (projection.out_features - projection.in_features) // 2
    return projection.in_features + width, width


@dataclass(frozen=True)
class Joint:
    """Of a family where text and picture are one sequence, the text first: there values alone are edited.

    values: {what matches the module paths of projections that give values of the text, with the layer's name as its
    first group: which of their columns these are}. reads: the module path of what first reads the text encoder's
    encoding. words: of encodings (batch, tokens, d) the rows in which a concept may be, (batch, tokens), or None for
    all. more: what the network's forward takes beside an encoding. guided: whether the network is told how much a
    prompt counts, in place of a second forward. moved_by_references: whether pictures to go by stand ahead of the text.
    """

    values: Mapping[str, Columns]
    reads: str
    words: Callable[[Tensor], Tensor | None] = lambda encoding: None
    more: Callable[[Tensor], dict[str, Any]] = lambda encoding: {}
    guided: bool = False
    moved_by_references: bool = False


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
    channels: what the model's configuration calls the channels of its latents; empty where it does not tell them.
    masked: whether the model is told which tokens are padding.
    offset: whether training learns an offset by itself, since the text encoder is too large to learn through.
    large: whether training saves memory by itself. cfg: of sample pictures. no_export: why a concept cannot become a
    LoRA and an embedding, and what to do.
    joint: of those without cross-attention; attention, projections and heads say nothing then.
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
    joint: Joint | None = None

    @property
    def knows_padding(self) -> bool:
        """Whether texts of different lengths can be in one batch."""
        return not self.in_a_row and self.joint is None

    def by_text(self, x: Tensor, batch: int) -> Tensor:
        """What to_k or to_v receives or gives, (batch, tokens, d), also where that is in a row."""
        return x.reshape(batch, -1, x.shape[-1]) if self.in_a_row else x


def joint_family(
    name: str, title: str, owns: Callable[[nn.Module], bool], resolution: int, texts: set[str], joint: Joint, **more
) -> Family:
    """With what all have in common: the text encoders are too large to learn through, only their output has a place for
    what was learned, and no gate opens on a text that a node has zeroed."""
    return Family(
        name, title, owns, "", {}, "", resolution, frozenset(texts), joint=joint, offset=True, large=True,
        zero_padded=True, **more,
        no_export=f"No file for other programs makes {title} know your word. Use the concept with Perfusion Loader.",
    )  # fmt: skip


def configured_as(*names: str) -> Callable[[nn.Module], bool]:
    """Whether a BaseModel has one of these of the host's configurations, which older hosts need not have."""

    def owns(base_model: nn.Module) -> bool:
        config = type(getattr(base_model, "model_config", None))
        return config.__module__ == "comfy.supported_models" and config.__name__ in names

    return owns


def made_by(*names: str) -> Callable[[nn.Module], bool]:
    """Whether a BaseModel is of one of these classes of the host, which older hosts need not have."""

    def owns(base_model: nn.Module) -> bool:
        classes = type(base_model).__mro__
        return any(cls.__name__ in names for cls in classes if cls.__module__ == "comfy.model_base")

    return owns
