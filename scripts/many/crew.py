"""Jobs for Ray actors, on this machine or on a cluster: each has one at a time, and the next free one takes the next.

An actor has three methods. ``ready()`` returns what it offers once it can work. ``work(task)`` is an async generator:
any number of Progress and Part, then a Done or a Failed. ``leave()`` tidies up. The job of a lost actor goes to the one
that is free first: Ray's ``max_task_retries`` would keep it for the lost one, whose machine may never come back. Ray
itself starts lost actors again (``max_restarts``), where there is room.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import ray
except ImportError:
    sys.exit("This needs Ray: pip install -r scripts/requirements-ray.txt")
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

REPO = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds until an actor must be ready while none works; ComfyUI and its models load slowly
AGAIN = 3  # seconds until an actor that is away is asked again; Ray's own retries report each of them
GOODBYE = 10  # seconds for actors to stop, and to tidy up
IN_MEMORY = 2**29  # bytes of photos and pictures; Ray would take a third of the machine's
NOT_CARRIED = [".git", "docs", "tests", "output", "*.jpg", "*.webp"]


@dataclass(frozen=True)
class Started:
    offer: Any


@dataclass(frozen=True)
class Progress:
    step: str
    value: float
    maximum: float  # 0: the step just started
    text: str


@dataclass(frozen=True)
class Part:
    """Of the result, while the job goes on."""

    result: Any


@dataclass(frozen=True)
class Lost:
    """It is tried again."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """It is not tried again."""

    reason: str


@dataclass(frozen=True)
class Done:
    result: Any


@contextlib.contextmanager
def connected(address: str | None, *import_from: str) -> Iterator[None]:
    """Ray on this machine alone, or the cluster at an address. Its machines get this repository, and import from these
    folders of it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of it
    code = {"working_dir": str(REPO), "excludes": NOT_CARRIED, "env_vars": {"PYTHONPATH": os.pathsep.join(import_from)}}
    memory = {} if address else {"object_store_memory": IN_MEMORY}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address and ":" in address:  # Ray itself knocks for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        context = ray.init(address or "local", runtime_env=code, **quiet, **memory)
    except Exception as error:  # Ray raises that itself when it does not come up
        sys.exit(f"Ray cannot be used{f' at {address}' if address else ''}: {error}")
    if context.dashboard_url:
        print(f"Ray's dashboard shows who does what: http://{context.dashboard_url}", flush=True)
    try:
        yield
    finally:
        ray.shutdown()


