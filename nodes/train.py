"""From photos to a concept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..perfusion_core import Checkpoint, Training, TrainingSettings
from ..perfusion_core.captions import TEMPLATES
from ..perfusion_core.concept import trigger_problem
from ..perfusion_core.training import SCHEDULES
from .host import text, thumbnail
from .host.encoder_covariance import CAPTIONS, cached_covariance, fingerprint
from .host.files import concept_names, concept_stamp
from .host.memory import is_out_of_memory, release_memory
from .host.model import base_model, default_resolution, encoding_width
from .host.photos import caption_texts, prepare_photos
from .host.scorers import scorer_names
from .host.trainee import Subject, open_trainee
from .host.uses import ConceptUse
from .plots import as_image, loss_curve
from .report import contact_sheet_of, report
from .run import Run, judge, saved_state
from .schema import ADVANCED, CATEGORY, Concepts, CovarianceType

_PREVIEWS = "a photo of {}\n{} on the beach\nan oil painting of {}\n{} wearing a hat"
_AUTOCAST = {"as loaded": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_NONE, _AUTO = "none", "auto"
_RARE = {"optional": True, **ADVANCED}


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
                    "steps",
                    default=settings.steps,
                    min=1,
                    max=10_000,
                    tooltip="Optimizer steps in all, those of a continued training included. Paper: 400.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,  # or every queue would train again
                    tooltip="The same seed gives the same concept.",
                ),
                CovarianceType.Input(
                    "covariance",
                    tooltip="From Perfusion Covariance. Not connected: the one kept for this text encoder is used, or "
                    "made from built-in captions.",
                    **_RARE,
                ),
                io.String.Input(
                    "captions",
                    force_input=True,
                    tooltip="What is on each photo, as Perfusion Load Photos gives it: with the trigger, {} or the "
                    "superclass where the subject is named. Without: built-in templates, such as 'a photo of a {}'.",
                    **_RARE,
                ),
                io.Combo.Input(
                    "continue_from",
                    options=[_NONE, *concept_names()],
                    tooltip="A saved concept to train on, also one that was left unfinished.",
                    **_RARE,
                ),
                io.Boolean.Input(
                    "low_memory",
                    default=False,
                    tooltip="One photo at a time and gradient checkpointing: learns alike, slower, in less memory.",
                    **_RARE,
                ),
                io.Combo.Input(
                    "gradient_checkpointing",
                    options=["auto", "on", "off"],
                    tooltip="Less memory for some more time: backward computes again what it needs. auto: for SDXL.",
                    **_RARE,
                ),
                io.Combo.Input(
                    "precision",
                    options=list(_AUTOCAST),
                    tooltip="The network's arithmetic. The concept itself is always trained in fp32.",
                    **_RARE,
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    tooltip="Photos are cropped to a square around the subject and scaled to this. 0: 1024 for SDXL, "
                    "64 for the demo model, else 512.",
                    **_RARE,
                ),
                io.Boolean.Input(
                    "flip",
                    default=True,
                    tooltip="Also learn from mirrored photos. Switch off for subjects with writing or a parting.",
                    **_RARE,
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=50,
                    min=1,
                    max=10_000,
                    tooltip="After so many steps the concept is kept, tested and shown. The best one is an output.",
                    **_RARE,
                ),
                io.String.Input(
                    "previews",
                    default=_PREVIEWS,
                    multiline=True,
                    tooltip="Prompts of the sample pictures, a line each, with {} where the trigger goes. Empty: none.",
                    **_RARE,
                ),
                io.Combo.Input(
                    "scorer",
                    options=[_AUTO, _NONE, *scorer_names()],
                    tooltip="An open_clip model from models/open_clip that judges the sample pictures to find the best "
                    "checkpoint. auto: the first one there. none: the lowest loss is best.",
                    **_RARE,
                ),
                io.Int.Input(
                    "batch_size",
                    default=settings.batch_size,
                    min=1,
                    max=64,
                    tooltip="Photos at a time. batch_size times accumulation is the effective batch. Paper: 16.",
                    **_RARE,
                ),
                io.Int.Input(
                    "accumulation",
                    default=settings.accumulation,
                    min=1,
                    max=64,
                    tooltip="Batches per step.",
                    **_RARE,
                ),
                io.Float.Input(
                    "learning_rate_values",
                    default=settings.learning_rate_values,
                    min=1e-6,
                    max=1.0,
                    step=0.0001,
                    tooltip="For what the subject looks like. Paper: 0.03.",
                    **_RARE,
                ),
                io.Float.Input(
                    "learning_rate_embedding",
                    default=settings.learning_rate_embedding,
                    min=1e-6,
                    max=1.0,
                    step=0.0001,
                    tooltip="For the trigger's own embedding. Paper: 0.006.",
                    **_RARE,
                ),
                io.Float.Input(
                    "beta",
                    display_name="training_beta",
                    default=settings.beta,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The gate's beta while training. Paper: 0.75. The Loader has its own.",
                    **_RARE,
                ),
                io.Float.Input(
                    "temperature",
                    display_name="training_temperature",
                    default=settings.temperature,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="The gate's temperature while training. Paper: 0.1. The Loader has its own.",
                    **_RARE,
                ),
                io.Boolean.Input(
                    "target_gradient",
                    default=settings.target_gradient,
                    tooltip="Let the embedding also learn through the target input i*. The paper leaves it open; in "
                    "our benchmark concepts then grow alike and mix in one prompt.",
                    **_RARE,
                ),
                io.Float.Input(
                    "unmasked_weight",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much what is outside the masks counts. Paper: 0, with soft masks. With hard masks 0.3 "
                    "keeps the subject's outline; 1 is as if there were no masks.",
                    **_RARE,
                ),
                io.Int.Input(
                    "min_timestep",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="Leave out the timesteps below, those of little noise. Paper: 0. Shapes are made in the "
                    "noisier half, from 500 on.",
                    **_RARE,
                ),
                io.Combo.Input(
                    "learning_rate_schedule",
                    options=list(SCHEDULES),
                    tooltip="cosine takes both rates down to 0 over the steps; then double learning_rate_values.",
                    **_RARE,
                ),
            ],
            outputs=[
                Concepts.Output(display_name="best", tooltip="The concept at its best checkpoint."),
                Concepts.Output(display_name="last", tooltip="The concept after the last step."),
                io.Image.Output(display_name="contact_sheet", tooltip="Sample pictures; a row per checkpoint."),
                io.Image.Output(display_name="loss_curve"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, continue_from=(_NONE,), **kwargs) -> str:
        if continue_from[0] in (_NONE, None):  # None: linked, and not known yet
            return ""
        return concept_stamp(continue_from[0])

    @classmethod
    def execute(
        cls, model, clip, vae, images, masks=(), covariance=(None,), captions=(), **lists: list[Any]
    ) -> io.NodeOutput:
        (model,), (clip,), (vae,), (covariance,) = model, clip, vae, covariance
        options = {**_defaults(cls.define_schema()), **{name: values[0] for name, values in lists.items()}}
        trigger, superclass, node_id = options["trigger"].strip(), options["superclass"].strip(), cls.hidden.unique_id
        if clip is None:
            raise ValueError("There is no text encoder: this checkpoint has none. Load one with Load CLIP.")
        _check_words(clip, trigger, superclass)
        low_memory = options["low_memory"]
        large = encoding_width(model) == 2048
        settings, checkpointing = _settings(options, large)
        resumed, earlier = None, None
        if options["continue_from"] != _NONE:
            resumed, earlier = saved_state(options["continue_from"], model, trigger, superclass, settings.steps)
        size = options["resolution"] or default_resolution(model)
        photos, covers = prepare_photos(images, masks, size)
        if len(captions) == 1 < len(photos):  # one text with a line per photo
            captions = captions[0].strip().splitlines()
        own = caption_texts(captions, len(photos), trigger, superclass)
        subject = Subject(
            photos, covers, [texts or TEMPLATES for texts in own], superclass, options["flip"],
            options["unmasked_weight"], options["min_timestep"],
        )  # fmt: skip
        previews = _preview_sentences(options["previews"], trigger)
        scorer = {_NONE: "", _AUTO: next(iter(scorer_names()), "")}.get(options["scorer"], options["scorer"])
        score = judge(scorer, subject, previews) if scorer and previews else None

        key = fingerprint(clip)
        covariance = covariance or cached_covariance(clip, CAPTIONS, node_id, bar=False, key=key)
        if covariance.dim != encoding_width(model):
            raise ValueError(
                f"The covariance is {covariance.dim} wide, this model's text encoding {encoding_width(model)}. "
                "Make it with Perfusion Covariance from the same checkpoint's CLIP."
            )
        metadata = _metadata(key, covariance, settings, subject)
        run = None
        try:
            autocast = _AUTOCAST[options["precision"]]
            with open_trainee(model, clip, vae, subject, autocast, checkpointing) as trainee:
                training = Training(trainee, covariance.inverse(), trigger, superclass, base_model(model), settings)
                if resumed is not None:
                    training.load_state_dict(resumed)
                every = options["checkpoint_every"]
                run = Run(training, trainee, metadata, every, previews, score, earlier, node_id)
                run.go()
        except Exception as error:
            if isinstance(error, FloatingPointError):
                raise FloatingPointError(f"{error} {run.kept if run else ''}") from None
            if not is_out_of_memory(error):
                raise
            problem = f"{_out_of_memory(size, settings, low_memory, checkpointing)} {run.kept if run else ''}"
        else:
            best, last = (
                _learned(checkpoint, metadata, dict(run.rows)) for checkpoint in (run.best, run.checkpoints[-1])
            )
            sheet = as_image(contact_sheet_of(run, subject))
            curve = as_image(loss_curve(training.losses, {c.step: c.loss for c in run.checkpoints}))
            words = report(run, subject, scorer, text.locked_word(clip, superclass))
            run.autosave.remove()
            return io.NodeOutput((best,), (last,), sheet, curve, words, ui=ui.PreviewImage(sheet))
        release_memory()  # only now, when the error no longer holds on to anything
        raise RuntimeError(problem)


def _learned(checkpoint: Checkpoint, metadata: Mapping[str, str], pictures: Mapping[int, list]) -> ConceptUse:
    """A checkpoint as an output; the first of its sample pictures, {step: pictures}, becomes the thumbnail."""
    metadata = {**metadata, "steps": str(checkpoint.step)}
    if samples := pictures.get(checkpoint.step):
        metadata[thumbnail.KEY] = thumbnail.encoded(samples[0])
    return ConceptUse(checkpoint.concept.replace(metadata=metadata), training=checkpoint.training)


def _defaults(schema: io.Schema) -> dict[str, Any]:
    """Of the widgets, which a prompt through the API may leave out."""
    widgets = [widget for widget in schema.inputs if isinstance(widget, io.WidgetInput)]
    return {it.id: it.options[0] if isinstance(it, io.Combo.Input) else it.default for it in widgets}


def _check_words(clip, trigger: str, superclass: str) -> None:
    if problem := trigger_problem(trigger):
        raise ValueError(f"Cannot train: {problem}.")
    text.superclass_tokens(clip, superclass)  # raises for an empty one
    if text.word_count(clip, trigger) == 1:
        raise ValueError(
            f"The trigger {trigger!r} is a word the text encoder already knows, and prompts could not use it any more. "
            f"Take a new one, such as <{trigger.strip('<>')}>."
        )


def _settings(options: Mapping[str, Any], large: bool) -> tuple[TrainingSettings, bool]:
    """With whether to use gradient checkpointing, which large models do by themselves."""
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    settings = TrainingSettings(**{name: value for name, value in options.items() if name in names})
    if not options["low_memory"]:
        return settings, {"on": True, "off": False, "auto": large}[options["gradient_checkpointing"]]
    effective = settings.batch_size * settings.accumulation
    return dataclasses.replace(settings, batch_size=1, accumulation=effective), True


def _preview_sentences(previews: str, trigger: str) -> list[str]:
    """Prompts with {} where the trigger stands."""
    lines = [line.strip().replace(trigger, "{}") for line in previews.splitlines() if line.strip()]
    for line in lines:
        if line.count("{}") != 1:
            raise ValueError(f"Write {{}} or {trigger} once in every line of previews; it is not so in {line!r}.")
    return lines


def _metadata(key: str, covariance, settings: TrainingSettings, subject: Subject) -> dict[str, str]:
    size, photos = subject.photos.shape[1], len(subject.photos)
    return {
        "text_encoder": key,
        "covariance": f"{covariance.source}, ridge {covariance.ridge:g}",
        "recommended_beta": str(ConceptUse.beta),
        "recommended_temperature": str(ConceptUse.temperature),
        "recommended_key_lock": str(ConceptUse.key_lock),
        "training": json.dumps(
            {
                **dataclasses.asdict(settings),
                "resolution": size,
                "flip": subject.flip,
                "photos": photos,
                "unmasked_weight": subject.unmasked_weight,
                "min_timestep": subject.min_timestep,
            }
        ),
    }


def _out_of_memory(size: int, settings: TrainingSettings, low_memory: bool, checkpointing: bool) -> str:
    found = f"The training ran out of memory at {size}x{size} pixels with {settings.batch_size} photos at a time."
    if low_memory:
        advice = "Lower resolution, load the checkpoint in fp16 or bf16, or close other programs."
    elif checkpointing:
        advice = "Switch on low_memory: it learns alike, one photo at a time."
    else:
        advice = "Switch on gradient_checkpointing, or low_memory if that is not enough: it learns alike."
    return f"{found} {advice}"
