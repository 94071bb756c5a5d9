"""Several concepts in one picture, kept apart, and where each of them was found."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from einops import rearrange

from .host.apart import APART, KeepApart
from .host.model import concepts_on, keep_apart
from .host.uses import ConceptUse
from .pictures import contact_sheet, thumbnails
from .plots import as_image, heat_overlay
from .schema import INSPECT, USE

_GRID = 250  # pixels on a side of a box's mask


class PerfusionKeepApart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionKeepApart",
            display_name="Perfusion Keep Apart",
            category=USE,
            description="Keeps concepts in one picture from taking on each other's looks: while the picture is made, "
            "it finds where each of them is, and there the others do not act.",
            search_aliases=["several characters", "multiple characters", "bleeding", "regional"],
            inputs=[
                io.Model.Input("model", tooltip="With two concepts or more, from Perfusion Loader or Perfusion Apply."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How much of the others' looks is kept out. 0 is off.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Until when: 0 is the first step, which makes the layout, 1 the last, which makes detail.",
                ),
                io.Custom("ARRAY").Input(
                    "boxes",
                    optional=True,
                    tooltip="The elements of Create Bounding Boxes, to say yourself where concepts are: write the "
                    "trigger into the description of its box. Concepts without a box are found.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, strength, end_percent, boxes=None) -> io.NodeOutput:
        placed = _in_boxes(concepts_on(model), boxes or [])
        return io.NodeOutput(keep_apart(model, KeepApart(strength, end_percent), placed))


class PerfusionRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionRegions",
            display_name="Perfusion Regions",
            category=INSPECT,
            description="Shows where Perfusion Keep Apart found each concept in a picture, and hands it on as masks.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the picture was sampled with, behind Keep Apart."),
                io.Latent.Input("samples", tooltip="What KSampler made with this model."),
                io.Image.Input("image", tooltip="The same, decoded."),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Where each concept is, 1 inside: one after the other as they were loaded, and of each all "
                    "pictures.",
                ),
                io.Image.Output(display_name="overlay"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, samples, image) -> io.NodeOutput:
        apart = model.get_attachment(APART)
        if apart is None:
            raise ValueError("There is no Perfusion Keep Apart on this model: put one behind the loaders.")
        found = apart.found_in(samples["samples"])
        if found is None:
            raise ValueError(
                "No regions are known for this LATENT. Connect it from the KSampler that has this very model, with no "
                "node in between; the model needs two concepts or more, and Keep Apart a strength above 0."
            )
        regions = rearrange(found.regions, "concept picture frame h w -> concept (picture frame) h w")
        masks = F.interpolate(regions, tuple(image.shape[1:3]), mode="bilinear").clamp(0, 1)
        pictures = thumbnails(image)
        rows = [
            (f"{number}", [picture, *(heat_overlay(picture, mask) for mask in masks[:, number - 1])])
            for number, picture in enumerate(pictures, 1)
        ]
        sheet = as_image(contact_sheet(["picture", *found.triggers], rows))
        return io.NodeOutput(masks.flatten(0, 1), sheet, ui=ui.PreviewImage(sheet))


def _in_boxes(uses: tuple[ConceptUse, ...], boxes: list[dict]) -> list[ConceptUse]:
    """The uses that have boxes, elements of the host's Create Bounding Boxes, as their masks. Raises ValueError."""
    by_trigger = {use.concept.trigger.lower(): use for use in uses}
    masks: dict[str, torch.Tensor] = {}
    for box in boxes:
        trigger = str(box.get("desc", "")).strip().lower()
        if trigger not in by_trigger:
            known = ", ".join(use.concept.trigger for use in uses) or "no concept yet: put this node behind the loaders"
            said = f"says {trigger!r}" if trigger else "has no description"
            raise ValueError(f"A box {said}. Write a trigger into each box's description. This model knows {known}.")
        top, left, bottom, right = (round(side / 1000 * _GRID) for side in box["bbox"])
        mask = masks.setdefault(trigger, torch.zeros(1, _GRID, _GRID))
        mask[:, top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return [by_trigger[trigger].replace(mask=mask) for trigger, mask in masks.items()]
