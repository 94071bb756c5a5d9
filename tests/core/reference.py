"""The paper's equations in float64, token by token, in output space and from the covariance C itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def similarity(e: Tensor, covariance: Tensor, target: Tensor) -> float:
    """e^T C^-1 i* over i*^T C^-1 i*."""
    dual = torch.linalg.solve(covariance, target)
    return float(e @ dual) / float(target @ dual)


def gate(e: Tensor, covariance: Tensor, target: Tensor, beta: float, temperature: float) -> float:
    """Equation 3: the sigmoid of the similarity."""
    return opened(similarity(e, covariance, target), beta, temperature)


def opened(share: float, beta: float, temperature: float) -> float:
    logit = (share - beta) / temperature
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def one_concept(
    weight: Tensor,  # (d_out, d)
    e: Tensor,  # (d,)
    covariance: Tensor,  # (d, d)
    target: Tensor,  # i*, (d,)
    output: Tensor,  # o*, (d_out,)
    beta: float,
    temperature: float,
    strength: float = 1.0,
) -> Tensor:
    """Equations 2 and 3: h = W e_perp + g o*, faded between W e and h by the strength."""
    perpendicular = e - target * similarity(e, covariance, target)
    edited = weight @ perpendicular + gate(e, covariance, target, beta, temperature) * output
    plain = weight @ e
    return plain + strength * (edited - plain)


def orthonormal_basis(covariance: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    """Appendix B: vectors u that span the targets with u_j^T C^-1 u_k = 1 for j = k, else 0."""
    cholesky = torch.linalg.cholesky(torch.linalg.inv(covariance))  # C^-1 = L L^T
    whitened = torch.stack([cholesky.T @ target for target in targets], dim=1)  # (d, concepts)
    orthonormal, _ = torch.linalg.qr(whitened)
    return [torch.linalg.solve(cholesky.T, column) for column in orthonormal.T]


def projection(e: Tensor, covariance: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """The part of e in the span of the targets, in the C^-1 metric."""
    total = torch.zeros_like(e)
    for u in orthonormal_basis(covariance, targets):
        total = total + u * float(u @ torch.linalg.solve(covariance, e))
    return total


def coordinates(e: Tensor, covariance: Tensor, targets: Sequence[Tensor]) -> list[float]:
    """How much of each target the projection is made of."""
    return torch.linalg.lstsq(torch.stack([*targets], dim=1), projection(e, covariance, targets)).solution.tolist()


def several_concepts(
    weight: Tensor,
    e: Tensor,
    covariance: Tensor,
    targets: Sequence[Tensor],
    outputs: Sequence[Tensor],
    betas: Sequence[float],
    temperatures: Sequence[float],
    strength: float = 1.0,
) -> Tensor:
    """Appendix B: h = W e_perp + sum_j g_j o*_j, faded between W e and h by the strength. Gates see the coordinates."""
    edited = weight @ (e - projection(e, covariance, targets))
    for share, output, *settings in zip(coordinates(e, covariance, targets), outputs, betas, temperatures, strict=True):
        edited = edited + opened(share, *settings) * output
    plain = weight @ e
    return plain + strength * (edited - plain)


def separate_concepts(
    weight: Tensor,
    e: Tensor,
    covariance: Tensor,
    targets: Sequence[Tensor],
    outputs: Sequence[Tensor],
    betas: Sequence[float],
    temperatures: Sequence[float],
    strengths: Sequence[float],
) -> Tensor:
    """Concepts with C^-1-orthogonal targets do not know of each other: their edits add up."""
    plain = weight @ e
    edited = plain
    for target, output, *settings in zip(targets, outputs, betas, temperatures, strengths, strict=True):
        edited = edited + one_concept(weight, e, covariance, target, output, *settings) - plain
    return edited
