"""Paints a grid over concepts, prompts and settings on all GPUs of this machine or a Ray cluster: one sheet comes back.

    python scripts/sweep_many.py my-teddy.safetensors --prompt "a photo of {} on the beach" --beta 0.5 0.7 0.9
    python scripts/sweep_many.py FOLDER --prompts prompts.txt --key-lock 0 1 --columns prompt --address 192.168.0.7:6379

{} stands for the trigger. docs/train-many.md says more.
"""

import argparse
import importlib.util
import io
import itertools
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from comfyui import REPO, override
from many.comfy_worker import Offer, Task
from many.comfyuis import add_options, check_options, choose_checkpoint, crew_of, inputs_of, load_workflow, prompt_for
from many.crew import Done, Failed, Lost, connected

sys.path.insert(0, str(REPO))
from perfusion_core.concept_file import read_metadata

NEEDED = ("PerfusionLoader", "KSampler", "SaveImage")
SETTINGS = {
    "beta": "PerfusionLoader", "temperature": "PerfusionLoader", "key_lock": "PerfusionLoader",
    "strength": "PerfusionLoader", "seed": "KSampler", "cfg": "KSampler",
}  # fmt: skip
_spec = importlib.util.spec_from_file_location("perfusion_pictures", REPO / "nodes" / "pictures.py")
pictures = importlib.util.module_from_spec(_spec)  # by its path: ComfyUI has a module of the name nodes, too
_spec.loader.exec_module(pictures)
AXES = ("concept", "prompt", *SETTINGS)
MANY = 1000  # pictures of a sheet
MISSING = "#dddddd"


