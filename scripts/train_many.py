"""Trains a folder of concept folders on running ComfyUI servers, which share the work. docs/train-many.md says more.

python scripts/train_many.py FOLDER --superclass toy --server http://127.0.0.1:8188 --server http://192.168.0.7:8188
"""

import argparse
import asyncio
import contextlib
import copy
import hashlib
import io
import json
import re
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from comfyui import REPO, Client, RunError, override, to_prompt
from concept_folders import Concept, find_concepts
from train_summary import page, table

NEEDED = ("CheckpointLoaderSimple", "PerfusionLoadPhotos", "PerfusionTrainConcept", "PerfusionSaveConcept")
PATIENCE = 180  # seconds to wait for a server that went away


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    concepts = find_concepts(options.folder, options.output, options.superclass, options.steps)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"The folder for the results cannot be made ({error}). Choose another with --output.")
    try:
        asyncio.run(train_all(concepts, options))
    except KeyboardInterrupt:
        print("\nStopped.")
    print(table(concepts, options.output))
    summary = options.output / "index.html"
    summary.write_text(page(concepts, options.output), encoding="utf-8")
    print(f"The same with pictures: {summary}")
    return 0 if all(concept.state in ("trained", "skipped") for concept in concepts) else 1


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="one subfolder per concept, with its photos")
    parser.add_argument("--server", action="append", required=True, help="address of a ComfyUI; may be repeated")
    parser.add_argument("--superclass", help="the plain word for concepts whose concept.json has none")
    parser.add_argument("--checkpoint", help="default: the workflow's where every server has it, else their first")
    parser.add_argument("--steps", type=int, help="training steps (default: the workflow's)")
    parser.add_argument("--workflow", type=Path, default=REPO / "workflows" / "perfusion_train.json")
    parser.add_argument("--output", type=Path, help="for pictures and reports (default: FOLDER-trained)")
    parser.add_argument("--retries", type=int, default=2, help="of a concept whose server went away (default: 2)")
    parser.add_argument("--again", action="store_true", help="also train what a server has a file of, and replace it")
    options = parser.parse_args(arguments)
    options.folder = options.folder.resolve()
    options.output = (options.output or options.folder.with_name(f"{options.folder.name}-trained")).resolve()
    with_scheme = [server if "://" in server else f"http://{server}" for server in options.server]
    options.server = list(dict.fromkeys(server.rstrip("/") for server in with_scheme))
    return options


# Where it is trained


async def open_servers(concepts: Sequence[Concept], options: argparse.Namespace) -> dict[Client, dict[str, Any]]:
    """The servers that answer, with the prompt each will run. Fills in what concepts leave to the workflow, and skips
    those that a server has already. Ends the program when something will not work."""
    workflow = load_workflow(options.workflow)
    clients = [Client(address) for address in options.server]
    answers = await asyncio.gather(*map(look_at, clients), return_exceptions=True)
    prompts, checkpoints = {}, {}
    for client, answer in zip(clients, answers, strict=True):
        if isinstance(answer, ConnectionError):
            print(f"{answer} Going on without it.")
            continue
        if isinstance(answer, RunError):
            sys.exit(f"{answer} Is it a ComfyUI with the Perfusion nodes?")
        if isinstance(answer, BaseException):
            raise answer
        object_info, checkpoints[client.address], saved = answer
        prompts[client] = make_prompt(workflow, object_info, client.address)
        for concept in concepts:
            if f"{concept.name}.safetensors" in saved and not options.again:
                concept.state, concept.server = "skipped", client.address
                concept.note = "has a file already; --again trains it anyway"
    if not prompts:
        sys.exit("No server answers. Start ComfyUI, or give its address with --server.")
    checkpoint = choose_checkpoint(options.checkpoint, next(iter(prompts.values())), checkpoints)
    print(f"Checkpoint: {checkpoint}")
    for prompt in prompts.values():
        override(prompt, "CheckpointLoaderSimple", ckpt_name=checkpoint)
        fill_in(concepts, inputs_of(prompt, "PerfusionTrainConcept"))
    return prompts


async def look_at(client: Client) -> tuple[dict[str, Any], list[str], list[str]]:
    """Its nodes, checkpoints and concept files."""
    info = await client.send("GET", "/object_info")
    return info, await client.send("GET", "/models/checkpoints"), await client.send("GET", "/models/perfusion")


