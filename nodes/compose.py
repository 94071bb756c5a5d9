"""Concepts as values in the graph: load, set, combine and apply them in separate steps."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..perfusion_core import ConceptSet, load_concept
from ..perfusion_core.edit import BETA, TEMPERATURE
from .host.batches import masks_of
from .host.files import concept_path, concept_stamp
from .host.model import apply_to_model, concepts_on
from .host.progress import warn_of_clashes
from .host.text import apply_to_clip
from .host.uses import EASINGS, ConceptUse, combine, concept_set
from .plots import as_image, heat_map
from .schema import USE, Concepts, concept_input, span_inputs, use_inputs

MANY = 16  # concepts that can be combined in one node; outputs of such nodes can be combined again
MIXED, TOUCHED = 0.95, 0.7  # how alike two concepts must be to be worth a word


class PerfusionLoadConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionLoadConcept",
            display_name="Perfusion Load Concept",
            category=USE,
            description="Reads a concept file, with the settings it is to be used with. Perfusion Loader does this and "
            "Perfusion Apply in one.",
            inputs=[concept_input(), *use_inputs()],
            outputs=[Concepts.Output(display_name="concepts")],
        )

    @classmethod
    def fingerprint_inputs(cls, concept: str, **kwargs) -> str:
        return concept_stamp(concept)

    @classmethod
    def execute(cls, concept, **settings) -> io.NodeOutput:
        return io.NodeOutput((ConceptUse(load_concept(concept_path(concept)), file=concept, **settings),))


class PerfusionConceptSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionConceptSettings",
            display_name="Perfusion Concept Settings",
            category=USE,
            description="Sets how concepts are used, such as one that was just trained.",
            inputs=[
                Concepts.Input("concepts", tooltip="All of these get the settings below."),
                *use_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where in the picture the concepts act. Outside, their triggers mean the superclass. "
                    "Without a mask they act everywhere.",
                ),
            ],
            outputs=[Concepts.Output(display_name="concepts")],
        )

    @classmethod
    def execute(cls, concepts, mask=None, **settings) -> io.NodeOutput:
        region = None if mask is None else torch.stack(masks_of([mask]))
        if region is not None and not torch.isfinite(region).all():
            raise ValueError("The mask holds NaN. Look at the node that makes it.")
        return io.NodeOutput(tuple(use.replace(mask=region, **settings) for use in concepts))


class PerfusionSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def end(name: str, default: float, low: float) -> io.Input:
            tooltip = f"Where {name} is at end_percent. At start_percent it is as the concepts come."
            return io.Float.Input(f"{name}_end", default=default, min=low, max=1.0, step=0.01, tooltip=tooltip)

        return io.Schema(
            node_id="PerfusionSchedule",
            display_name="Perfusion Schedule",
            category=USE,
            description="Lets beta and temperature change while sampling: high beta first and low beta last leaves the "
            "layout to the prompt and takes the look from the concept.",
            inputs=[
                Concepts.Input("concepts", tooltip="All of these follow the schedule."),
                *span_inputs(),
                end("beta", BETA, 0.0),
                end("temperature", TEMPERATURE, 0.01),
                io.Combo.Input("easing", options=list(EASINGS), tooltip="The way from start to end."),
            ],
            outputs=[Concepts.Output(display_name="concepts")],
        )

    @classmethod
    def execute(cls, concepts, **settings) -> io.NodeOutput:
        return io.NodeOutput(tuple(use.replace(**settings) for use in concepts))


class PerfusionCombineConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        one = Concepts.Input("concepts", optional=True, tooltip="From Perfusion Load Concept, or combined before.")
        return io.Schema(
            node_id="PerfusionCombineConcepts",
            display_name="Perfusion Combine Concepts",
            category=USE,
            description="Puts concepts together for one Perfusion Apply, and tells you which of them would mix. The "
            "order does not matter; of two with the same trigger the later one counts.",
            inputs=[
                io.Autogrow.Input(
                    "sets",
                    template=io.Autogrow.TemplatePrefix(one, "concepts_", min=2, max=MANY),
                    tooltip="Another input appears when the last one is connected.",
                )
            ],
            outputs=[
                Concepts.Output(display_name="concepts"),
                io.Image.Output(display_name="overlap", tooltip="How alike each two are: 1 is the same, 0 unrelated."),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, sets: io.Autogrow.Type) -> io.NodeOutput:
        given = [use for concepts in sets.values() if concepts for use in concepts]
        uses = combine((), given)
        if not uses:
            raise ValueError("There is no concept to combine: connect at least one whose strength is not 0.")
        concepts = concept_set(uses)
        triggers = [use.concept.trigger for use in uses]
        picture = heat_map(triggers, concepts.overlap().tolist())
        report = "\n".join([*warn_of_clashes(given, cls.hidden), overlap_report(concepts)])
        return io.NodeOutput(uses, as_image(picture), report, ui=ui.PreviewText(report))


class PerfusionApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionApply",
            display_name="Perfusion Apply",
            category=USE,
            description="Teaches the model and the text encoder these concepts; write their triggers in a prompt.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model the concepts were trained on."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint, for your prompts."),
                Concepts.Input("concepts", tooltip="Those of earlier Perfusion nodes stay."),
                io.Combo.Input(
                    "merging",
                    options=["exact", "independent"],
                    tooltip="Leave it at exact. independent treats each concept as if it were alone, so that alike "
                    "ones count twice and act on each other's words: the paper's approximation, to compare.",
                ),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, concepts, merging) -> io.NodeOutput:
        warn_of_clashes([*concepts_on(model), *concepts], cls.hidden)
        return io.NodeOutput(apply_to_model(model, concepts, joint=merging == "exact"), apply_to_clip(clip, concepts))


def overlap_report(concepts: ConceptSet) -> str:
    """A line on every two concepts, most alike first."""
    triggers = [concept.trigger for concept in concepts.concepts]
    if len(triggers) == 1:
        return f"{triggers[0]} is alone."
    overlap = concepts.overlap()
    pairs = [(overlap[j, k].item(), j, k) for j in range(len(triggers)) for k in range(j)]
    lines = []
    for shared, j, k in sorted(pairs, reverse=True):
        verdict = (
            "they will mix" if shared > MIXED else "they may mix a little" if shared > TOUCHED else "they keep apart"
        )
        lines.append(f"{triggers[k]} and {triggers[j]} overlap {shared:.2f}: {verdict}")
    return "\n".join(lines)
