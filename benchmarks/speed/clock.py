"""Times of things that take turns, A B C A B C ..., so that whatever else the machine does meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

Times = tuple[float, float]  # seconds on the clock, seconds of CPU time


def timed(run: Callable[[], object]) -> Times:
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    settle()
    return time.perf_counter() - wall, time.process_time() - cpu


def settle() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(runs: Mapping[str, Callable[[], Times]], rounds: int) -> list[dict[str, Times]]:
    """The times of every round, after one that does not count."""
    for run in runs.values():
        run()
    return [{name: run() for name, run in runs.items()} for _ in range(rounds)]