def load_workflow(path: Path) -> dict[str, Any]:
    """As saved by the frontend, or exported in API format."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        nodes = workflow["nodes"] if "nodes" in workflow else workflow.values()
        missing = set(NEEDED) - {node.get("type") or node["class_type"] for node in nodes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"{path} is not a workflow ({error!r}). Save or export it from ComfyUI's menu.")
    if missing:
        sys.exit(f"{path} has no {' and no '.join(sorted(missing))}. Start from workflows/perfusion_train.json.")
    return workflow


def make_prompt(workflow: dict[str, Any], object_info: dict[str, Any], address: str) -> dict[str, Any]:
    try:
        return to_prompt(workflow, object_info) if "nodes" in workflow else copy.deepcopy(workflow)
    except ValueError as error:
        sys.exit(f"{address}: {error} Install or update what it comes with, or choose another --workflow.")


def inputs_of(prompt: dict[str, Any], class_type: str) -> dict[str, Any]:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == class_type)


def choose_checkpoint(wanted: str | None, prompt: dict[str, Any], offers: dict[str, list[str]]) -> str:
    first = [inputs_of(prompt, "CheckpointLoaderSimple")["ckpt_name"], *next(iter(offers.values()))]
    for name in [wanted] if wanted else first:
        if all(name in offer for offer in offers.values()):
            return name
    lists = [f"  {address}: {', '.join(offer) or 'none'}" for address, offer in offers.items()]
    sys.exit("\n".join([f"{wanted or 'One and the same checkpoint'} is not on every server. They have:", *lists]))


def fill_in(concepts: Sequence[Concept], inputs: dict[str, Any]) -> None:
    widgets = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    for concept in concepts:
        unknown = set(concept.settings) - set(widgets)
        if unknown:
            sys.exit(f"{concept.name}: training has no setting {sorted(unknown)}. There are {sorted(widgets)}.")
        concept.settings.setdefault("steps", widgets.get("steps"))
        if not isinstance(concept.steps, int):
            sys.exit(f"{concept.name}: steps is {concept.steps!r}, and must be a whole number.")


# Training


async def train_all(concepts: list[Concept], options: argparse.Namespace) -> None:
    """Leaves in every concept how it went. Each server has one at a time; the next free one takes the next."""
    prompts = await open_servers(concepts, options)
    for concept in concepts:
        if concept.state == "skipped":
            print(f"{concept.name}: {concept.server} {concept.note}")
    waiting = deque(concept for concept in concepts if concept.state != "skipped")
    free = deque(prompts)
    tasks: dict[asyncio.Task[bool], tuple[Client, Concept | None]] = {}  # None: waits for the server to come back
    with tqdm(unit="step", disable=None, dynamic_ncols=True, smoothing=0) as bar:
        show = progress_bar(bar, list(waiting))
        try:
            while waiting or any(concept for _, concept in tasks.values()):
                while waiting and free:
                    client, concept = free.popleft(), waiting.popleft()
                    task = asyncio.create_task(train(concept, client, prompts[client], options, show))
                    tasks[task] = client, concept
                if not tasks:
                    break
                finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    answers = task.result()
                    client, concept = tasks.pop(task)
                    if answers:
                        free.append(client)
                    elif concept:
                        tasks[asyncio.create_task(comes_back(client, concept.prompt_id))] = client, None
                        if concept.state == "not started":
                            waiting.appendleft(concept)
                    else:
                        say(f"{client.address} stays away; given up.")
            for concept in waiting:
                concept.state, concept.note = "failed", f"No server is left. {concept.note}".rstrip()
        finally:
            for task in tasks:
                task.cancel()
            running = [(client, concept) for client, concept in tasks.values() if concept]
            for _, concept in running:
                concept.state = "stopped"
            cancelled = [client.cancel(concept.prompt_id) for client, concept in running]
            await asyncio.gather(*cancelled, return_exceptions=True)


async def train(
    concept: Concept, client: Client, prompt: dict[str, Any], options: argparse.Namespace, show: Callable[[str], None]
) -> bool:
    """One attempt on one server. False when the server went away."""
    concept.attempts += 1
    concept.state, concept.server, concept.prompt_id = "running", client.address, str(uuid.uuid4())
    concept.start, concept.steps_done = time.monotonic(), 0.0
    doing = ""

    def on_progress(node: str, value: float, maximum: float, text: str) -> None:
        nonlocal doing
        if not doing:
            concept.start = time.monotonic()  # until now others' prompts ran
        if node == "PerfusionTrainConcept" and maximum:
            concept.steps_done = value / maximum * concept.steps
        doing = text or (doing if maximum else node)
        show(f"{concept.name}: {doing}")

    say(f"{concept.name}: to {client.address}")
    try:
        prompt = copy.deepcopy(prompt)
        override(prompt, "PerfusionLoadPhotos", folder=await upload(client, concept))
        override(prompt, "PerfusionTrainConcept", **concept.settings)
        # a first attempt may have saved before its server went away
        override(prompt, "PerfusionSaveConcept", filename=concept.name, overwrite=options.again or concept.attempts > 1)
        outputs = await client.follow(prompt, on_progress, concept.prompt_id)
    except ConnectionError as error:
        concept.state = "not started" if concept.attempts <= options.retries else "failed"
        concept.note, concept.steps_done = str(error), 0.0
        say(f"{concept.name}: {error}")
        return False
    except (RunError, OSError) as error:  # OSError: a photo that cannot be read here
        concept.state, concept.note = "failed", error.message if isinstance(error, RunError) else str(error)
    else:
        concept.state, concept.steps_done = "trained", concept.steps
        concept.note = " ".join(texts(prompt, outputs, {"PerfusionSaveConcept"}))
        try:
            await keep_outputs(client, prompt, outputs, options.output / concept.name)
        except (RunError, OSError) as error:  # ConnectionError is one; the concept is safe
            say(f"{concept.name}: its pictures could not be fetched: {error}")
    concept.seconds = time.monotonic() - concept.start
    show("")
    say(f"{concept.name}: {concept.state} after {concept.seconds:.0f} s. {concept.note}")
    return True


async def comes_back(client: Client, prompt_id: str) -> bool:
    """Whether a server that went away answers again; then it is told to forget our prompt."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        with contextlib.suppress(ConnectionError, RunError):
            await client.cancel(prompt_id)
            return True
        await asyncio.sleep(2)
    return False


