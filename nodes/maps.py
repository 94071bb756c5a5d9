"""Nodes that show what concepts do, and on which words."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from .host.text import concept_uses, encoding_of_layers, token_labels
from .host.uses import concept_set
from .pictures import word_map
from .plots import as_image
from .schema import INSPECT, NEEDS_MODEL

NOTICED = 0.05  # how open a gate must be to be named


class PerfusionGateMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionGateMap",
            display_name="Perfusion Gate Map",
            category=INSPECT,
            description="Shows which words of a prompt each concept changes: 0 not at all, 1 completely.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Perfusion Loader or Perfusion Apply."),
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt."),
                io.Model.Input("model", optional=True, tooltip=NEEDS_MODEL),
            ],
            outputs=[io.Image.Output(display_name="map"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, clip, text, model=None) -> io.NodeOutput:
        uses = concept_uses(clip)
        tokens = clip.tokenize(text)
        with torch.no_grad():
            encoding = encoding_of_layers(clip, tokens, model)
        positions, words = zip(*token_labels(clip, tokens, encoding.shape[1]), strict=True)
        gates = concept_set(uses).gates(encoding.float().cpu())[0, list(positions)].T.tolist()  # (concepts, words)
        triggers = [use.concept.trigger for use in uses]
        report = "\n".join(_sentence(trigger, words, row) for trigger, row in zip(triggers, gates, strict=True))
        rows = zip(triggers, gates, strict=True)
        picture = word_map([(f"{trigger} acts on", list(zip(words, row, strict=True))) for trigger, row in rows])
        shown = {**ui.PreviewText(report).as_dict(), **ui.PreviewImage(as_image(picture)).as_dict()}
        return io.NodeOutput(as_image(picture), report, ui=shown)


def _sentence(trigger: str, words: tuple[str, ...], gates: list[float]) -> str:
    found = sorted(zip(gates, words, strict=True), reverse=True)
    named = ", ".join(f"{word} {gate:.2f}" for gate, word in found if gate >= NOTICED)
    missing = "" if trigger.lower() in words else " Its trigger is not in the prompt."
    return f"{trigger} acts on {named or 'no word'}.{missing}"
