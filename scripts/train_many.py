"""Trains a folder of concept folders on all GPUs of this machine or of a Ray cluster, and gathers the files here.

    python scripts/train_many.py FOLDER --superclass toy
    python scripts/train_many.py FOLDER --superclass toy --address 192.168.0.7:6379
    python scripts/train_many.py FOLDER --superclass toy --server http://127.0.0.1:8188 --server http://192.168.0.7:8188

docs/train-many.md says more.
"""

import argparse
import hashlib
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from tqdm import tqdm

from comfyui import REPO, override
from many.comfy_worker import Offer, Result, Task
from many.comfyuis import add_options, check_options, choose_checkpoint, crew_of, inputs_of, load_workflow, prompt_for
from many.concept_folders import Concept, find_concepts
from many.crew import Crew, Done, Failed, Lost, Progress, Started, connected
from many.train_summary import page, table

NEEDED = ("PerfusionLoadPhotos", "PerfusionTrainConcept", "PerfusionSaveConcept")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    concepts = find_concepts(options.folder, options.output, options.superclass, options.steps)
    workflow = load_workflow(options.workflow, NEEDED)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"The folder for the results cannot be made ({error}). Choose another with --output.")
    for concept in concepts:
        if (options.output / concept.file).exists() and not options.again:
            skip(concept, "is here already")
    if any(concept.state == "not started" for concept in concepts):
        try:
            with connected(options.address, "scripts"):
                train_all(concepts, workflow, options)
        except KeyboardInterrupt:
            print("\nStopped.")
            for concept in concepts:
                concept.state = "stopped" if concept.state == "running" else concept.state
    print(table(concepts, options.output))
    summary = options.output / "index.html"
    summary.write_text(page(concepts, options.output), encoding="utf-8")
    print(f"The concept files are in {options.output}. All of it with pictures: {summary}")
    return 0 if all(concept.state in ("trained", "skipped") for concept in concepts) else 1


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="one subfolder per concept, with its photos")
    parser.add_argument("--superclass", help="the plain word for concepts whose concept.json has none")
    parser.add_argument("--steps", type=int, help="training steps (default: the workflow's)")
    parser.add_argument("--output", type=Path, help="for concept files, pictures and reports (default: FOLDER-trained)")
    parser.add_argument("--again", action="store_true", help="also train what has a file already, and replace it")
    add_options(parser, REPO / "workflows" / "2 Train SD1.5.json")
    options = parser.parse_args(arguments)
    check_options(parser, options)
    options.folder = options.folder.resolve()
    options.output = (options.output or options.folder.with_name(f"{options.folder.name}-trained")).resolve()
    return options


def train_all(concepts: Sequence[Concept], workflow: dict[str, Any], options: argparse.Namespace) -> None:
    """Leaves in every concept how it went."""
    with crew_of(options, workflow, say) as crew:
        offers = list(crew.idle.values())
        checkpoint = choose_checkpoint(options, offers)
        fill_in(concepts, inputs_of(prompt_for(offers[0], checkpoint, options), "PerfusionTrainConcept"))
        if not options.again:
            fetch_trained(concepts, crew, options.output)
        waiting = [concept for concept in concepts if concept.state == "not started"]
        say(f"Model: {checkpoint}")
        with tqdm(unit="step", disable=None, dynamic_ncols=True, smoothing=0) as bar:
            show = progress_bar(bar, waiting)
            task = partial(task_of, checkpoint=checkpoint, options=options)
            for concept, event in crew.run(waiting, task, options.retries):
                note_down(concept, event, options.output, show)


def fill_in(concepts: Sequence[Concept], inputs: dict[str, Any]) -> None:
    """What concepts leave to the workflow. Ends the program when they set what training does not have."""
    widgets = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    for concept in concepts:
        unknown = set(concept.settings) - set(widgets)
        if unknown:
            sys.exit(f"{concept.name}: training has no setting {sorted(unknown)}. There are {sorted(widgets)}.")
        concept.settings.setdefault("steps", widgets.get("steps"))
        if not isinstance(concept.steps, int):
            sys.exit(f"{concept.name}: steps is {concept.steps!r}, and must be a whole number.")


