"""A text-to-image model of a few numbers: text encoder, photos, and a network with two cross-attention layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perfusion_core import ConceptSet, EncodedPrompts, Wiring, cross_attention_layers, masked_mse

DIM, TOKEN_DIM, WIDTHS = 12, 8, (6, 10)
TRIGGER = -1  # its place in a template
TEMPLATES = ((0, 1, TRIGGER, 2, 9), (3, TRIGGER, 4, 5, 9), (6, 7, 8, TRIGGER, 9))
TEMPLATE_AT = {words.index(TRIGGER): number for number, words in enumerate(TEMPLATES)}  # no two have it in one place
SUPERCLASS = 5


class Attention(nn.Module):
    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(DIM, width, bias=bias)
        self.to_v = nn.Linear(DIM, width, bias=bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context))


class Block(nn.Module):
    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 4)
        self.attn2 = Attention(width, bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x + self.leave(self.attn2(self.enter(x), context))


class Net(nn.Module):
    """(batch, 4, height, width) and (batch, tokens, DIM) -> like the first."""

    def __init__(self, checkpointing: str = "none"):
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList([Block(WIDTHS[0], bias=False), Block(WIDTHS[1], bias=True)])

    def forward(self, latent: Tensor, context: Tensor) -> Tensor:
        x = latent.flatten(2).transpose(1, 2)
        for block in self.blocks:
            if self.checkpointing == "none":
                x = block(x, context)
            else:
                x = checkpoint(block, x, context, use_reentrant=self.checkpointing == "reentrant")
        return x.transpose(1, 2).reshape(latent.shape)


def make_net(seed: int = 0, dtype: torch.dtype = torch.float64, checkpointing: str = "none") -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(checkpointing).to(dtype).requires_grad_(False)


@dataclass
class Call:
    """What ``TinyTrainee.loss`` was called with."""

    templates: list[int]  # the distinct ones that were encoded
    positions: Tensor  # of the trigger, per photo
    trigger_encodings: Tensor  # (photos, DIM)
    photos: Tensor
    random_state: Tensor
    concepts: ConceptSet


class TinyTrainee:
    """Keeps a record of every call of ``loss`` in ``calls``."""

    photos = 3
    templates = [range(len(TEMPLATES))] * photos

    def __init__(self, dtype: torch.dtype = torch.float64, prepare: bool = True):
        random = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        self.dtype, self.prepare = dtype, prepare
        self.net = make_net(dtype=dtype)
        self.wiring = Wiring(self.net, cross_attention_layers(self.net))
        self.vocabulary, self.places, self.mixing = normal(10, TOKEN_DIM), normal(5, TOKEN_DIM), normal(TOKEN_DIM, DIM)
        self.latents = normal(1, 4, 1, 1) + 0.3 * normal(self.photos, 4, 3, 3)
        self.masks = torch.rand(self.photos, 1, 3, 3, generator=random).to(dtype)
        self.calls: list[Call] = []
        self._encoded: list[int] = []

    def covariance_inverse(self) -> Tensor:
        encodings = self.encode(range(len(TEMPLATES)), self.superclass_embeddings()).encodings.flatten(0, 1)
        moment = encodings.T @ encodings / len(encodings)
        return torch.linalg.inv(moment + 0.05 * torch.eye(DIM, dtype=self.dtype))

    def superclass_embeddings(self) -> dict[str, Tensor]:
        return {"l": self.vocabulary[SUPERCLASS]}

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        self._encoded = list(templates)
        trigger = token_embeddings["l"].to(self.dtype)
        rows = [
            torch.stack([trigger if word == TRIGGER else self.vocabulary[word] for word in TEMPLATES[number]])
            for number in templates
        ]
        x = torch.stack(rows) + self.places
        counts = torch.arange(1, 6, dtype=self.dtype, device=x.device)
        before = x.cumsum(1) / counts[:, None]  # each token sees those before it
        positions = torch.tensor([TEMPLATES[number].index(TRIGGER) for number in templates])
        return EncodedPrompts(torch.tanh((x + before) @ self.mixing / 4), positions)

    def replay(
        self, call: Call, embedding: Tensor, deltas: Mapping[str, Tensor], beta: float, tau: float, moving: bool = False
    ) -> Tensor:
        """The loss of ``call`` for another embedding and other deltas; i* is held fixed, or ``moving`` along with the
        trigger's encoding."""
        prompts = self.encode([TEMPLATE_AT[at] for at in call.positions.tolist()], {"l": embedding})
        concept = call.concepts.concepts[0].replace(value_deltas=deltas)
        if moving:
            shift = self._trigger_mean(prompts.encodings, call) - self._trigger_mean(None, call)
            target, dual = concept.target_input.detach().double(), concept.target_dual.detach().double()
            concept = concept.replace(target_input=target + shift, target_dual=dual + self.covariance_inverse() @ shift)
        self.wiring.concepts = ConceptSet([concept], beta, tau)
        random = torch.Generator()
        random.set_state(call.random_state)
        return self.loss(call.photos, prompts, random)

    @staticmethod
    def _trigger_mean(encodings: Tensor | None, call: Call) -> Tensor:
        """Over the distinct templates of ``call``: of these encodings, or of those it had."""
        rows = {at: row for row, at in enumerate(call.positions.tolist())}
        if encodings is None:
            return torch.stack([call.trigger_encodings[row] for row in rows.values()]).mean(0)
        return torch.stack([encodings[row, at] for at, row in rows.items()]).mean(0)

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        row = torch.arange(len(photos))
        self.calls.append(
            Call(
                templates=self._encoded,
                positions=prompts.trigger_positions,
                trigger_encodings=prompts.encodings[row, prompts.trigger_positions].detach(),
                photos=photos,
                random_state=generator.get_state(),
                concepts=self.wiring.concepts,
            )
        )
        latents = self.latents[photos]
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float64).to(self.dtype)
        level = torch.rand(len(photos), 1, 1, 1, generator=generator).to(self.dtype)
        if self.prepare:
            self.wiring.prepare(prompts.encodings)
        prediction = self.net((1 - level) * latents + level * noise, prompts.encodings)
        return masked_mse(prediction, latents, self.masks[photos])
