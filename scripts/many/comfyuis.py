"""What train_many.py and sweep_many.py have in common: where ComfyUI runs, and the workflow and model it runs."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from comfyui import override
from demo_model import on_the_demo_model
from environment.setup_env import existing_comfyui
from many.comfy_worker import ComfyWorker, Offer
from many.crew import PATIENCE, Crew, places

LOADER = "CheckpointLoaderSimple"
ANSWER_WITHIN, FIRST_ANSWERS_WITHIN = 15, 45  # seconds, of servers that run; Ray's own start is a part of it


def add_options(parser: argparse.ArgumentParser, workflow: Path) -> None:
    where = parser.add_argument_group("where it runs (default: on all GPUs of this machine, or on its CPU)")
    where.add_argument("--address", help="of a Ray cluster: auto on a machine of it, or HEAD:6379")
    where.add_argument("--server", action="append", help="address of a ComfyUI that runs; may be repeated")
    where.add_argument("--workers", type=int, help="how many ComfyUIs to start (default: one for each GPU)")
    where.add_argument("--cpus", type=int, help="cores for each, in place of a GPU (default: a machine's)")
    where.add_argument("--comfyui", type=Path, help="where ComfyUI is on machines without COMFYUI_PATH (default: ours)")
    what = parser.add_argument_group("what it runs")
    what.add_argument("--checkpoint", help="default: the workflow's where all have it, else the first that all have")
    what.add_argument("--demo", action="store_true", help="the small model of this pack in place of a checkpoint")
    what.add_argument("--workflow", type=Path, default=workflow)
    what.add_argument("--retries", type=int, default=2, help="of what is lost with its ComfyUI or machine (default: 2)")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.server and (options.workers or options.cpus or options.comfyui):
        parser.error("--server uses ComfyUIs that run; --workers, --cpus and --comfyui are for those that it starts.")
    if 0 in (options.workers, options.cpus) or min(options.workers or 1, options.cpus or 1, options.retries + 1) < 1:
        parser.error("--workers and --cpus are at least 1, --retries at least 0.")
    if options.address and options.address.startswith("ray://"):
        parser.error("ray:// cannot carry the files. Run this on a machine of the cluster, with --address auto.")
    if options.demo and options.checkpoint:
        parser.error("--demo stands in for a checkpoint. Leave one of them out.")
    with_scheme = [server if "://" in server else f"http://{server}" for server in options.server or ()]
    options.server = list(dict.fromkeys(server.rstrip("/") for server in with_scheme))


def load_workflow(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """As saved by the frontend, or exported in API format. Ends the program for others."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        nodes = workflow["nodes"] if "nodes" in workflow else workflow.values()
        missing = set(needed) - {node.get("type") or node["class_type"] for node in nodes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"{path} is not a workflow ({error!r}). Save or export it from ComfyUI's menu.")
    if missing:
        sys.exit(f"{path} has no {' and no '.join(sorted(missing))}. Start from the one in workflows/.")
    return workflow


@contextlib.contextmanager
def crew_of(options: argparse.Namespace, workflow: dict[str, Any], say: Callable[[str], None]) -> Iterator[Crew]:
    """ComfyUIs, of which one is ready at least. Ends the program when there is none."""
    if options.server:
        addresses = {ComfyWorker.options(num_cpus=0).remote(one, "", workflow): one for one in options.server}
        with Crew(list(addresses), say) as crew:
            crew.gather(first=FIRST_ANSWERS_WITHIN, everyone=ANSWER_WITHIN)
            for actor in crew.starting.values():
                say(f"ComfyUI at {addresses[actor]} does not answer. It takes part as soon as it does.")
            if not crew.idle:
                sys.exit("No server can be used. Start ComfyUI, or give its address with --server.")
            yield crew
        return
    comfyui = str(options.comfyui or existing_comfyui() or "")
    wanted = places(options.workers, options.cpus)
    say("Starting ComfyUI ...")
    with Crew([ComfyWorker.options(**place).remote("", comfyui, workflow) for place in wanted], say) as crew:
        crew.gather(first=PATIENCE, everyone=0)
        if not crew.idle:
            sys.exit("No ComfyUI could be started. Where COMFYUI_PATH is not set, --comfyui says where it is.")
        yield crew


def inputs_of(prompt: dict[str, Any], class_type: str) -> dict[str, Any]:
    return next((node["inputs"] for node in prompt.values() if node["class_type"] == class_type), {})


def choose_checkpoint(options: argparse.Namespace, offers: Sequence[Offer]) -> str:
    """One that all have, so that all results are of one model. Ends the program when there is none."""
    prompt = offers[0].prompt
    if options.demo or not inputs_of(prompt, LOADER):
        return "the demo model" if options.demo else "the workflow's"
    wanted = [options.checkpoint] if options.checkpoint else [inputs_of(prompt, LOADER)["ckpt_name"]]
    for name in wanted if options.checkpoint else [*wanted, *offers[0].checkpoints]:
        if all(name in offer.checkpoints for offer in offers):
            return name
    if not any(offer.checkpoints for offer in offers):
        places = ", ".join(offer.where for offer in offers)
        sys.exit(f"There is no checkpoint on {places}. Put one into models/checkpoints, or try it with --demo.")
    lists = [f"  {offer.where}: {', '.join(offer.checkpoints) or 'none'}" for offer in offers]
    sys.exit(
        "\n".join([f"{options.checkpoint or 'One and the same checkpoint'} is not everywhere. They have:", *lists])
    )


def prompt_for(offer: Offer, checkpoint: str, options: argparse.Namespace) -> dict[str, Any]:
    """The workflow with the chosen model. Raises ValueError where that is not."""
    prompt = copy.deepcopy(offer.prompt)
    if options.demo:
        on_the_demo_model(prompt)
    elif inputs_of(prompt, LOADER):
        if checkpoint not in offer.checkpoints:
            raise ValueError(f"{offer.where} has no {checkpoint} and is left out.")
        override(prompt, LOADER, ckpt_name=checkpoint)
    return prompt
