"""From photos to a concept."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..perfusion_core import Checkpoint, Training, TrainingSettings
from ..perfusion_core.captions import TEMPLATES
from ..perfusion_core.concept import trigger_problem
from .host import text, thumbnail
from .host.encoder_covariance import CAPTIONS, cached_covariance, fingerprint
from .host.files import concept_stamp
from .host.memory import is_out_of_memory, release_memory
from .host.model import base_model, default_resolution, encoding_width
from .host.photos import caption_texts, prepare_photos
from .host.progress import show_text, warn
from .host.scorers import scorer_names
from .host.trainee import Subject, open_trainee
from .host.uses import ConceptUse
from .plots import as_image, loss_curve
from .report import contact_sheet_of, report
from .run import Run, judge, saved_state
from .schema import TRAIN, Concepts
from .training_inputs import AUTO, AUTOCAST, NONE, training_inputs


class PerfusionTrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionTrainConcept",
            display_name="Perfusion Train Concept",
            category=TRAIN,
            description="Teaches a new thing from 3 to 10 photos. Save the result with Perfusion Save Concept.",
            is_input_list=True,
            inputs=training_inputs(),
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
    def fingerprint_inputs(cls, continue_from=(NONE,), **kwargs) -> str:
        if continue_from[0] in (NONE, None):  # None: linked, and not known yet
            return ""
        return concept_stamp(continue_from[0])

    @classmethod
    def execute(
        cls, model, clip, vae, images, masks=(), covariance=(None,), captions=(), **lists: list[Any]
    ) -> io.NodeOutput:
        (model,), (clip,), (vae,), (covariance,) = model, clip, vae, covariance
        options = {**_defaults(cls.define_schema()), **{name: values[0] for name, values in lists.items()}}
        trigger, node_id = unicodedata.normalize("NFC", options["trigger"].strip()), cls.hidden.unique_id
        if clip is None:
            raise ValueError("There is no text encoder: this checkpoint has none. Load one with Load CLIP.")
        _check_trigger(clip, trigger)
        locked = text.locked(clip, options["superclass"])
        superclass = locked.superclass
        if locked.warning:
            warn([locked.warning], node_id)
        else:
            show_text(locked.sentence, node_id)
        low_memory = options["low_memory"]
        large = encoding_width(model) == 2048
        settings, checkpointing = _settings(options, large)
        resumed, earlier = None, None
        if options["continue_from"] != NONE:
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
        previews = _preview_sentences(unicodedata.normalize("NFC", options["previews"]), trigger)
        scorer = {NONE: "", AUTO: next(iter(scorer_names()), "")}.get(options["scorer"], options["scorer"])
        score = judge(scorer, subject, previews) if scorer and previews else None

        key = fingerprint(clip)
        covariance = covariance or cached_covariance(clip, CAPTIONS, node_id, bar=False, key=key)
        if covariance.dim != encoding_width(model):
            raise ValueError(
                f"The covariance is {covariance.dim} wide, this model's text encoding {encoding_width(model)}. "
                "Make it with Perfusion Covariance from the same checkpoint's CLIP."
            )
        metadata = _metadata(key, text.skipped(clip), covariance, settings, subject)
        run = None
        try:
            autocast = AUTOCAST[options["precision"]]
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
            words = report(run, subject, scorer, locked)
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


def _check_trigger(clip, trigger: str) -> None:
    if problem := trigger_problem(trigger):
        raise ValueError(f"Cannot train: {problem}.")
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


def _metadata(key: str, skip: int, covariance, settings: TrainingSettings, subject: Subject) -> dict[str, str]:
    size, photos = subject.photos.shape[1], len(subject.photos)
    return {
        "text_encoder": key,
        "clip_skip": str(skip),
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
