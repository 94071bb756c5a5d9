"""Learning and painting on many cores or machines, one concept each; every finished piece comes back."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from many.crew import Crew, Done, Failed, Lost, Part, connected, places

OFTEN = 2  # seconds between two looks for finished pieces
KEPT = ("learned", "painted")


@dataclass(frozen=True)
class Share:
    name: str  # of the concept
    only: list[str] | None
    seeds: Sequence[int]
    files: Mapping[str, bytes]  # what is finished, by path in the benchmark's folder


class Bencher:
    """An actor of a crew, with a scratch folder."""

    def __init__(self) -> None:
        from run import Bench

        self.folder = Path(tempfile.mkdtemp(prefix="perfusion-bench-"))
        self.bench = Bench(self.folder, None)

    async def ready(self) -> None:
        pass

    async def leave(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    async def work(self, share: Share) -> AsyncIterator[Part | Done]:
        for path, data in share.files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(data)
        sent = stamps(self.folder)
        running = asyncio.create_task(asyncio.to_thread(self.learn, share))
        while not running.done():
            await asyncio.wait([running], timeout=OFTEN)
            now = stamps(self.folder)
            changed = [path for path, stamp in now.items() if sent.get(path) != stamp]
            sent = now
            if changed:
                yield Part({path: (self.folder / path).read_bytes() for path in changed})
        running.result()
        yield Done(None)

    def learn(self, share: Share) -> None:
        torch.set_flush_denormal(True)  # of this thread
        self.bench.run(share.only, share.seeds, [share.name])


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file does, of all that are not being written."""
    found = [path for kind in KEPT for path in (folder / kind).glob("*") if path.suffix != ".part"]
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def share_out(names: Sequence[str], options: argparse.Namespace) -> None:
    """Leaves in the folder what learning and painting these concepts leaves, whoever does it."""
    with connected(options.address, "scripts", "benchmarks/quality"):
        actor = ray.remote(max_restarts=-1)(Bencher)
        actors = [actor.options(**place).remote() for place in places(options.workers, options.cpus or 1)]
        with Crew(actors, print) as crew:
            crew.gather(first=60, everyone=0)
            for name, event in crew.run(names, partial(share_of, options=options), retries=2):
                match event:
                    case Part(files):
                        for path, data in files.items():
                            (options.folder / path).parent.mkdir(parents=True, exist_ok=True)
                            (options.folder / path).write_bytes(data)
                            print(f"{path} arrived", flush=True)
                    case Failed(reason) | Lost(reason):
                        print(f"{name}: {reason}", flush=True)


def share_of(name: str, offer: Any, attempt: int, options: argparse.Namespace) -> Share:
    paths = [path for path in stamps(options.folder) if f" - {name} - " in path and "combined" not in path]
    return Share(name, options.only, options.seeds, {path: (options.folder / path).read_bytes() for path in paths})
