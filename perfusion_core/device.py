"""Tensors on a device without waiting for what it has still to do: a GPU works through a queue."""

from __future__ import annotations

import torch
from torch import Tensor

_QUEUES = ("cpu", "cuda", "meta")  # have float64, and take copies that nobody waits for; MPS has neither


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """There, without waiting where that is safe: what comes back to the CPU is read at once, so it is waited for."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and device.type in _QUEUES)


def precise(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (tensor if tensor.device.type in _QUEUES else tensor.cpu()).double()
