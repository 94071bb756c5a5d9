"""What is in a concept, and how to set it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import BytesIO

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..perfusion_core import Concept, ConceptSet
from ..perfusion_core.concept_file import recommended_settings
from ..perfusion_core.edit import BETA
from .host import thumbnail
from .host.uses import ConceptUse, stages
from .plots import as_image, gate_curve
from .schema import INSPECT, Concepts

# How open a gate may be on unrelated words and on the superclass word, and should be on the concept's own, as logits.
_LEAK, _SUPERCLASS, _OWN = (math.log(gate / (1 - gate)) for gate in (0.05, 0.5, 0.8))


class PerfusionConceptInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionConceptInfo",
            display_name="Perfusion Concept Info",
            category=INSPECT,
            description="Tells you what is in a concept and suggests a beta for it. The picture shows how much of it "
            "its trigger, the plain word and other words get.",
            inputs=[Concepts.Input("concepts", tooltip="From Perfusion Load Concept or a training.")],
            outputs=[
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="gate", tooltip="A picture for each concept."),
                io.Float.Output(
                    display_name="suggested_beta", tooltip="For the temperature that is set. Of several the highest."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, concepts) -> io.NodeOutput:
        report = "\n\n".join("\n".join(_lines(use)) for use in concepts)
        curves = torch.cat([as_image(_picture(use)) for use in concepts])
        beta = max(suggested_beta(use) for use in concepts)
        return io.NodeOutput(report, curves, beta, ui=ui.PreviewText(report))


def beta_range(concept: Concept, temperature: float) -> tuple[float, float]:
    """The lowest beta that keeps the concept out of other words, and the highest that lets it into its own.

    σ((x − β) / τ) = p at β = x − τ logit p, where x is 0 for unrelated words and 1 for the concept's own. No beta does
    both where the first is above the second.
    """
    low = max(-temperature * _LEAK, concept.superclass_similarity - temperature * _SUPERCLASS)
    return low, 1 - temperature * _OWN


def suggested_beta(use: ConceptUse) -> float:
    """What the file recommends, or else the paper, held in ``beta_range``; in 0..1."""
    recommended = (recommended_settings(use.concept.metadata) or {"beta": BETA})["beta"]
    low, high = beta_range(use.concept, use.temperature)
    return round(min(max(recommended, low), max(high, 0.0), 1.0), 2)


def _lines(use: ConceptUse) -> Iterator[str]:
    concept, metadata = use.concept, use.concept.metadata
    yield f"{concept.name}: {concept.trigger}, a {concept.superclass}, for {concept.base_model}"
    steps = f" after {metadata['steps']} steps" if "steps" in metadata else ""
    yield f"{'Saved ' + metadata['date'] if 'date' in metadata else 'Not saved yet'}{steps}."
    yield from (f"{key.capitalize()}: {metadata[key]}" for key in ("notes", "covariance") if metadata.get(key))
    if settings := recommended_settings(metadata):
        yield "Its file recommends " + ", ".join(f"{name} {value:g}" for name, value in settings.items()) + "."
    if concept.key_outputs is not None:
        yield "Keys are its own: where it goes was learned, too."
    elif concept.key_freedom:
        yield (
            f"Keys are {concept.key_freedom:.0%} its own and {1 - concept.key_freedom:.0%} locked to the word "
            f"{concept.superclass}."
        )
    else:
        yield f"Keys are locked to the word {concept.superclass}: it goes where a {concept.superclass} would."
    yield (
        f"Lengths: its encoding {concept.target_input.norm():.1f}, that of {concept.superclass} "
        f"{concept.superclass_input.norm():.1f}; of what it looks like {_lengths(concept)}."
    )
    own, superclass, unrelated = (f"{gate:.1%}" for gate in _gates(use))
    yield (
        f"At beta {use.beta:.2f} and temperature {use.temperature:.2f} its gate is {own} open on {concept.trigger}, "
        f"{superclass} on {concept.superclass} and {unrelated} on unrelated words."
    )
    yield _suggestion(use)


def _lengths(concept: Concept) -> str:
    """The lengths of the value deltas, by stage of the UNet and of the three layers where they are longest."""
    lengths = {layer: delta.norm().item() for layer, delta in concept.value_deltas.items()}
    by_stage: dict[str, float] = {}
    for layer, stage in stages(lengths).items():
        by_stage[stage] = math.hypot(by_stage.get(stage, 0.0), lengths[layer])
    longest = sorted(lengths, key=lengths.__getitem__, reverse=True)[:3]
    layers = ", ".join(f"{layer.removesuffix('.attn2')} {lengths[layer]:.1f}" for layer in longest)
    return ", ".join(f"{stage} {length:.1f}" for stage, length in by_stage.items()) + f", most in {layers}"


def _gates(use: ConceptUse) -> list[float]:
    """How open the gate is on the concept's own encoding, on the superclass's and on one unlike it."""
    concept = use.concept
    words = torch.stack([concept.target_input, concept.superclass_input, torch.zeros_like(concept.target_input)])
    return ConceptSet([concept], use.beta, use.temperature).gates(words[None]).flatten().tolist()


def _suggestion(use: ConceptUse) -> str:
    concept, (low, high) = use.concept, beta_range(use.concept, use.temperature)
    if low <= high:
        return (
            f"Suggested beta at this temperature: {suggested_beta(use):.2f}, from {low:.2f} to {high:.2f}. Lower, it "
            f"gets into other words; higher, it hardly gets into {concept.trigger}. Words differ a little with those "
            "around them: Perfusion Gate Map shows a prompt."
        )
    alike = concept.superclass_similarity
    temperature = min(1 / (_OWN - _LEAK), (1 - alike) / (_OWN - _SUPERCLASS))
    if temperature < 0.01:
        return (
            f"No beta tells its trigger from other words: {concept.superclass} is {alike:.2f} like it, where its own "
            "encoding is 1. Train it longer."
        )
    lower = math.floor(temperature * 100) / 100
    return (
        f"At this temperature no beta keeps it out of unrelated words and of {concept.superclass}, which is "
        f"{alike:.2f} like it, and lets it into {concept.trigger}. Lower the temperature to {lower:.2f}."
    )


def _picture(use: ConceptUse) -> Image.Image:
    concept, (low, high) = use.concept, beta_range(use.concept, use.temperature)
    words = {"unrelated words": 0.0, concept.superclass: concept.superclass_similarity, concept.trigger: 1.0}
    content = thumbnail.decoded(concept.metadata)
    return gate_curve(
        use.beta,
        use.temperature,
        words,
        (low, high) if low <= high else None,
        Image.open(BytesIO(content)) if content else None,
    )
