"""Training in bf16 or fp32, with fp32 master weights, by Muon (Jordan et al. 2024), with the weights' running mean.

Muon makes every matrix's step orthogonal; its size is that of AdamW's (Liu et al. 2025), which trains the rest.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .networks import precision

_MOMENTUM, _BETAS, _DECAY = 0.95, (0.9, 0.98), 0.01


class Training:
    """Trains models; ``workers`` threads have a copy each and take a part of every batch.

    On a few busy cores that is faster than threads inside the operations, which wait for each other at each of them.
    """

    def __init__(self, models: Sequence[nn.Module], rate: float, average: float, workers: int = 1):
        self.master = [p.detach().float().clone() for model in models for p in model.parameters()]
        self.names = [[name for name, _ in model.named_parameters()] for model in models]
        self.copies = [[model.to(precision()) for model in copy.deepcopy(list(models))] for _ in range(workers)]
        self.weights = [[p for model in part for p in model.parameters()] for part in self.copies]
        self.averaged = [p.clone() for p in self.master]
        embeddings = {id(p) for part in self.copies[0] for m in part.modules() if isinstance(m, nn.Embedding)
                      for p in m.parameters()}  # fmt: skip
        matrix = [
            w.ndim > 1 and min(w.shape[0], w[0].numel()) > 16 and id(w) not in embeddings for w in self.weights[0]
        ]
        self.muon = Muon([p for p, is_matrix in zip(self.master, matrix, strict=True) if is_matrix])
        rest = [p for p, is_matrix in zip(self.master, matrix, strict=True) if not is_matrix]
        self.adam = torch.optim.AdamW(rest, rate, betas=_BETAS, weight_decay=0.0, fused=True)
        self.rate, self.average, self.steps = rate, average, 0
        self._threads = ThreadPoolExecutor(workers)

    def step(self, loss_of: Callable[[Sequence[nn.Module], int], Tensor], share_of_rate: float) -> float:
        """One step; ``loss_of(models, worker)`` is the loss of that worker's part of the batch."""

        def backward(worker: int) -> float:
            loss = loss_of(self.copies[worker], worker)
            loss.backward()
            return loss.item()

        losses = list(self._threads.map(backward, range(len(self.copies))))
        for index, master in enumerate(self.master):
            grads = [weights[index].grad for weights in self.weights]
            master.grad = None if grads[0] is None else sum(grad.float() for grad in grads) / len(grads)
            for weights in self.weights:
                weights[index].grad = None
        torch.nn.utils.clip_grad_norm_(self.master, 1.0)
        rate = self.rate * share_of_rate
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.muon.step(rate, self._threads)
        self.steps += 1
        with torch.no_grad():
            for weights in self.weights:
                torch._foreach_copy_(weights, self.master)
            torch._foreach_lerp_(
                self.averaged, self.master, 1 - min(self.average, (1 + self.steps) / (10 + self.steps))
            )
        return sum(losses) / len(losses)

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """The averaged fp32 weights, per model."""
        averaged = iter(self.averaged)
        return [{name: next(averaged) for name in names} for names in self.names]

    def save(self, path: Path) -> None:
        kept = {
            "master": self.master, "averaged": self.averaged, "steps": self.steps, "models": self.state_dicts(),
            "adam": self.adam.state_dict(), "muon": self.muon.momenta,
        }  # fmt: skip
        torch.save(tree_map_only(Tensor, Tensor.cpu, kept), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """A saved training; or its models alone, which it then starts from."""
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        models = [model[name] for names, model in zip(self.names, kept["models"], strict=True) for name in names]
        torch._foreach_copy_(self.averaged, models)
        torch._foreach_copy_(self.master, kept.get("master", models))
        for weights in self.weights:
            torch._foreach_copy_(weights, self.master)
        if "steps" in kept:
            torch._foreach_copy_(self.muon.momenta, kept["muon"])
            self.adam.load_state_dict(kept["adam"])
            self.steps = kept["steps"]


class Muon:
    def __init__(self, weights: Sequence[Tensor]):
        self.weights, self.momenta = weights, [torch.zeros_like(w) for w in weights]

    @torch.no_grad()
    def step(self, rate: float, threads: ThreadPoolExecutor) -> None:
        alike = defaultdict(list)
        for weight, momentum in zip(self.weights, self.momenta, strict=True):
            if weight.grad is not None:
                momentum.lerp_(weight.grad, 1 - _MOMENTUM)
                alike[weight.flatten(1).shape].append((weight, torch.lerp(weight.grad, momentum, _MOMENTUM)))
        for pairs, steps in zip(alike.values(), threads.map(_orthogonal_steps, alike.values()), strict=True):
            for (weight, _), step in zip(pairs, steps, strict=True):
                size = 0.2 * rate * max(step.shape) ** 0.5
                weight.mul_(1 - rate * _DECAY).add_(step.view_as(weight), alpha=-size)


def _orthogonal_steps(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return orthogonal(torch.stack([step.flatten(1) for _, step in pairs]))


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) with all singular values moved near 1, by five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(precision())
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()