def places(count: int | None, cpus: int | None) -> list[dict[str, int]]:
    """What each actor asks Ray for: a GPU, or cores where the cluster has no GPU or ``cpus`` says how many."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus and not cpus:
        return [{"num_gpus": 1, "num_cpus": 1}] * (count or gpus)
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = cpus or min([*filter(None, machines), max(1, sum(machines) // (count or 1))])
    return [{"num_cpus": cpus}] * (count or max(1, sum(cores // cpus for cores in machines)))


class Crew:
    """Actors at work. ``idle``: those without work, each with its offer; ``starting``: those not ready yet, by what
    comes when they are; ``away``: lost ones, and when to ask again. ``say`` tells why one is left out."""

    def __init__(self, actors: Sequence[ActorHandle], say: Callable[[str], None]) -> None:
        self.say = say
        self.idle: dict[ActorHandle, Any] = {}
        self.actors = actors
        self.starting = {actor.ready.remote(): actor for actor in actors}
        self.away: dict[ActorHandle, float] = {}
        self._reason = ""  # why the last one was lost
        self._running: dict[ray.ObjectRefGenerator, tuple[ActorHandle, Any, int]] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        """Stops what runs, and waits until all is tidy."""
        for stream in self._running:
            ray.cancel(stream)
        limit = time.monotonic() + GOODBYE
        while self._running and (left := limit - time.monotonic()) > 0:
            for stream in ray.wait([*self._running], timeout=left)[0]:
                try:
                    ray.get(next(stream))
                except (StopIteration, RayError):
                    del self._running[stream]
        ray.wait([actor.leave.remote() for actor in self.actors], num_returns=len(self.actors), timeout=GOODBYE)

    def gather(self, first: float, everyone: float) -> None:
        """Waits so many seconds for one actor to be ready, and so many for all."""
        ready, _ = ray.wait([*self.starting], num_returns=len(self.starting), timeout=everyone)
        limit = time.monotonic() + first - everyone
        while True:
            for one in ready:
                self._take_in(one)
            if self.idle or not self.starting or time.monotonic() > limit:
                return
            ready, _ = ray.wait([*self.starting], timeout=max(0, limit - time.monotonic()))

    def run(
        self, jobs: Sequence[Any], task_of: Callable[[Any, Any, int], Any], retries: int
    ) -> Iterator[tuple[Any, Any]]:
        """(job, what happens with it): Started, Progress, Part and Lost as often as it takes, and one Done or Failed.

        task_of(job, offer, attempt) is what ``work`` gets. It raises OSError when there is something wrong with the
        job, and ValueError when an actor with this offer cannot do it.
        """
        waiting, heard = deque((job, 1) for job in jobs), time.monotonic()
        while waiting or self._running:
            while waiting and self.idle:
                yield from self._hand_out(waiting, task_of)
            if self._running:
                heard = time.monotonic()
            elif not (self.starting or self.away) or time.monotonic() - heard >= PATIENCE:
                break
            for one in self._what_came():
                if one in self.starting:
                    self._take_in(one)
                    continue
                _, job, attempt = self._running[one]
                event = self._next(one)
                if isinstance(event, Lost):
                    self._reason = event.reason
                    if attempt > retries:
                        event = Failed(event.reason)
                    else:
                        waiting.appendleft((job, attempt + 1))
                yield job, event
        for job, _ in waiting:
            yield job, Failed(f"No worker is left. {self._reason}".rstrip())

    def _hand_out(self, waiting: deque[tuple[Any, int]], task_of: Callable) -> Iterator[tuple[Any, Any]]:
        actor, offer = next(iter(self.idle.items()))
        job, attempt = waiting[0]
        try:
            task = task_of(job, offer, attempt)
        except ValueError as error:
            self.say(str(error))
            del self.idle[actor]
            return
        except OSError as error:
            waiting.popleft()
            yield job, Failed(str(error))
            return
        waiting.popleft()
        del self.idle[actor]
        self._running[actor.work.options(num_returns="streaming").remote(task)] = actor, job, attempt
        yield job, Started(offer)

    def _what_came(self) -> Sequence[Any]:
        """Keys of ``starting`` and ``_running`` for which there is something."""
        now = time.monotonic()
        for actor in [actor for actor, when in self.away.items() if when <= now]:
            del self.away[actor]
            self.starting[actor.ready.remote()] = actor
        asked = [*self.starting, *self._running]
        if not asked:
            time.sleep(AGAIN)
            return []
        return ray.wait(asked, timeout=AGAIN if self.away else None if self._running else PATIENCE)[0]

    def _take_in(self, ready: ray.ObjectRef) -> None:
        actor = self.starting.pop(ready)
        try:
            self.idle[actor] = ray.get(ready)
        except RayTaskError as error:
            self.say(f"A worker is left out: {error.cause}")
        except RayError as error:  # it is being started again, as long as it takes
            self.away[actor], self._reason = time.monotonic() + AGAIN, gone(error)

    def _next(self, stream: ray.ObjectRefGenerator) -> Progress | Part | Done | Failed | Lost:
        try:
            event = ray.get(next(stream))
        except ConnectionError as error:  # raised there, so also a RayTaskError
            event = Lost(str(error.cause))
        except RayTaskError as error:
            event = Failed(f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:  # the actor, its machine or the way to it is gone
            event = Lost(gone(error))
        if not isinstance(event, Progress | Part):
            actor, _, _ = self._running.pop(stream)
            self.starting[actor.ready.remote()] = actor
        return event


def gone(error: RayError) -> str:
    return f"Its worker or machine went away ({type(error).__name__})."
