"""The times of a model's forwards, one by one, while the host samples with what is put on the model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_perfusion.nodes.host import kept
from comfyui_perfusion.nodes.host.model import encoding_width
from memory import Live
from torch import Tensor

import nodes as host_nodes

from . import adapters
from .clock import Times, settle, timed

UNPATCHED = "unpatched"


@dataclass
class Way:
    """One way to use a model: what is put on it, and how many bytes of keys and values are kept."""

    model: Any
    limit: int = kept.LIMIT
    first: list[Times] = field(default_factory=list)  # of every sampling run's first forward
    later: list[Times] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)  # seconds
    peak: int = 0  # bytes on the GPU that sampling took beyond what was there

    def least(self, clock: int) -> float:
        return min(times[clock] for times in self.later)


def clocked(model):
    """A clone of the MODEL that keeps the times of its forwards in ``.forwards``; what is put on it later is inside."""
    model, times = model.clone(), []

    def measure(executor, *args: Any, **kwargs: Any) -> Tensor:
        output = None

        def run() -> None:
            nonlocal output
            output = executor(*args, **kwargs)

        times.append(timed(run))
        return output

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "clock", measure)
    return model, times


def ways(
    model, counts: Sequence[int], compiler: str | None = None, others: bool = True, masks: bool = False,
    names: Sequence[str] = (),
) -> dict[str, Way]:  # fmt: skip
    """What is compared. compiler: a backend of torch.compile, for all of them; others: not only ours; masks: ours
    also with masks, and kept apart from each other; names: of those to take, without any all."""
    found: dict[str, Way] = {}

    def add(name: str, make: Callable[..., Any], *given: Any, limit: int = kept.LIMIT, **how: Any) -> None:
        if name in (names or [name]):
            found[name] = Way(make(model, *given, **how), limit)

    add(UNPATCHED, lambda model: model)
    for count in counts:
        name = f"{count} concept{'s' * (count != 1)}"
        add(f"{name}, kept", adapters.ours, count)
        add(name, adapters.ours, count, limit=0)
        if masks and count:
            add(f"{name}, kept, with masks", adapters.ours, count, masked=True)
        if masks and count > 1:
            add(f"{name}, kept, apart", adapters.kept_apart, count)
        if others and count in (1, 4):
            add(f"first open version, {name}", adapters.first_open_version, count)
            add(f"second open version, {name}", adapters.second_open_version, count)
    if others:
        add("LoRA, merged", adapters.merged_lora)
        add("LoRA, bypass", adapters.bypass_lora)
        if hasattr(model.model.diffusion_model, "input_blocks"):
            add("IP-Adapter's attention", adapters.ip_adapter)
    if compiler:
        from comfy_extras.nodes_torch_compile import TorchCompileModel

        for way in found.values():
            way.model = TorchCompileModel.execute(way.model, compiler)[0]
    return found


def measure(
    found: Mapping[str, Way], times: list[Times], prompts: Prompts, size: int, batch: int, steps: int, rounds: int
) -> None:
    """Samples with all ways in turn. The first forward of every run is apart from the others."""
    for _ in range(rounds):
        for way in found.values():
            times.clear()
            before, loading = _on_gpu(), timed(partial(_load, way.model))[0]
            kept.LIMIT, limit = way.limit, kept.LIMIT
            try:
                prompts.sample(way.model, size, batch, steps)
            finally:
                kept.LIMIT = limit
            settle()
            way.first.append(times[0])
            way.later += times[1:]
            way.loading.append(loading)
            way.peak = max(way.peak, _peak() - before)


def memory_taken(way: Way, model, prompts: Prompts, batch: int) -> tuple[int, int]:
    """Bytes of tensors that exist between two forwards while the host samples, and at most. model: without the way."""
    with Live(model.model) as live:
        between, patched = [], way.model.clone()

        def measure(executor, *args: Any, **kwargs: Any) -> Tensor:
            between.append(live.now)
            return executor(*args, **kwargs)

        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "memory", measure)
        kept.LIMIT, limit = way.limit, kept.LIMIT
        try:
            prompts.sample(patched, 64, batch, steps=3)
        finally:
            kept.LIMIT = limit
    return between[-1], live.peak


def _load(model) -> None:
    comfy.model_management.load_models_gpu([model])


def _on_gpu() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


@dataclass
class Prompts:
    """Random encodings of a positive and a negative prompt."""

    positive: Tensor  # (1, tokens, d)
    negative: Tensor
    channels: int  # of latents
    frames: bool  # whether latents have a time axis
    cfg: float  # at 1, the host leaves the negative prompt out

    @classmethod
    def of(cls, model, tokens: int, cfg: float = 7.0) -> Prompts:
        both = torch.randn(2, 1, tokens, encoding_width(model))
        latent = model.get_model_object("latent_format")
        return cls(*both, latent.latent_channels, latent.latent_dimensions == 3, cfg)

    def sample(self, model, size: int, batch: int, steps: int) -> None:
        shape = (batch, self.channels, *[1] * self.frames, size // 8, size // 8)
        positive, negative = (
            [[text, {"pooled_output": torch.zeros(1, 1280)}]] for text in (self.positive, self.negative)
        )
        latent = {"samples": torch.zeros(shape)}
        host_nodes.common_ksampler(model, 0, steps, self.cfg, "euler", "simple", positive, negative, latent)


def table(found: Mapping[str, Way], clock: int) -> list[dict[str, Any]]:
    """A row for every way: seconds of a forward, those of a run's first, and ratios to the unpatched model's."""
    base = found[UNPATCHED]
    rows = []
    for name, way in found.items():
        pairs = zip(way.later, base.later, strict=True)
        rows.append(
            {
                "name": name,
                "seconds": way.least(clock),
                "median": statistics.median(times[clock] for times in way.later),
                "first": min(times[clock] for times in way.first),
                "ratio": way.least(clock) / base.least(clock),
                "median ratio": statistics.median(own[clock] / other[clock] for own, other in pairs),
                "loading": min(way.loading) if way.loading else math.nan,
                "peak": way.peak,
            }
        )
    return rows
