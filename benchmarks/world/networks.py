"""The demo model's three networks, ComfyUI's own classes in small, and the words they know."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache

if os.environ["COMFYUI_PATH"] not in sys.path:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])

from comfy.cli_args import args as host_arguments

host_arguments.cpu = True  # before model_management looks for a device

import comfy.clip_model
import comfy.ldm.modules.attention
import comfy.ops
import numpy as np
import torch
import torch.nn.functional as F
from comfy.clip_model import CLIPTextModel_
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.sd1_clip import SDTokenizer
from torch import Tensor, nn

from .individuals import BOOK, COLOURS, PATTERNS, SHAPES, WIDTH, World
from .places import PLACES, STYLES
from .scenes import NAMES

LATENT = (16, 12, 12)
VAE = {
    "double_z": True, "z_channels": 16, "resolution": 96, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
UNET = {
    "image_size": 12, "in_channels": 16, "out_channels": 16, "model_channels": 64, "channel_mult": [1, 3],
    "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 192, "num_heads": 4, "num_head_channels": -1,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False, "conv_resample": False,
}  # fmt: skip
TEXT = {
    "hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 768,
    "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip
TOKENS = TEXT["max_position_embeddings"]
START, END = 0, 1  # rows of the token table
_MORE_WORDS = "a an and with of at in on the photo picture illustration drawing bow scarf hat glasses flag balloon"


class Vocabulary:
    """The CLIP tokens of the world's words; each has a row in the token table, and all others share the last row."""

    def __init__(self, world: World = BOOK) -> None:
        self._tokenizer = SDTokenizer(embedding_size=TEXT["hidden_size"])
        shapes = (shape for kind in world.classes for shape in SHAPES[kind])
        sentences = [*world.classes, *shapes, *COLOURS, *PATTERNS, *PLACES.values(), *STYLES.values(), _MORE_WORDS]
        words = {token for sentence in sentences for token in self._tokens(sentence)}
        self.ids = [self._tokenizer.start_token, self._tokenizer.end_token, *sorted(words)]
        self._rows = {token: row for row, token in enumerate(self.ids)}
        self._cache: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def rows(self, captions: Iterable[str]) -> Tensor:
        """(captions, 77), rows of the token table; -1 - k where the name of the k-th thing stands."""
        out = torch.full((len(captions := list(captions)), TOKENS), END)
        for line, caption in zip(out, captions, strict=True):
            rows = [START, *(row for word in caption.split() for row in self.of(word))][: TOKENS - 1]
            line[: len(rows)] = torch.tensor(rows)
        return out

    def of(self, word: str) -> list[int]:
        """The rows of one word, which may have several tokens."""
        if word not in self._cache:
            rows = [self._rows.get(token, len(self.ids)) for token in self._tokens(word)]
            self._cache[word] = [-1 - NAMES.index(word)] if word in NAMES else rows
        return self._cache[word]

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer.tokenizer(text)["input_ids"][1:-1]


class TextEncoder(nn.Module):
    """CLIP's text transformer with a row of the token table for each word of the world.

    What it gives for the end of the text and the padding is zero: otherwise a model of this size puts all that it
    knows of a prompt there, and its UNet does not look at the words.
    """

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        width = TEXT["hidden_size"]
        self.vocabulary = vocabulary
        self.table = nn.Embedding(len(vocabulary), width)
        self.transformer = CLIPTextModel_(TEXT, torch.float32, "cpu", comfy.ops.disable_weight_init)
        self.transformer.embeddings.token_embedding = None
        # What an individual's name means: its attributes through a small network, added to the word of its class.
        self.naming = nn.Sequential(nn.Linear(WIDTH, 512), nn.SiLU(), nn.Linear(512, width))

    def forward(self, rows: Tensor, attributes: Tensor, class_rows: Tensor) -> Tensor:
        """(captions, 77) -> (captions, 77, d). For names: attributes (captions, things, WIDTH), rows of class words."""
        words = self.table(rows.clamp_min(0))
        names = self.names(attributes, class_rows)
        for k in range(names.shape[1]):
            words = torch.where((rows == -1 - k)[..., None], names[:, k, None], words)
        return self.encode(words, (rows != END).sum(1))

    def names(self, attributes: Tensor, class_rows: Tensor) -> Tensor:
        """A name of which nothing is known is its class word."""
        attributes = attributes.to(self.table.weight.dtype)
        return self.table(class_rows) + self.naming(attributes) - self.naming(torch.zeros_like(attributes[:1, :1]))

    def encode(self, embeddings: Tensor, counts: Tensor) -> Tensor:
        """Embeddings (captions, 77, d) -> the same shape; ``counts`` (captions,): tokens before the end of the text."""
        longest, part = int(counts.max()), self.transformer
        x = embeddings[:, :longest] + part.embeddings.position_embedding.weight[:longest]
        mask = x.new_full((longest, longest), -torch.finfo(x.dtype).max).triu(1)
        x = part.final_layer_norm(part.encoder(x, mask)[0])
        before_the_end = torch.arange(longest, device=x.device) < counts[:, None]
        return F.pad(x * before_the_end[..., None], (0, 0, 0, TOKENS - longest))


