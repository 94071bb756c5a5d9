"""The three networks of the demo model, made of ComfyUI's own classes with smaller numbers, and their words."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

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

from scenes import BACKGROUNDS, MORE_OBJECTS, OBJECTS, PLAIN, STYLES, TINTS

UNET = {
    "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 64, "channel_mult": [1, 3],
    "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 192, "num_heads": 4, "num_head_channels": -1,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "legacy": False,
}  # fmt: skip
TEXT = {
    "hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 768,
    "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
TOKENS = TEXT["max_position_embeddings"]
START, END = 0, 1  # rows of the token table
OTHER = "*"  # in a caption: a word without a row of its own


class Vocabulary:
    """The CLIP tokens of the world's words; each has a row in the token table, and all others share the last row."""

    def __init__(self) -> None:
        self._tokenizer = SDTokenizer(embedding_size=TEXT["hidden_size"])
        self.start, self.end = self._tokenizer.start_token, self._tokenizer.end_token
        sentences = [*OBJECTS, *MORE_OBJECTS, *BACKGROUNDS, *TINTS, *STYLES.values(), *PLAIN]
        sentences.append("on and in with photo picture")
        words = {token for sentence in sentences for token in self._words(sentence)}
        self.ids = [self.start, self.end, *sorted(words)]
        self._rows = {token: row for row, token in enumerate(self.ids)}
        self._cache: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def rows(self, captions: Iterable[str]) -> Tensor:
        """(captions, 77), rows of the token table."""
        words = ([row for word in caption.split() for row in self.row(word)] for caption in captions)
        return torch.tensor([self._padded(rows) for rows in words])

    def row(self, word: str) -> list[int]:
        """The rows of one word, which may have several tokens."""
        if word not in self._cache:
            self._cache[word] = [self._rows.get(token, len(self.ids)) for token in self._words(word)]
        return self._cache[word]

    def _words(self, text: str) -> list[int]:
        return self._tokenizer.tokenizer(text)["input_ids"][1:-1]

    def _padded(self, rows: Sequence[int]) -> list[int]:
        return ([START, *rows[: TOKENS - 2]] + [END] * TOKENS)[:TOKENS]


def make_unet() -> UNetModel:
    return UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)


class TextEncoder(nn.Module):
    """CLIP's text transformer with a row of the token table for each word of the world.

    What it gives for the end of the text and the padding is zero. Otherwise a model of this size puts all that it knows
    of the prompt there, 70 times over, and its UNet does not look at the words.
    """

    def __init__(self, words: int):
        super().__init__()
        self.table = nn.Embedding(words, TEXT["hidden_size"])
        self.transformer = CLIPTextModel_(TEXT, torch.float32, "cpu", comfy.ops.disable_weight_init)
        self.transformer.embeddings.token_embedding = None

    def forward(self, rows: Tensor) -> Tensor:
        """(captions, 77) -> (captions, 77, d)."""
        return self.encode(self.table(rows), word_counts(rows))

    def encode(self, embeddings: Tensor, counts: Tensor) -> Tensor:
        """Embeddings (captions, 77, d) -> the same shape; ``counts`` (captions,): see word_counts."""
        longest, part = int(counts.max()), self.transformer
        x = embeddings[:, :longest] + part.embeddings.position_embedding.weight[:longest]
        mask = torch.full((longest, longest), -torch.finfo(x.dtype).max, dtype=x.dtype).triu(1)
        x = part.final_layer_norm(part.encoder(x, mask)[0])
        return F.pad(x * (torch.arange(longest) < counts[:, None])[..., None], (0, 0, 0, TOKENS - longest))


def word_counts(rows: Tensor) -> Tensor:
    """(captions,): the tokens before the end of each text, its start among them."""
    return (rows != END).sum(1)


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(ddconfig=VAE, embed_dim=VAE["z_channels"])


@torch.no_grad()
def initialise(module: nn.Module, zero: Sequence[nn.Module] = ()) -> None:
    """Weights of std 1/sqrt(fan in), norms of 1: ComfyUI's layers come without. ``zero``: layers that start at 0."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, nn.Embedding):
                parameter.normal_(std=0.02)
            elif name == "weight" and parameter.ndim == 1:
                parameter.fill_(1)
            elif name == "weight" and not any(part is layer for layer in zero):
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.zero_()


def as_input(images: Sequence[np.ndarray]) -> Tensor:
    """Pictures (64, 64, 3) in 0..1 -> (n, 3, 64, 64) in -1..1; contiguous, because channels last is slow here."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous() * 2 - 1


def as_pictures(images: Tensor) -> Tensor:
    """(n, 3, 64, 64) in about -1..1 -> (n, 64, 64, 3) in 0..1."""
    return ((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)


def plain_attention(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **_):
    """In bf16 on a CPU with matrix units, three times as fast as the fused one, backward included."""
    if not skip_reshape:
        q, k, v = (x.view(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    out = torch.softmax(scores if mask is None else scores + mask, -1, dtype=scores.dtype) @ v
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def _clip_layer(self, x, mask=None, optimized_attention=None):
    """The host's, but not in place, which autograd refuses."""
    x = x + self.self_attn(self.layer_norm1(x), mask, plain_attention)
    return x + self.mlp(self.layer_norm2(x))


comfy.ldm.modules.attention.optimized_attention = plain_attention
comfy.clip_model.CLIPLayer.forward = _clip_layer
