"""Concepts from and for other programs."""

from __future__ import annotations

import re

import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core.captions import captions
from ..perfusion_core.concept import plain_words
from ..perfusion_core.concept_file import safetensors_bytes, write_together
from ..perfusion_core.exchange import load_perfusion_pytorch, rank_one_update
from .host.families import family_of
from .host.files import FOLDER, IMPORTS, foreign_names, foreign_path, foreign_stamp, name_of, paths_to_save
from .host.lora import embedding_tensors, lora_names, projector
from .host.model import check_fits, value_widths
from .host.text import START, apply_to_clip, token_labels
from .host.uses import ConceptUse, concept_set, stages
from .schema import EXCHANGE, Concepts

CAPTIONS = 32  # on which the leak is measured
_UNWRITABLE = r"[\s()\[\]{}:,]"  # in embedding:name


class PerfusionImportConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = f"models/{FOLDER}/{IMPORTS}"
        return io.Schema(
            node_id="PerfusionImportConcept",
            display_name="Perfusion Import Concept",
            category=EXCHANGE,
            description=f"Reads a concept that lucidrains' perfusion-pytorch saved, from {folder}. Perfusion Save "
            "Concept makes a small concept file of it.",
            inputs=[
                io.Model.Input("model", tooltip="Of the checkpoint family that the concept was trained on."),
                io.Combo.Input(
                    "file",
                    options=foreign_names(IMPORTS),
                    tooltip=f"A .pt, .pth or .bin file from {folder}. Press R to refresh the list.",
                ),
                io.String.Input(
                    "trigger",
                    default="<my-teddy>",
                    tooltip="The word for the concept, which such files do not hold. For a file of several concepts "
                    "as many words, separated by commas.",
                ),
                io.String.Input(
                    "superclass",
                    default="teddy",
                    tooltip="The plain word that the concept is a kind of, in English. Several are separated by "
                    "commas.",
                ),
            ],
            outputs=[Concepts.Output(display_name="concepts")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_) -> str:
        return foreign_stamp(IMPORTS, file)

    @classmethod
    def execute(cls, model, file, trigger, superclass) -> io.NodeOutput:
        triggers = [word.strip() for word in trigger.split(",")]
        superclasses = [plain_words(word) for word in superclass.split(",")]
        if len(triggers) != len(superclasses):
            raise ValueError(
                f"There are {len(triggers)} triggers and {len(superclasses)} superclasses. Give one for each."
            )
        layers = value_widths(model)
        words = list(zip(triggers, superclasses, strict=True))
        concepts = load_perfusion_pytorch(foreign_path(IMPORTS, file), layers, words)
        for concept in concepts:
            check_fits(concept, model)
        return io.NodeOutput(tuple(map(ConceptUse, concepts)))


class PerfusionExportLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionExportLoRA",
            display_name="Perfusion Export LoRA",
            category=EXCHANGE,
            description="Writes a concept as a LoRA and an embedding, for programs without this pack. A LoRA has no "
            "gate: it also changes other words, the more they are like the concept. The report says how much.",
            inputs=[
                io.Model.Input("model", tooltip="The model the LoRA is for, with the LoRAs it will be used with."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                Concepts.Input(
                    "concept", tooltip="One concept. Its strength is kept; beta, temperature and key lock are lost."
                ),
                io.String.Input(
                    "filename",
                    tooltip="Name of both files, without spaces. Empty: the trigger's name. Subfolders are allowed: "
                    "toys/my-teddy.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace files of this name. Off: a number is added instead."
                ),
            ],
            outputs=[io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, concept, filename, overwrite) -> io.NodeOutput:
        if len(concept) != 1:
            raise ValueError(f"A LoRA holds one concept, these are {len(concept)}: connect them one by one.")
        filename = filename.strip() or name_of(concept[0].concept.trigger)
        if found := re.search(_UNWRITABLE, filename):
            raise ValueError(
                f"The name {filename!r} contains {found.group()!r}, which prompts cannot have in embedding:name. Use "
                "letters, digits and - or _, such as my-teddy."
            )
        if reason := family_of(model).no_export:
            raise ValueError(reason)
        if concept[0].concept.has_offset:
            raise ValueError(
                "This concept has no embedding: it was trained with text_encoder set to encode once. No file for other "
                "programs can hold that. Use the concept with Perfusion Loader."
            )
        lora, embedding = paths_to_save(filename, overwrite, ["loras", "embeddings"])
        (use,) = concept
        check_fits(use.concept, model)
        leak = leak_report(clip, use)
        name = lora.relative_to(folder_paths.get_folder_paths("loras")[0]).with_suffix("").as_posix()
        metadata = {
            "modelspec.title": name,
            "modelspec.trigger_phrase": f"embedding:{name}",
            "ss_network_module": "networks.lora",
            "ss_network_dim": "1",
            "ss_network_alpha": "1",
        }
        files = {
            lora: safetensors_bytes(lora_tensors(model, use), metadata),
            embedding: safetensors_bytes(embedding_tensors(use.concept), {}),
        }
        try:
            write_together(files)
        except OSError as error:
            raise RuntimeError(
                f"The LoRA and the embedding could not be written to {lora} and {embedding} ({error}). Make room on "
                "the disk or choose another folder, then queue again. Files that were there are untouched."
            ) from error
        report = f"{lora}\n{embedding}\nLoad the LoRA and write embedding:{name} in prompts.\n\n{leak}"
        return io.NodeOutput(report, ui=ui.PreviewText(report))


def lora_tensors(model, use: ConceptUse) -> dict[str, Tensor]:
    """The tensors of a rank-1 LoRA file, in fp32, that at strength 1 is the use's edit without its gate."""
    names, tensors, at_stage = lora_names(model), {}, stages(use.concept.value_deltas)
    for (layer, projection), (up, down) in rank_one_update(use.concept, projector(model)).items():
        strength = use.at(use.start_percent, at_stage[layer]).strength
        name = names[layer, projection]
        tensors[f"{name}.lora_up.weight"] = strength * up
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


def leak_report(clip, use: ConceptUse) -> str:
    """How much of the concept its trigger, its superclass word and the words of captions get without and with the gate.

    Raises ValueError when the concept is not for this CLIP.
    """
    concept = use.concept
    clip = apply_to_clip(clip, [ConceptUse(concept)])

    def shares(text: str) -> tuple[list[str], list[tuple[float, float]]]:
        """The tokens up to the end, and of these and the padding (as LoRA, with the gate)."""
        tokens = clip.tokenize(text)
        with torch.no_grad():
            encoding = clip.encode_from_tokens(tokens).float().cpu()
        words = [word for _, word in token_labels(clip, tokens)]
        gates = concept_set([use]).gates(encoding)[0, :, 0]
        return words, list(zip(concept.similarity(encoding[0]).tolist(), gates.tolist(), strict=True))

    lines = [
        "A LoRA has no gate: it changes every word as far as it is like the concept. Shares of the concept, by the "
        f"LoRA and by this pack at beta {use.beta:.2f} and temperature {use.temperature:.2f}:"
    ]
    for word in (concept.trigger, concept.superclass):
        words, found = shares(f"a photo of a {word}")
        lines.append(f"{word}: {_pair(found[len(words) - 2])}")
    others, start = [], int(words[0] == START)  # only CLIP's texts begin with a token of their own
    for caption in captions(CAPTIONS):
        words, found = shares(caption)
        others += zip(found[start : len(words) - 1], words[start:-1], strict=True)
    widest, word = max(others, key=lambda other: abs(other[0][0]))
    average = tuple(sum(abs(share[kind]) for share, _ in others) / len(others) for kind in (0, 1))
    lines.append(f"{len(others)} words of captions: {_pair(average)} on average, at most {_pair(widest)} ({word})")
    beginning = f"start of the text: {_pair(found[0])}, its end" if start else "end of the text"
    lines.append(f"{beginning}: {_pair(found[len(words) - 1])}")
    return "\n".join(lines)


def _pair(shares: tuple[float, float]) -> str:
    return f"{shares[0]:.2f} / {shares[1]:.2f}"
