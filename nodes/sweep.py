"""Grids of pictures over the settings of concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from .host.model import apply_to_model
from .host.progress import Cancelled, Progress, run_again, times_run_again
from .host.sampling import Sampling
from .host.text import apply_to_clip
from .host.uses import ConceptUse
from .pictures import GAP, contact_sheet, native
from .plots import as_image
from .prompts import has_trigger, prompt_lines, with_triggers
from .schema import ADVANCED, INSPECT, Concepts, sampling_inputs, use_inputs

MANY = 100  # pictures of a grid
_NUMBERS = {
    "beta": "0.5, 0.6, 0.7, 0.8",
    "temperature": "0.05, 0.15, 0.3",
    "key_lock": "0, 0.5, 1",
    "strength": "0, 0.5, 1",
}
_CONCEPT, _PROMPT = "concept", "prompt"


class PerfusionSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionSweep",
            display_name="Perfusion Sweep",
            category=INSPECT,
            description="A grid of pictures from one seed, over two of beta, temperature, key_lock, strength, concepts "
            "and prompts. Cancel when you have seen enough: the pictures that are finished are kept.",
            search_aliases=["grid", "xy plot"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model, without the concepts."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint, without the concepts."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                Concepts.Input("concepts", tooltip="Settings that are not an axis of the grid stay as they are here."),
                io.String.Input(
                    "text",
                    default="a photo of {}",
                    multiline=True,
                    tooltip="The prompt, with the trigger, or {} in its place. With prompt in columns or rows: one on "
                    "each line.",
                ),
                _axis_input("columns", "beta", "What changes from left to right."),
                _axis_input("rows", "temperature", "What changes from top to bottom."),
                io.String.Input("negative", multiline=True, tooltip="The negative prompt.", **ADVANCED),
                *sampling_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="grid"),
                io.Image.Output(display_name="pictures", tooltip="Those of the grid as a batch, row by row."),
                io.String.Output(display_name="report", tooltip="The settings of every picture."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> int:
        return times_run_again(cls.hidden.unique_id)

    @classmethod
    def execute(cls, model, clip, vae, concepts, text, columns, rows, negative, seed, **settings) -> io.NodeOutput:
        sampling, node_id = Sampling(**settings), cls.hidden.unique_id
        across = _axis("columns", columns["columns"], columns.get("values", ""), concepts, text)
        down = _axis("rows", rows["rows"], rows.get("values", ""), concepts, text)
        cells = grid_cells(across, down, concepts, text)
        progress, pictures, shown, grid = Progress(len(cells), node_id), [], [], None
        try:
            for cell in cells:
                models = apply_to_model(model, cell.uses), apply_to_clip(clip, cell.uses)
                pictures.append(sampling.paint(*models, vae, cell.prompt, negative, seed))
                shown += native(pictures[-1])
                grid = _grid(across, down, shown)
                progress.update(len(pictures), f"picture {len(pictures)} of {len(cells)}", grid)
        except Cancelled:
            if not pictures:
                raise
            run_again(node_id)
        report = _report(cells, pictures, sampling, negative, seed)
        shown_on_node = {
            **ui.PreviewImage(as_image(grid)).as_dict(),
            "perfusion_sweep": [_geometry(across, down, concepts, shown, grid)],
        }
        return io.NodeOutput(as_image(grid), torch.cat(pictures), report, ui=shown_on_node)


@dataclass(frozen=True)
class Axis:
    """What changes along one side of a grid: a setting with numbers, "concept" with uses or "prompt" with texts."""

    kind: str
    values: Sequence[Any]

    @property
    def plain_values(self) -> list[Any]:
        """With triggers in place of uses."""
        return [use.concept.trigger for use in self.values] if self.kind == _CONCEPT else list(self.values)

    @property
    def labels(self) -> list[str]:
        return [f"{self.kind} {value:g}" if self.kind in _NUMBERS else value for value in self.plain_values]


@dataclass(frozen=True)
class Cell:
    """What one picture of a grid is made with."""

    uses: tuple[ConceptUse, ...]
    prompt: str


def grid_cells(across: Axis, down: Axis, concepts: Sequence[ConceptUse], text: str) -> list[Cell]:
    """The pictures of a grid, row by row. Raises ValueError for too many, and for concepts that no prompt names."""
    kinds = {across.kind, down.kind}
    if len(kinds) == 1:
        raise ValueError(f"Columns and rows are both {across.kind}. Choose something else for one of them.")
    if (count := len(across.values) * len(down.values)) > MANY:
        raise ValueError(
            f"{len(across.values)} columns and {len(down.values)} rows are {count} pictures; a grid has at most {MANY}."
        )
    cells = [
        _cell({down.kind: below, across.kind: beside}, concepts, text)
        for below in down.values
        for beside in across.values
    ]
    named = {use.concept.trigger for cell in cells for use in cell.uses if has_trigger(cell.prompt, use.concept)}
    missing = [use.concept.trigger for use in concepts if use.concept.trigger not in named]
    if missing and (_CONCEPT in kinds or not named):
        raise ValueError(f"No prompt names {' or '.join(missing)}. Write the trigger, or {{}} in its place.")
    return cells


def _cell(settings: Mapping[str, Any], concepts: Sequence[ConceptUse], text: str) -> Cell:
    changes = dict(settings)
    uses = (changes.pop(_CONCEPT),) if _CONCEPT in changes else concepts
    prompt = with_triggers(changes.pop(_PROMPT, text), [use.concept for use in uses])
    return Cell(tuple(use.replace(**changes) for use in uses), prompt)


def _axis_input(name: str, first: str, tooltip: str) -> io.DynamicCombo.Input:
    values = {
        kind: io.String.Input("values", default=numbers, tooltip="Numbers with commas between them.")
        for kind, numbers in _NUMBERS.items()
    }
    kinds = sorted([*_NUMBERS, _CONCEPT, _PROMPT], key=lambda kind: kind != first)
    options = [io.DynamicCombo.Option(kind, [values[kind]] if kind in values else []) for kind in kinds]
    return io.DynamicCombo.Input(name, options=options, tooltip=tooltip)


def _axis(name: str, kind: str, values: str, concepts: Sequence[ConceptUse], text: str) -> Axis:
    """Raises ValueError for numbers that are none, or beyond what the setting can be."""
    if kind == _CONCEPT:
        return Axis(kind, concepts)
    if kind == _PROMPT:
        return Axis(kind, _not_empty(name, prompt_lines(text), "Write prompts, one on each line of text."))
    words = [word for word in map(str.strip, values.split(",")) if word]
    numbers = [_number(name, kind, word) for word in words]
    return Axis(kind, _not_empty(name, numbers, f"Write numbers with commas between them, such as {_NUMBERS[kind]}."))


def _not_empty(name: str, values: list, advice: str) -> list:
    if not values:
        raise ValueError(f"There is nothing in {name}. {advice}")
    return values


def _number(name: str, kind: str, word: str) -> float:
    (widget,) = (widget for widget in use_inputs() if widget.id == kind)
    try:
        number = float(word)
    except ValueError:
        number = float("nan")
    if not widget.min <= number <= widget.max:
        raise ValueError(f"{name} has {word!r}; {kind} is a number from {widget.min:g} to {widget.max:g}.")
    return number


def _grid(across: Axis, down: Axis, pictures: Sequence[Image.Image]) -> Image.Image:
    """With blanks where there are no pictures yet; all are squares of one size."""
    width = len(across.values)
    rows = [(label, pictures[i * width : (i + 1) * width]) for i, label in enumerate(down.labels)]
    return contact_sheet(across.labels, rows, pictures[0].width)


def _geometry(
    across: Axis, down: Axis, concepts: Sequence[ConceptUse], pictures: Sequence[Image.Image], grid: Image.Image
) -> dict[str, Any]:
    """What web/grid.js makes cells to click of: what each was made with and where in the grid it is, in pixels."""
    return {
        "columns": {"kind": across.kind, "values": across.plain_values},
        "rows": {"kind": down.kind, "values": down.plain_values},
        "triggers": [use.concept.trigger for use in concepts],
        "pictures": len(pictures),
        "size": grid.size,
        "cell": pictures[0].width,
        "gap": GAP,
    }


def _report(cells: Sequence[Cell], pictures: Sequence[Tensor], sampling: Sampling, negative: str, seed: int) -> str:
    height, width = pictures[0].shape[1:3]
    lines = [
        f"{len(pictures)} of {len(cells)} pictures, {width}x{height}, seed {seed}, {sampling.steps} steps, cfg "
        f"{sampling.cfg:g}, {sampling.sampler}, {sampling.scheduler}, negative prompt {negative!r}"
    ]
    for number, cell in enumerate(cells[: len(pictures)], 1):
        uses = "; ".join(
            f"{use.concept.trigger} beta {use.beta:g}, temperature {use.temperature:g}, key_lock {use.key_lock:g}, "
            f"strength {use.strength:g}"
            for use in cell.uses
        )
        lines.append(f"{number}. {cell.prompt!r}: {uses}")
    return "\n".join(lines)
