"""From photos to a concept."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping

from comfy_api.latest import io

from ..perfusion_core import Training, TrainingSettings, save_concept
from ..perfusion_core.concept import trigger_problem
from .host import text
from .host.encoder_covariance import CAPTIONS, cached_covariance, fingerprint
from .host.files import path_to_save
from .host.model import base_model, encoding_width
from .host.photos import load_photo, photo_files, photo_folders, prepare_photos
from .host.progress import Progress
from .host.trainee import open_trainee
from .host.uses import ConceptUse
from .plots import as_image, loss_curve
from .schema import ADVANCED, CATEGORY, Concepts, CovarianceType

_PREVIEW_EVERY = 10  # steps


class PerfusionLoadPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionLoadPhotos",
            display_name="Perfusion Load Photos",
            category=CATEGORY,
            description="Loads a folder of photos of one subject, of any sizes, with their masks: the file of the same "
            "name in the subfolder mask, else the picture's transparency, else everything.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=photo_folders(),
                    tooltip="A folder below ComfyUI's input directory. Press R to refresh the list.",
                )
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True),
                io.Mask.Output(display_name="masks", is_output_list=True),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        files = photo_files(folder)
        files += sorted((files[0].parent / "mask").glob("*"))
        return " ".join(f"{file.name} {file.stat().st_mtime_ns}" for file in files)

    @classmethod
    def execute(cls, folder) -> io.NodeOutput:
        images, masks = zip(*map(load_photo, photo_files(folder)), strict=True)
        return io.NodeOutput(list(images), list(masks))


class PerfusionTrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = TrainingSettings()
        return io.Schema(
            node_id="PerfusionTrainConcept",
            display_name="Perfusion Train Concept",
            category=CATEGORY,
            description="Teaches a new thing from 3 to 10 photos. Save the result with Perfusion Save Concept.",
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model to train on: SD1.x, SD2.x or SDXL. It stays as it is."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint. It stays as it is."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.Image.Input("images", tooltip="Photos of your subject, as a batch or a list of any sizes."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One soft mask per photo, white where the subject is. Without, the background is learned.",
                ),
                io.String.Input(
                    "trigger",
                    default="<my-teddy>",
                    tooltip="What you will write in prompts: a new word without spaces, best in angle brackets.",
                ),
                io.String.Input(
                    "superclass",
                    default="teddy",
                    tooltip="The plain word your subject is a kind of. It decides where the subject goes in a picture. "
                    "Of several words the last is locked.",
                ),
                io.Int.Input(
                    "steps", default=settings.steps, min=1, max=10_000, tooltip="Optimizer steps. Paper: 400."
                ),
                io.Int.Input("seed", default=0, min=0, max=2**53 - 1, tooltip="The same seed gives the same concept."),
                CovarianceType.Input(
                    "covariance",
                    optional=True,
                    tooltip="From Perfusion Covariance. Not connected: the one kept for this text encoder is used, or "
                    "made from built-in captions.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    tooltip="Photos are cropped to their middle square and scaled to this. 0: 1024 for SDXL, else 512.",
                    **ADVANCED,
                ),
                io.Int.Input(
                    "batch_size",
                    default=settings.batch_size,
                    min=1,
                    max=64,
                    tooltip="Photos at a time. Lower it when memory runs out, and raise accumulation instead.",
                    **ADVANCED,
                ),
                io.Int.Input(
                    "accumulation",
                    default=settings.accumulation,
                    min=1,
                    max=64,
                    tooltip="Batches per step. batch_size times accumulation is the effective batch. Paper: 16.",
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "flip",
                    default=True,
                    tooltip="Also learn from mirrored photos. Switch off for subjects with writing or a parting.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "learning_rate_values",
                    default=settings.learning_rate_values,
                    min=1e-6,
                    max=1.0,
                    step=0.0001,
                    tooltip="For what the subject looks like. Paper: 0.03.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "learning_rate_embedding",
                    default=settings.learning_rate_embedding,
                    min=1e-6,
                    max=1.0,
                    step=0.0001,
                    tooltip="For the trigger's own embedding. Paper: 0.006.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                Concepts.Output(display_name="concept"),
                io.Image.Output(display_name="loss_curve"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, images, trigger, superclass, steps, seed, resolution, batch_size, accumulation, flip,
        learning_rate_values, learning_rate_embedding, masks=(), covariance=(None,),
    ) -> io.NodeOutput:  # fmt: skip
        (model,), (clip,), (vae,), (trigger,), (superclass,), (flip,) = model, clip, vae, trigger, superclass, flip
        settings = TrainingSettings(
            steps=steps[0],
            seed=seed[0],
            batch_size=batch_size[0],
            accumulation=accumulation[0],
            learning_rate_values=learning_rate_values[0],
            learning_rate_embedding=learning_rate_embedding[0],
        )
        trigger, node_id = trigger.strip(), cls.hidden.unique_id
        if clip is None:
            raise ValueError("There is no text encoder: this checkpoint has none. Load one with Load CLIP.")
        _check_words(clip, trigger, superclass)
        size = resolution[0] or (1024 if encoding_width(model) == 2048 else 512)
        photos, covers = prepare_photos(images, masks, size)
        metric = covariance[0] or cached_covariance(clip, CAPTIONS, node_id)
        if metric.dim != encoding_width(model):
            raise ValueError(
                f"The covariance is {metric.dim} wide, this model's text encoding {encoding_width(model)}. "
                "Make it with Perfusion Covariance from the same checkpoint's CLIP."
            )
        metadata = _metadata(clip, metric, settings, size, flip, photos)
        with open_trainee(model, clip, vae, photos, covers, superclass, flip) as trainee:
            training = Training(trainee, metric.inverse(), trigger, superclass, base_model(model), settings)
            try:
                before = training.evaluate()
                _run(training, Progress(settings.steps, node_id))
                after = training.evaluate()
            except BaseException:  # cancel, no memory, no number: whatever it is, what was learned is kept
                _keep(training, metadata)
                raise
            concept = training.concept().replace(metadata=metadata)
        report = (
            f"{trigger}, a {superclass}: {settings.steps} steps on {len(photos)} photos at {size}x{size}"
            f"{'' if covers is not None else ', without masks'}.\n"
            f"Loss on a fixed set of noises: {before:.4f} before, {after:.4f} after.\n"
            f"Keys are locked to {text.locked_word(clip, superclass)!r}{_of_several(clip, superclass)}."
        )
        return io.NodeOutput((ConceptUse(concept),), as_image(loss_curve(training.losses)), report)


def _check_words(clip, trigger: str, superclass: str) -> None:
    if problem := trigger_problem(trigger):
        raise ValueError(f"Cannot train: {problem}.")
    text.superclass_tokens(clip, superclass)  # raises for an empty one
    if text.word_count(clip, trigger) == 1:
        raise ValueError(
            f"The trigger {trigger!r} is a word the text encoder already knows, and prompts could not use it any more. "
            f"Take a new one, such as <{trigger.strip('<>')}>."
        )


def _of_several(clip, superclass: str) -> str:
    return f", the last token of {superclass!r}" if text.word_count(clip, superclass) > 1 else ""


def _run(training: Training, progress: Progress) -> None:
    for step in range(1, training.settings.steps + 1):
        loss = training.step()
        curve = loss_curve(training.losses) if step % _PREVIEW_EVERY == 0 else None
        progress.update(step, f"step {step} of {training.settings.steps}, loss {loss:.4f}", curve)


def _keep(training: Training, metadata: Mapping[str, str]) -> None:
    """Saves what an unfinished training has learned; a failure to do so must not hide why it is unfinished."""
    if not training.losses:
        return
    steps = len(training.losses)
    try:
        path = path_to_save(f"{re.sub('[^A-Za-z0-9]+', '-', training.trigger).strip('-')}-unfinished", overwrite=False)
        save_concept(training.concept().replace(name=path.stem, metadata=metadata), path)
    except Exception:
        logging.exception("Perfusion: stopped after %d steps; what was learned could not be saved", steps)
    else:
        logging.warning("Perfusion: stopped after %d steps; what was learned is in %s", steps, path)


def _metadata(clip, covariance, settings: TrainingSettings, size: int, flip: bool, photos) -> dict[str, str]:
    return {
        "text_encoder": fingerprint(clip),
        "covariance": f"{covariance.count} encodings",
        "recommended_beta": str(ConceptUse.beta),
        "recommended_temperature": str(ConceptUse.temperature),
        "recommended_key_lock": str(ConceptUse.key_lock),
        "training": json.dumps(
            {**dataclasses.asdict(settings), "resolution": size, "flip": flip, "photos": len(photos)}
        ),
    }