@dataclass(eq=False)
class Cell:
    """A picture of the sheet: what it is made with, by axis."""

    place: dict[str, Any]
    picture: Image.Image | None = None
    problem: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    axes = {"concept": find_concepts(options.concepts), "prompt": read_prompts(options)}
    axes |= {name: values for name in SETTINGS if (values := getattr(options, name))}
    cells = [Cell(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    if len(cells) > MANY:
        sys.exit(f"These are {len(cells)} pictures; a sheet has at most {MANY}. Leave some values out.")
    workflow = load_workflow(options.workflow, NEEDED)
    try:
        with connected(options.address, "scripts"):
            paint_all(cells, workflow, options)
    except KeyboardInterrupt:
        print("\nStopped.")
    for problem in dict.fromkeys(cell.problem for cell in cells if cell.problem):
        print(problem)
    done = sum(cell.picture is not None for cell in cells)
    if done:
        sheet(cells, axes, columns_of(options, axes), options.cell).save(options.output)
        print(f"{done} of {len(cells)} pictures: {options.output}")
    return 0 if done == len(cells) else 1


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concepts", nargs="+", type=Path, help="concept files, or folders of them")
    parser.add_argument("--prompt", nargs="+", default=[], help="with {} or the trigger (default: a photo of {})")
    parser.add_argument("--prompts", type=Path, help="a text file with a prompt on each line")
    for name in SETTINGS:
        number = int if name == "seed" else float
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=number, help="default: the workflow's")
    parser.add_argument("--columns", choices=AXES, help="what changes from left to right (default: the longest axis)")
    parser.add_argument("--cell", type=int, default=256, help="pixels of a picture in the sheet (default: 256)")
    parser.add_argument("--output", type=Path, default=Path("sweep.png"), help="the sheet (default: sweep.png)")
    add_options(parser, REPO / "workflows" / "3 Generate SD1.5.json")
    options = parser.parse_args(arguments)
    check_options(parser, options)
    if not 16 <= options.cell <= 2048:
        parser.error("--cell is from 16 to 2048.")
    if options.output.suffix.lower() not in (".png", ".jpg", ".webp") or not options.output.absolute().parent.is_dir():
        parser.error("--output is a .png, .jpg or .webp file in a folder that is there.")
    return options


def find_concepts(paths: Sequence[Path]) -> list[Path]:
    """The files. Ends the program for what is none."""
    files = [file for path in paths for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    names = [file.name for file in files]
    if not files:
        sys.exit(f"There is no concept file in {', '.join(map(str, paths))}.")
    if twice := {name for name in names if names.count(name) > 1}:
        sys.exit(f"Two of the files are called {', '.join(sorted(twice))}. Rename one.")
    for file in files:
        try:
            read_metadata(file)
        except ValueError as error:
            sys.exit(str(error))
    return files


def read_prompts(options: argparse.Namespace) -> list[str]:
    try:
        lines = options.prompts.read_text(encoding="utf-8").splitlines() if options.prompts else []
    except (OSError, ValueError) as error:
        sys.exit(f"The prompts cannot be read: {error}")
    prompts = [line.strip() for line in [*options.prompt, *lines] if line.strip()]
    return list(dict.fromkeys(prompts)) or ["a photo of {}"]


def columns_of(options: argparse.Namespace, axes: Mapping[str, Sequence[Any]]) -> str:
    return options.columns if options.columns in axes else max(axes, key=lambda name: len(axes[name]))


def paint_all(cells: Sequence[Cell], workflow: dict[str, Any], options: argparse.Namespace) -> None:
    """Leaves in every cell its picture, or why there is none."""
    with crew_of(options, workflow, tqdm.write) as crew:
        checkpoint = choose_checkpoint(options, list(crew.idle.values()))
        tqdm.write(f"Model: {checkpoint}")
        task = partial(task_of, checkpoint=checkpoint, options=options)
        with tqdm(total=len(cells), unit="picture", disable=None, dynamic_ncols=True) as bar:
            for cell, event in crew.run(cells, task, options.retries):
                match event:
                    case Done(result):
                        data = next(iter(result.pictures.values()))
                        cell.picture = Image.open(io.BytesIO(data)).convert("RGB")
                    case Failed(reason):
                        cell.problem = reason
                    case Lost(reason):
                        tqdm.write(f"{reason} The picture is tried again.")
                bar.update(isinstance(event, Done | Failed))


def task_of(cell: Cell, offer: Offer, attempt: int, checkpoint: str, options: argparse.Namespace) -> Task:
    file, sentence = cell.place["concept"], cell.place["prompt"]
    if not offer.own and file.name not in offer.concepts:
        raise ValueError(f"{offer.where} has no concept {file.name} and is left out. Put it into its models/perfusion.")
    prompt = prompt_for(offer, checkpoint, options)
    override(prompt, "PerfusionLoader", concept=file.name)
    for name, class_type in SETTINGS.items():
        if name in cell.place:
            override(prompt, class_type, **{name: cell.place[name]})
    if inputs_of(prompt, "EmptyLatentImage"):
        override(prompt, "EmptyLatentImage", batch_size=1)
    inputs_with_text(prompt)["text"] = sentence.replace("{}", read_metadata(file)["trigger"])
    return Task(prompt, str(uuid.uuid4()), concepts={file.name: file.read_bytes()} if offer.own else {})


def inputs_with_text(prompt: dict[str, Any]) -> dict[str, Any]:
    """Of the node whose text the picture shows, also behind a ControlNet or the like. Ends the program without one."""
    inputs = inputs_of(prompt, "KSampler")
    while "text" not in inputs:
        link = inputs.get("positive") or inputs.get("conditioning")
        if not isinstance(link, list):
            sys.exit("The workflow's KSampler takes its prompt from nowhere. Link a CLIP Text Encode to its positive.")
        inputs = prompt[link[0]]["inputs"]
    return inputs


def sheet(cells: Sequence[Cell], axes: Mapping[str, Sequence[Any]], columns: str, side: int) -> Image.Image:
    """One axis from left to right, all others from top to bottom."""
    down = [name for name in axes if name != columns]
    rows: dict[tuple, list[Image.Image]] = {}
    for cell in cells:
        picture = cell.picture or Image.new("RGB", (side, side), MISSING)
        fitting = ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
        rows.setdefault(tuple(cell.place[name] for name in down), []).append(fitting)
    across = [label(columns, value) for value in axes[columns]]
    many = [i for i, name in enumerate(down) if len(axes[name]) > 1] or [0]
    named = [(", ".join(label(down[i], place[i]) for i in many), shown) for place, shown in rows.items()]
    return pictures.contact_sheet(across, named, side)


def label(axis: str, value: Any) -> str:
    return value.stem if axis == "concept" else value if axis == "prompt" else f"{axis} {value:g}"


if __name__ == "__main__":
    sys.exit(main())
