"""Random concepts over a covariance that is known, so that references can work from C itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perfusion_core import Concept

LAYERS = {"input_blocks.1.1.transformer_blocks.0.attn2": 6, "middle_block.1.transformer_blocks.0.attn2": 5}
FIRST, SECOND = LAYERS


@dataclass(frozen=True)
class Case:
    """Concepts with their covariance, an encoding (batch, tokens, d) to edit, and settings for each concept."""

    covariance: Tensor  # (d, d)
    concepts: list[Concept]
    encoding: Tensor  # (batch, tokens, d)
    betas: list[float]
    temperatures: list[float]

    @property
    def dim(self) -> int:
        return self.covariance.shape[0]

    @property
    def targets(self) -> list[Tensor]:
        return [concept.target_input for concept in self.concepts]


def make_covariance(dim: int, random: torch.Generator) -> Tensor:
    """A positive definite matrix whose eigenvalues span three decades."""
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=random, dtype=torch.float64))
    eigenvalues = 10 ** torch.linspace(-2, 1, dim, dtype=torch.float64)
    return basis * eigenvalues @ basis.T


def make_case(
    seed: int = 0,
    count: int = 1,
    dim: int = 12,
    batch: int = 2,
    tokens: int = 5,
    alike: float = 0.0,
    free_keys: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """``alike`` is how much of their direction the targets share: their overlap is its square, 0 is C^-1-orthogonal."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    covariance = make_covariance(dim, random)
    whitening = torch.linalg.cholesky(covariance)  # C = L L^T, so L w has length |w| in the C^-1 metric
    shared, *own = torch.linalg.qr(normal(dim, count + 1))[0].T
    concepts = []
    for number in range(count):
        target = 3 * whitening @ (alike * shared + math.sqrt(1 - alike**2) * own[number])
        concepts.append(
            make_concept(covariance, target, whitening @ normal(dim), random, f"concept{number}", free_keys, dtype)
        )
    encoding = normal(batch, tokens, dim) @ whitening.T
    for token in range(0, tokens, 2):  # every other token lies near a target, where gates open
        encoding[:, token] = 0.1 * encoding[:, token] + concepts[token // 2 % count].target_input
    betas = (0.4 + 0.4 * torch.rand(count, generator=random)).tolist()
    temperatures = (0.05 + 0.2 * torch.rand(count, generator=random)).tolist()
    return Case(covariance, concepts, encoding.to(dtype), betas, temperatures)


def make_concept(
    covariance: Tensor,
    target: Tensor,
    superclass: Tensor,
    random: torch.Generator,
    name: str = "concept",
    free_keys: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Concept:
    """A concept whose dual is C^-1 i*, with random outputs for ``LAYERS``."""

    def outputs() -> dict[str, Tensor]:
        return {layer: torch.randn(d, generator=random, dtype=torch.float64).to(dtype) for layer, d in LAYERS.items()}

    return Concept(
        name=name,
        trigger=f"<{name}>",
        superclass="thing",
        base_model="tiny",
        token_embeddings={"l": torch.randn(7, generator=random, dtype=torch.float64).to(dtype)},
        target_input=target.to(dtype),
        target_dual=torch.linalg.solve(covariance, target).to(dtype),
        superclass_input=superclass.to(dtype),
        value_deltas=outputs(),
        key_outputs=outputs() if free_keys else None,
    )


def file_concept(seed: int = 0, free_keys: bool = False, **changes) -> Concept:
    """A small concept as files hold it: vectors in fp32, outputs rounded to fp16."""
    concept = make_case(seed, free_keys=free_keys, dtype=torch.float32).concepts[0]
    rounded = {layer: delta.half().float() for layer, delta in concept.value_deltas.items()}
    keys = concept.key_outputs and {layer: output.half().float() for layer, output in concept.key_outputs.items()}
    return concept.replace(value_deltas=rounded, key_outputs=keys).replace(**changes)


def weight(layer: str, dim: int, seed: int = 0) -> Tensor:
    """A random projection W of ``layer``, (d_out, d)."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS[layer], dim, generator=random, dtype=torch.float64)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits; unlike torch.equal it tells -0.0 from 0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