def make_unet() -> UNetModel:
    return UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(ddconfig=VAE, embed_dim=VAE["z_channels"])


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Weights of std 1/sqrt(fan in), norms of 1 (ComfyUI's layers come without), and branches that start at zero."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, nn.Embedding):
                parameter.normal_(std=0.02)
            elif name == "weight" and parameter.ndim == 1:
                parameter.fill_(1)
            elif name == "weight":
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.zero_()
    for part in module.modules():
        last = {"ResBlock": "out_layers", "SpatialTransformer": "proj_out", "ResnetBlock": "conv2", "UNetModel": "out"}
        if layer := last.get(type(part).__name__):
            layer = getattr(part, layer)
            (layer[-1] if isinstance(layer, nn.Sequential) else layer).weight.zero_()


def as_input(pictures: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """Pictures (n, h, w, 3), uint8 -> (n, 3, h, w) in -1..1; contiguous, because channels last is slow here."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def as_pictures(images: Tensor) -> np.ndarray:
    """(n, 3, h, w) in about -1..1 -> (n, h, w, 3), uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def shortened(encoding: Tensor) -> tuple[Tensor, dict[str, int]]:
    """Encodings with one of the zeros at their end, and transformer_options that make it count as all of them.

    A tenth faster in training, with the same result.
    """
    longest = int(encoding.detach().abs().amax((0, 2)).nonzero().max()) + 1
    longest += longest + 1 in (144, 36)  # as many as there are positions: attention could not tell which it is
    return encoding[:, : longest + 1], {"zeros": encoding.shape[1] - longest}


@cache
def precision() -> torch.dtype:
    """In what this processor computes the networks faster: bf16, or, where it has to do that in software, fp32."""
    return min((torch.bfloat16, torch.float32), key=_seconds)


def _seconds(dtype: torch.dtype) -> float:
    """Of a convolution and a matrix product, at best."""
    layer, x, times = nn.Conv2d(64, 64, 3, padding=1).to(dtype), torch.zeros(16, 64, 12, 12, dtype=dtype), []
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            layer(x).flatten(2) @ x.flatten(2).mT
            times.append(time.perf_counter() - start)
    return min(times)


def plain_attention(
    q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, transformer_options=None, **_
):
    """In bf16 on CPUs several times as fast as the fused one, backward included."""
    if (zeros := (transformer_options or {}).get("zeros")) and k.shape[1] != q.shape[1]:
        mask = F.pad(q.new_zeros(k.shape[1] - 1), (0, 1), value=math.log(zeros))
    if not skip_reshape:
        width = q.shape[-1] // heads  # v may have its heads apart already
        q, k, v = (x.view(x.shape[0], -1, heads, width).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    out = torch.softmax(scores if mask is None else scores + mask, -1, dtype=scores.dtype) @ v
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def _clip_layer(self, x, mask=None, optimized_attention=None):
    """The host's, but not in place, which autograd refuses."""
    x = x + self.self_attn(self.layer_norm1(x), mask, plain_attention)
    return x + self.mlp(self.layer_norm2(x))


comfy.ldm.modules.attention.optimized_attention = plain_attention
comfy.clip_model.CLIPLayer.forward = _clip_layer