def fetch_trained(concepts: Sequence[Concept], crew: Crew, output: Path) -> None:
    """What running servers have already."""
    for actor, offer in crew.idle.items():
        for concept in concepts:
            if concept.state == "not started" and concept.file in offer.concepts:
                concept.where = offer.where
                try:
                    save(ray.get(actor.fetch.remote(concept.file)), output / concept.file)
                    skip(concept, f"was on {offer.where} already")
                except (OSError, RayError) as error:
                    concept.state, concept.note = "failed", str(getattr(error, "cause", error))


def skip(concept: Concept, why: str) -> None:
    concept.state, concept.note = "skipped", f"{concept.file} {why}; --again trains it anew"
    say(f"{concept.name}: {concept.note}")


def task_of(concept: Concept, offer: Offer, attempt: int, checkpoint: str, options: argparse.Namespace) -> Task:
    """Photos go to a folder named after their contents: no photo of another time can be in it."""
    photos = {file.relative_to(concept.folder).as_posix(): file.read_bytes() for file in concept.files}
    digest = hashlib.blake2b(digest_size=6)
    for name, data in photos.items():
        digest.update(f"{name} {len(data)} ".encode() + data)
    prompt = prompt_for(offer, checkpoint, options)
    override(prompt, "PerfusionTrainConcept", **concept.settings)
    # an attempt whose ComfyUI went away may have saved before
    override(prompt, "PerfusionSaveConcept", filename=concept.name, overwrite=options.again or attempt > 1)
    folder = f"perfusion_many/{concept.name}-{digest.hexdigest()}"
    return Task(prompt, str(uuid.uuid4()), photos, folder, wanted=(concept.file,))


# What comes back


def note_down(concept: Concept, event: Any, output: Path, show: Callable[[str], None]) -> None:
    match event:
        case Started(offer):
            concept.attempts += 1
            concept.state, concept.where, concept.start = "running", offer.where, time.monotonic()
            say(f"{concept.name}: to {offer.where}")
        case Progress(step, value, maximum, text):
            if not concept.under_way:
                concept.under_way, concept.start = True, time.monotonic()  # until now others' prompts ran
            if step == "PerfusionTrainConcept" and maximum:
                concept.steps_done = value / maximum * concept.steps
            show(f"{concept.name}: {text}")
        case Lost(reason):
            concept.state, concept.note, concept.steps_done, concept.under_way = "not started", reason, 0, False
            say(f"{concept.name}: {reason} It is tried again.")
        case Failed(reason):
            concept.state, concept.note = "failed", reason
        case Done(result):
            concept.state, concept.steps_done = "trained", concept.steps
            try:
                keep(result, concept, output)
            except OSError as error:
                concept.state, concept.note = "failed", f"What was trained cannot be written here: {error}"
    if isinstance(event, Done | Failed):
        concept.seconds = time.monotonic() - concept.start if concept.start else 0
        show("")
        say(f"{concept.name}: {concept.state} after {concept.seconds:.0f} s. {concept.note}")


def keep(result: Result, concept: Concept, output: Path) -> None:
    """The concept file, and beside it a folder with pictures and the report."""
    folder = output / concept.name
    folder.mkdir(parents=True, exist_ok=True)
    report = [text for kind, found in result.texts.items() if kind != "PerfusionSaveConcept" for text in found]
    (folder / "report.txt").write_text("\n\n".join(report), encoding="utf-8")
    for name, data in result.pictures.items():
        (folder / name).write_bytes(data)
    save(result.concepts[concept.file], output / concept.file)
    concept.note = " ".join([str(output / concept.file), *result.notes])


def save(data: bytes, path: Path) -> None:
    """Whole or not at all: a file that is there is taken for a trained concept."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


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
