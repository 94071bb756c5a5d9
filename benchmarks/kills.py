"""Kills processes at random moments while they save, edit, rename, delete and undo, and while they train:

    bash scripts/env.sh python benchmarks/kills.py --files 50 --trainings 50

Two processes at a time work on one folder of concepts, as two servers would. After each kill every concept must be
whole, as it was or as it was to become, in its place or in the trash; and the next process must be able to go on. The
.part files that are left go a day later.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests/host")]

import conftest

conftest.start_host()

import folder_paths
import torch
from comfyui_perfusion.nodes.host import files, scorers
from comfyui_perfusion.nodes.host.trash import move_to_trash, restore
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import Concept, load_concept, load_training
from comfyui_perfusion.perfusion_core.concept_file import edit_metadata, remove_abandoned

from makers import train_node
from random_checkpoint import load_narrow

NAMES = [f"toys/toy-{number}" for number in range(4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50, help="kills while files are changed")
    parser.add_argument("--trainings", type=int, default=50, help="kills while a concept is trained")
    asked = parser.parse_args()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "perfusion")
        folder_paths.folder_names_and_paths["perfusion"] = ([str(home)], {".safetensors"})
        for kill_many, kills in ((kill_while_files_change, asked.files), (kill_while_training, asked.trainings)):
            kill_many(home, kills, chance)
            remove_parts(home)
            shutil.rmtree(home)


def kill_while_files_change(home: Path, kills: int, chance: random.Random) -> None:
    for number, name in enumerate(NAMES):
        save(home, name, number)
    hit: collections.Counter[str] = collections.Counter()
    log = home.parent / "log"
    for kill in range(kills):
        workers = [start(lambda seed=2 * kill + i: work(home, log, seed)) for i in (0, 1)]
        time.sleep(chance.uniform(0.05, 0.6))
        os.kill(workers[0], signal.SIGKILL)
        last = log.read_text().splitlines() if log.exists() else []
        hit.update(line.split()[1] for line in last[-1:])
        time.sleep(0.05)
        os.kill(workers[1], signal.SIGKILL)
        for worker in workers:
            os.waitpid(worker, 0)
        check(home)
        ended = start(lambda: work(home, log, 999, rounds=8))
        assert os.waitpid(ended, 0)[1] == 0, "the next process could not go on"
        check(home)
    print(f"{kills} kills of two processes each while files changed (at the time of the last: {dict(hit)}): no loss.")


def kill_while_training(home: Path, kills: int, chance: random.Random) -> None:
    scorers.register()
    with torch.inference_mode():
        models = {"sd1": load_narrow("sd1")}
    PerfusionTrainConcept.hidden = type("Hidden", (), {"unique_id": None})
    save(home, NAMES[0], 0)
    before = (home / f"{NAMES[0]}.safetensors").read_bytes()
    steps, found = [], 0
    for _ in range(kills):
        worker = start(lambda: train_node(lambda _: models["sd1"], steps=[500], checkpoint_every=[1]))
        if chance.random() < 0.7:  # else maybe before its first step
            while not any(home.glob("*-unfinished*.safetensors")):
                time.sleep(0.01)
        time.sleep(chance.uniform(0, 5))
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        assert (home / f"{NAMES[0]}.safetensors").read_bytes() == before
        for path in home.glob("*-unfinished*.safetensors"):
            concept = load_concept(path)
            load_training(files.training_path(concept, path), concept)
            steps.append(int(concept.metadata["steps"]))
            path.unlink()
            found += 1
    ended = start(lambda: train_node(lambda _: models["sd1"]))
    assert os.waitpid(ended, 0)[1] == 0, "the next training could not run"
    print(f"{kills} kills while training: {found} unfinished concepts with their training (steps {sorted(steps)}),")
    print("the others before their first step; concepts that were there are as they were; the next training ran.")


def remove_parts(home: Path) -> None:
    """As the next server does that starts a day later."""
    parts = list(home.rglob("*.part"))
    print(f"{len(parts)} hidden .part files of {sum(path.stat().st_size for path in parts)} bytes were left behind.")
    remove_abandoned(home)
    assert all(part.exists() for part in parts), "another process could be writing these"
    for part in parts:
        os.utime(part, (time.time() - 25 * 3600,) * 2)
    remove_abandoned(home)
    assert not list(home.rglob("*.part"))


def work(home: Path, log: Path, seed: int, rounds: int = 10**6) -> None:
    """Changes one concept after the other; what another process has just moved away is left out."""
    chance = random.Random(seed)
    for _ in range(rounds):
        folder_paths.filename_list_cache.clear()
        name = chance.choice(NAMES)
        path = home / f"{name}.safetensors"
        act = chance.choice(["save", "edit", "rename", "trash", "undo"])
        with log.open("a") as file:
            file.write(f"{os.getpid()} {act}\n")
        try:
            if act == "save" and path.exists():
                save(home, name, NAMES.index(name))
            elif act == "edit":
                edit_metadata(path, {"notes": "x" * chance.randrange(4000)})
            elif act == "rename":
                moved = files.rename_with_training(path, f"{path.stem}-moved")
                files.rename_with_training(moved, path.stem)
            elif act == "trash":
                restore(move_to_trash(path))
            elif act == "undo":
                for token in (home / ".trash").iterdir():
                    restore(token.name)
        except (OSError, ValueError):  # the other process was there first
            continue


def check(home: Path) -> None:
    """Every concept is somewhere, whole, with its training; what was cut short is completed as a user would."""
    found = set()
    for path in home.rglob("*.safetensors"):
        if "training" in path.relative_to(home).parts:
            continue
        number = int(load_concept(path).target_input[0].item())
        found.add(number)
    assert found == set(range(1, len(NAMES) + 1)), f"lost, there is {found}"
    for path in home.rglob("*-moved.safetensors"):
        if ".trash" not in path.parts:
            plain = path.with_name(path.name.replace("-moved", ""))
            if not plain.exists():
                files.rename_with_training(path, plain.stem)
    for token in (home / ".trash").glob("*"):
        try:
            restore(token.name)
        except ValueError:  # saved anew meanwhile by the other process
            continue


def save(home: Path, name: str, number: int) -> None:
    vector = torch.full((768,), number + 1.0)
    concept = Concept(
        name, "<my-toy>", "teddy", "sd1", {"l": vector}, vector, vector, vector, {"a.attn2": torch.ones(320)}
    )
    files.save_with_training(concept, {"step": torch.ones(1)}, home / f"{name}.safetensors")


def start(act: Callable[[], object]) -> int:
    """A process of its own, from a copy of this one."""
    if child := os.fork():
        return child
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        with torch.inference_mode():  # as a node runs
            act()
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
