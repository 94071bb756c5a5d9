"""Training in bf16 with fp32 master weights: on a CPU with matrix units twice as fast as autocast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class HalfPrecision:
    """Trains fp32 copies of the models' weights; the models themselves become bf16. ``average``: of the weights.

    With ``muon`` it trains the matrices, and convolutions seen as such, by Muon (Jordan et al. 2024), which learns from
    fewer pictures; embeddings and vectors, and without ``muon`` everything, by AdamW.
    """

    def __init__(
        self, models: Sequence[nn.Module], rate: float, decay: float = 0.0, average: float = 0.0, muon: bool = False
    ):
        self.models = models
        self.master = [p.detach().float().clone() for model in models for p in model.parameters()]
        embeddings = {id(p) for model in models for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        matrices = [p.ndim > 1 and id(p) not in embeddings for model in models for p in model.parameters()]
        for model in models:
            model.bfloat16()
        self.weights = [p for model in models for p in model.parameters()]
        self.rate, self.average = rate, average
        self.averaged = [p.clone() for p in self.master] if average else self.master
        self._flat = [p.flatten(1) if p.ndim > 1 else p for p in self.master]  # views
        chosen = [p for p, matrix in zip(self._flat, matrices, strict=True) if matrix and muon]
        others = [p for p, matrix in zip(self._flat, matrices, strict=True) if not (matrix and muon)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        ]
        if chosen:
            self.optimizers.append(torch.optim.Muon(chosen, rate, decay, adjust_lr_fn="match_rms_adamw"))
        self.steps = 0

    def step(self, loss: Tensor, share_of_rate: float) -> None:
        loss.backward()
        for master, weight in zip(self._flat, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float().view_as(master)
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self._flat, 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.rate * share_of_rate
            optimizer.step()
        self.steps += 1
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.master)
            if self.average:  # quick at first
                pace = 1 - min(self.average, (1 + self.steps) / (10 + self.steps))
                torch._foreach_lerp_(self.averaged, self.master, pace)

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """The averaged fp32 weights, per model."""
        averaged = iter(self.averaged)
        return [{name: next(averaged) for name, _ in model.named_parameters()} for model in self.models]

    def save(self, path: Path) -> None:
        kept = {
            "master": self.master, "averaged": self.averaged, "steps": self.steps, "models": self.state_dicts(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        torch.save(kept, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        for mine, theirs in ((self.master, kept["master"]), (self.averaged, kept["averaged"])):
            torch._foreach_copy_(mine, theirs)
        torch._foreach_copy_(self.weights, self.master)
        for optimizer, state in zip(self.optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.steps = kept["steps"]