async def upload(client: Client, concept: Concept) -> str:
    """Sends the files to a folder named after their contents: no photo of another time can be in it."""
    digest = hashlib.blake2b(digest_size=6)
    for file in concept.files:
        digest.update(f"{file.relative_to(concept.folder)} {file.stat().st_size} ".encode() + file.read_bytes())
    folder = f"perfusion_many/{concept.name}-{digest.hexdigest()}"
    for file in concept.files:
        try:
            await client.send_file(file, f"{folder}/mask" if file.parent != concept.folder else folder)
        except RunError as error:
            if file.suffix != ".txt":
                raise
            say(f"{concept.name}: trained without the caption {file.name}. {error}")
    return folder


async def keep_outputs(client: Client, prompt: dict[str, Any], outputs: dict[str, Any], folder: Path) -> None:
    """The report and every saved picture, under names of our own making: the server's are not to be trusted."""
    folder.mkdir(parents=True, exist_ok=True)
    report = texts(prompt, outputs, {node["class_type"] for node in prompt.values()} - {"PerfusionSaveConcept"})
    (folder / "report.txt").write_text("\n\n".join(report), encoding="utf-8")
    counts: Counter[str] = Counter()
    for node_id, ui in outputs.items():
        title = prompt[node_id].get("_meta", {}).get("title") or prompt[node_id]["class_type"]
        name = re.sub(r"\W+", "-", title).strip("-").lower()
        for image in ui.get("images", ()):
            if image["type"] != "output":  # previews of what is saved
                continue
            counts[name] += 1
            where = {key: image[key] for key in ("filename", "subfolder", "type")}
            data = await client.send("GET", "/view", params=where)
            with Image.open(io.BytesIO(data)) as picture:
                kind = str(picture.format).lower()
            (folder / f"{name}-{counts[name]}.{kind}").write_bytes(data)


def texts(prompt: dict[str, Any], outputs: dict[str, Any], classes: set[str]) -> list[str]:
    chosen = [ui for id, ui in outputs.items() if prompt[id]["class_type"] in classes]
    return [str(text) for ui in chosen for text in ui.get("text", ())]


# What is shown


def say(line: str) -> None:
    tqdm.write(line)  # above the bar


def progress_bar(bar: tqdm, concepts: Sequence[Concept]) -> Callable[[str], None]:
    """A function that draws all concepts' steps as one bar, with a line of text."""

    def show(text: str) -> None:
        bar.total = round(
            sum(concept.steps_done if concept.state == "failed" else concept.steps for concept in concepts)
        )
        bar.n = round(sum(concept.steps_done for concept in concepts))
        ended = sum(concept.state in ("trained", "failed") for concept in concepts)
        bar.set_description_str(f"{ended} of {len(concepts)} concepts", refresh=False)
        bar.set_postfix_str(text.partition("\n")[0])

    show("")
    return show


if __name__ == "__main__":
    sys.exit(main())
