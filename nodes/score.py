"""How good pictures are, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core.checkpoints import harmonic_mean
from ..perfusion_core.openclip import ImageTextModel, load_image_text_model
from .host.batches import batches_of
from .host.scorers import chosen_scorer, scorer_input, scorer_path
from .prompts import prompt_lines, with_superclasses
from .schema import INSPECT, Concepts


class PerfusionScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionScore",
            display_name="Perfusion Score",
            category=INSPECT,
            description="How alike pictures are to photos of your subject (CLIP-I) and to what their prompts say "
            "(CLIP-T), by an image-text model of yours.",
            search_aliases=["clip score", "open_clip"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="What is judged, as a batch or a list of any sizes."),
                io.Image.Input("photos", optional=True, tooltip="Your photos of the subject, for CLIP-I."),
                Concepts.Input(
                    "concepts",
                    optional=True,
                    tooltip="Triggers of these in the prompts are read as their superclass words, which a judge knows.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    optional=True,
                    tooltip="What the pictures are to show, for CLIP-T: one line for all, or a line for each picture.",
                ),
                scorer_input(),
            ],
            outputs=[
                io.Float.Output(display_name="clip_i", tooltip="Mean over the pictures; NaN without photos."),
                io.Float.Output(display_name="clip_t", tooltip="Mean over the pictures; NaN without prompts."),
                io.Float.Output(display_name="harmonic_mean", tooltip="Of both; NaN without one of them."),
                io.String.Output(display_name="report", tooltip="The scores of every picture."),
            ],
        )

    @classmethod
    def execute(cls, scorer, pictures, photos=(), concepts=(), prompts=()) -> io.NodeOutput:
        known = [use.concept for uses in concepts for use in uses]
        texts = [with_superclasses(line, known) for text in prompts for line in prompt_lines(text)]
        pictures, photos = batches_of(pictures), batches_of(photos)
        count = sum(map(len, pictures))
        if not photos and not texts:
            raise ValueError("There is nothing to compare the pictures to. Connect photos, write prompts, or both.")
        if len(texts) not in (0, 1, count):
            raise ValueError(
                f"There are {len(texts)} prompts for {count} pictures. Write one for all, or one for each."
            )
        name = chosen_scorer(scorer[0])
        model = load_image_text_model(scorer_path(name))
        seen, scores = _embedded(model, pictures), {}
        if photos:
            scores["CLIP-I"] = (seen @ _embedded(model, photos).T).mean(1).tolist()
        if texts:
            scores["CLIP-T"] = (seen * model.embed_texts(texts)).sum(1).tolist()
        image, text = (fmean(scores[kind]) if kind in scores else math.nan for kind in ("CLIP-I", "CLIP-T"))
        both = harmonic_mean(image, text) if len(scores) == 2 else math.nan
        report = _report(name, scores, texts, both)
        return io.NodeOutput(image, text, both, report, ui=ui.PreviewText(report))


def _embedded(model: ImageTextModel, batches: Sequence[Tensor]) -> Tensor:
    """(n, d) unit vectors of batches (b, height, width, channels), each of its own size."""
    return torch.cat([model.embed_images(batch[..., :3]) for batch in batches])


def _report(scorer: str, scores: Mapping[str, Sequence[float]], texts: Sequence[str], both: float) -> str:
    rows = [["picture", *scores]]
    pictures = enumerate(zip(*scores.values(), strict=True), 1)
    rows += [[str(number), *(f"{score:.4f}" for score in row)] for number, row in pictures]
    rows.append(["mean", *(f"{fmean(values):.4f}" for values in scores.values())])
    lines = ["  ".join([row[0].ljust(7), *row[1:]]) for row in rows]
    if len(texts) == len(lines) - 2:
        lines[1:-1] = [f"{line}  {text}" for line, text in zip(lines[1:-1], texts, strict=True)]
    if not math.isnan(both):
        lines.append(f"harmonic mean of both  {both:.4f}")
    return "\n".join([f"By {scorer}:", *lines])
