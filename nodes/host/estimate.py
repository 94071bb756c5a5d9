"""What a training will take, and what is wrong with it, told before it starts. The figures are from docs/memory.md."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

FEW_PHOTOS = 3
_MOST = 10**9  # of anything
_GIB = 2**30
_UNCOUNTED = 1.1  # GiB: CUDA itself, workspaces, what the allocator holds in reserve
_BACKWARD, _CHECKPOINTED = 2.0, 2.7  # forward passes that a forward and a backward one take, and with checkpointing
_UNET_SHARE = 0.83  # of the work of a step
_PICTURE = 40 / _BACKWARD  # forward passes of a sample: 20 steps with and without the prompt; the VAE is left out
_EVALUATED = 16  # photos of a checkpoint's fixed noises, about
_SHARE_OF_PRODUCT = {"cpu": 0.8}  # of the speed of a plain matrix product: the demo model's 400 steps of 4 in 37 s
_SHARE_ELSEWHERE = 0.17  # the 4 minutes of the paper on an A100


@dataclass(frozen=True)
class Family:
    """Of a photo at its own size: GiB kept for backward, without and with checkpointing; 10^12 operations forward."""

    size: int
    weights: float  # GiB in fp16, of UNet and text encoders
    texts: float  # GiB that the text encoders keep without checkpointing
    kept: float
    kept_checkpointed: float
    work: float
    checkpointed: bool = False  # by itself


FAMILIES = {
    "sd1": Family(512, 1.83, 0.31, 0.727, 0.14, 0.68),
    "sd2": Family(768, 2.27, 0.4, 2.25, 0.23, 1.6),
    "sdxl": Family(1024, 6.31, 2.65, 5.09, 0.473, 5.98, checkpointed=True),
    "anima": Family(1024, 5.01, 1.1, 10.25, 1.36, 17.9, checkpointed=True),
    "cosmos-predict2": Family(1024, 12.71, 18.1, 9.85, 1.36, 17.9, checkpointed=True),
    "demo": Family(96, 0.06, 0.01, 0.01, 0.01, 0.00076),
}
_DEFAULT_SIZES = {"sd2": 512}  # where it is not the family's own

_speeds: dict[str, float] = {}  # 10^12 operations a second: of "" a plain product, of a family its last training


@dataclass(frozen=True)
class Job:
    """What a training is set to; the names are the node's."""

    base_model: str
    steps: int
    batch_size: int
    accumulation: int
    checkpoint_every: int
    previews: int = 0
    resolution: int = 0
    low_memory: bool = False
    gradient_checkpointing: str = "auto"

    @property
    def family(self) -> Family:
        return FAMILIES[self.base_model]

    @property
    def checkpointed(self) -> bool:
        choices = {"on": True, "off": False, "auto": self.family.checkpointed}
        return self.low_memory or choices[self.gradient_checkpointing]

    @property
    def _area(self) -> float:
        """Of a photo, the family's own at 1."""
        size = self.resolution or _DEFAULT_SIZES.get(self.base_model, self.family.size)
        return (size / self.family.size) ** 2

    @property
    def step_work(self) -> float:
        """10^12 operations."""
        passes = _CHECKPOINTED if self.checkpointed else _BACKWARD
        return self.batch_size * self.accumulation * passes * self.family.work * self._area / _UNET_SHARE

    @property
    def work(self) -> float:
        checkpoints = -(-self.steps // self.checkpoint_every) + 1
        passes = _EVALUATED + 2 * _PICTURE * self.previews
        return self.steps * self.step_work + checkpoints * passes * self.family.work * self._area

    @property
    def memory(self) -> float:
        """Bytes on the device at most, with weights in fp16; the CPU computes in fp32."""
        photos = 1 if self.low_memory else self.batch_size
        kept = self.family.kept_checkpointed if self.checkpointed else self.family.kept
        held = self.family.weights + photos * kept * self._area + (0 if self.checkpointed else self.family.texts)
        return _GIB * ((2 * held if _device().type == "cpu" else held) + _UNCOUNTED)


def estimate(job: Job) -> dict[str, Any]:
    """seconds, bytes, and the bytes that the device has."""
    return {
        "seconds": job.work / (_speeds.get(job.base_model) or _guessed_speed()),
        "bytes": job.memory,
        "device_bytes": comfy.model_management.get_total_memory(_device()),
    }


def learn_speed(job: Job, seconds_per_step: float) -> None:
    """The next estimate goes by how long steps really took."""
    _speeds[job.base_model] = job.step_work / seconds_per_step


def photo_warnings(count: int, unmasked: int) -> dict[str, int]:
    """What is better mended before it costs an hour: few photos, and those without a mask."""
    few = {"few_photos": count} if count < FEW_PHOTOS else {}
    return few | ({"without_mask": unmasked} if unmasked else {})


def job_of(options: Mapping[str, Any]) -> Job:
    """Raises ValueError for what is none."""
    try:
        numbers = {name: int(options[name]) for name in ("steps", "batch_size", "accumulation", "checkpoint_every")}
        more = {name: int(options.get(name, 0)) for name in ("previews", "resolution")}
        choice, low_memory = options.get("gradient_checkpointing", "auto"), options.get("low_memory") == "true"
        job = Job(options["base_model"], **numbers, **more, gradient_checkpointing=choice, low_memory=low_memory)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing.") from error
    sound = all(1 <= number <= _MOST for number in numbers.values())
    sound &= all(0 <= number <= _MOST for number in more.values())
    if job.base_model not in FAMILIES or choice not in ("auto", "on", "off") or not sound:
        raise ValueError("Nothing can be said of such a training.")
    return job


def _device() -> torch.device:
    return comfy.model_management.get_torch_device()


def _guessed_speed() -> float:
    """By the fastest of a few matrix products."""
    if "" not in _speeds:
        device = _device()
        side, dtype = (1024, torch.float32) if device.type == "cpu" else (4096, torch.float16)
        matrix, seconds = torch.ones(side, side, device=device, dtype=dtype), []
        for _ in range(5):
            start = time.monotonic()
            float((matrix @ matrix)[0, 0])  # which waits for the device
            seconds.append(max(time.monotonic() - start, 1e-6))
        share = _SHARE_OF_PRODUCT.get(device.type, _SHARE_ELSEWHERE)
        _speeds[""] = share * 2 * side**3 / min(seconds) / 1e12
    return _speeds[""]
