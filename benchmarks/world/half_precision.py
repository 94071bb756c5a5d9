"""Training in bf16 with fp32 master weights: on a CPU with matrix units twice as fast as autocast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class HalfPrecision:
    """AdamW on fp32 copies of the models' weights; the models themselves become bf16. ``average``: of the weights."""

    def __init__(self, models: Sequence[nn.Module], rate: float, decay: float = 0.0, average: float = 0.0):
        self.models = models
        self.master = [p.detach().float().clone() for model in models for p in model.parameters()]
        for model in models:
            model.bfloat16()
        self.weights = [p for model in models for p in model.parameters()]
        self.rate, self.average = rate, average
        self.averaged = [p.clone() for p in self.master] if average else self.master
        self.optimizer = torch.optim.AdamW(self.master, rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        self.steps = 0

    def step(self, loss: Tensor, share_of_rate: float) -> None:
        loss.backward()
        for master, weight in zip(self.master, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.master, 1.0)
        self.optimizer.param_groups[0]["lr"] = self.rate * share_of_rate
        self.optimizer.step()
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
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        torch.save(kept, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        for mine, theirs in ((self.master, kept["master"]), (self.averaged, kept["averaged"])):
            torch._foreach_copy_(mine, theirs)
        torch._foreach_copy_(self.weights, self.master)
        self.optimizer.load_state_dict(kept["optimizer"])
        self.steps = kept["steps"]
