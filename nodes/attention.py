"""Where in the picture a concept's trigger looks."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core import Concept
from .host.attention import check_watchable, paint_watched, without_concepts
from .host.progress import Progress
from .host.sampling import Sampling
from .host.text import concept_uses
from .pictures import contact_sheet, thumbnails
from .plots import as_image, heat_overlay
from .schema import INSPECT, sampling_inputs


class PerfusionAttentionMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionAttentionMap",
            display_name="Perfusion Attention Map",
            category=INSPECT,
            description="Shows where in the picture each trigger of a prompt looks, next to where the plain word looks "
            "without the concept. Brightest is where it looks most.",
            inputs=[
                io.Model.Input("model", tooltip="From Perfusion Loader or Perfusion Apply."),
                io.Clip.Input("clip", tooltip="From the same node as the model."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="A prompt with one trigger or several."
                ),
                io.String.Input("negative", multiline=True, dynamic_prompts=True, tooltip="The negative prompt."),
                *sampling_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="maps", tooltip="A row for every trigger in the prompt."),
                io.Image.Output(display_name="picture", tooltip="The prompt's picture, as KSampler makes it."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Where each trigger looks, one mask after the other in the order of the text: 1 where it "
                    "looks most, 0 where least.",
                ),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, text, negative, seed, **settings) -> io.NodeOutput:
        check_watchable(model, clip, text)
        sampling, progress = Sampling(**settings), Progress(2, cls.hidden.unique_id)
        picture, maps = paint_watched(model, clip, vae, sampling, text, negative, seed)
        progress.update(1, "with the concept")
        plain_picture, plain_maps = paint_watched(*without_concepts(model, clip), vae, sampling, text, negative, seed)
        concepts = {use.concept.trigger.lower(): use.concept for use in concept_uses(clip)}
        rows, report, words = [], [], []
        for trigger, attention in maps.items():
            concept, cells = concepts[trigger], []
            for image, heat in ((picture, attention), (plain_picture, plain_maps[trigger])):
                (thumbnail,) = thumbnails(image)
                cells += [thumbnail, heat_overlay(thumbnail, _stretched(heat)[0])]
            rows.append((f"{concept.trigger} ({concept.superclass})", cells))
            report.append(_sentence(concept, attention, plain_maps[trigger]))
            words.append(f"{concept.trigger} {attention.mean():.1%}")
        columns = ["with the concept", "where the trigger looks", "without the concept", "where the superclass looks"]
        progress.update(2, f"attention: {', '.join(words)}")
        sheet, masks = as_image(contact_sheet(columns, rows)), _stretched(torch.cat(list(maps.values())))
        return io.NodeOutput(sheet, picture, masks, "\n".join(report), ui=ui.PreviewImage(sheet))


def _stretched(maps: Tensor) -> Tensor:
    """Maps (n, height, width), each from 0 where it is lowest to 1 where it is highest."""
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp_min(torch.finfo(maps.dtype).tiny)


def _sentence(concept: Concept, attention: Tensor, plain: Tensor) -> str:
    alike = torch.corrcoef(torch.stack([attention.flatten(), plain.flatten()]))[0, 1]
    return (
        f"{concept.trigger} has {attention.mean():.1%} of the attention, {attention.max():.1%} at its strongest spot; "
        f"{concept.superclass} in the model without it {plain.mean():.1%}, {plain.max():.1%}. "
        f"They look at the same places by {alike:.2f} (1 is the same, 0 unrelated)."
    )
