"""Concept files: load one onto a model, save a trained one."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..perfusion_core import load_concept, save_concept
from .host import trainings
from .host.files import (
    FOLDER,
    concept_path,
    concept_stamp,
    model_folder,
    name_of,
    path_to_save,
    save_with_training,
    stamp,
)
from .host.model import apply_to_model, concepts_on
from .host.progress import warn_of_clashes
from .host.text import apply_to_clip
from .host.thumbnail import KEY, encoded
from .host.uses import ConceptUse
from .pictures import thumbnails
from .schema import ADVANCED, TRAIN, USE, Concepts, concept_input, use_inputs


class PerfusionLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionLoader",
            display_name="Perfusion Loader",
            category=USE,
            description="Teaches the model and the text encoder a concept; write its trigger in a prompt. "
            "Loaders in a row combine their concepts.",
            search_aliases=["perfusion", "concept", "key-locked rank one editing"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion model the concept was trained on: SD1.x, SD2.x, SDXL, Anima, "
                    "Cosmos-Predict2, Wan, LTX-Video or PixArt. Experimental: Qwen-Image, Z-Image, Lumina 2, Flux, "
                    "Flux 2 Klein and SD3.",
                ),
                io.Clip.Input(
                    "clip", tooltip="The text encoder of the same checkpoint. Use the output for your prompts."
                ),
                concept_input(),
                *use_inputs(),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, concept: str, **kwargs) -> str:
        return concept_stamp(concept)

    @classmethod
    def execute(cls, model, clip, concept, **settings) -> io.NodeOutput:
        use = ConceptUse(load_concept(concept_path(concept)), file=concept, **settings)
        applied = apply_to_model(model, [use]), apply_to_clip(clip, [use])  # which refuse what does not fit
        warn_of_clashes([*concepts_on(model), use], cls.hidden)
        return io.NodeOutput(*applied)


class PerfusionSaveConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionSaveConcept",
            display_name="Perfusion Save Concept",
            category=TRAIN,
            description=f"Writes a trained concept to models/{FOLDER}, where Perfusion Loader finds it.",
            inputs=[
                Concepts.Input("concept", tooltip="What Perfusion Train Concept learned."),
                io.String.Input(
                    "filename",
                    tooltip="Name of the file. Empty: the trigger's name. Subfolders are allowed: toys/my-teddy.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace a file of this name. Off: a number is added instead.",
                ),
                io.Boolean.Input(
                    "keep_training",
                    default=True,
                    tooltip=f"Also keep what is needed to train on from here exactly, in models/{FOLDER}/training. It "
                    "is some five times as large as the concept and needed for nothing else.",
                    **ADVANCED,
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip="A picture to know the concept by, kept in its file; of several the first. Without: a "
                    "sample of the training.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The file that was written."),
                io.Combo.Output(
                    display_name="concept", tooltip="The same for a Loader's concept: it loads what is new."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, concept, filename, overwrite, keep_training=True, thumbnail=None) -> io.NodeOutput:
        if len(concept) != 1:
            raise ValueError(f"A file holds one concept, these are {len(concept)}: connect them one by one.")
        (use,) = concept
        filename = filename.strip() or name_of(use.concept.trigger)
        course = trainings.find(use.course)
        path = (course and course.saved_as(filename)) or path_to_save(filename, overwrite)
        try:
            concept = use.concept.replace(name=path.stem)
            if thumbnail is not None:
                picture = encoded(thumbnails(thumbnail[:1])[0], concept.base_model)
                concept = concept.replace(metadata={**concept.metadata, KEY: picture})
            if keep_training and use.training is not None:
                save_with_training(concept, use.training, path)
            else:
                save_concept(concept, path)
        except OSError as error:
            raise RuntimeError(
                f"The concept could not be written to {path} ({error}). Make room on the disk or choose another "
                "folder, then queue again: the training is not repeated. A file that was there is untouched."
            ) from error
        if course:
            course.saved[filename] = path, stamp([path])
        file, kib = str(path.relative_to(model_folder(path))), path.stat().st_size / 1024
        words = ui.PreviewText(f"{path} ({kib:.0f} KB), trigger {use.concept.trigger}").as_dict()
        return io.NodeOutput(str(path), file, ui={**words, "perfusion_saved": [{"file": file, "training": use.course}]})
