"""From photos to a concept."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..perfusion_core import Checkpoint, Covariance, Training, TrainingSettings
from ..perfusion_core.captions import TEMPLATES
from ..perfusion_core.concept import trigger_problem
from .host import text, thumbnail
from .host.encoder_covariance import CAPTIONS, cached_covariance, fingerprint
from .host.estimate import FAMILIES, Job, learn_speed
from .host.families import family_of
from .host.files import concept_stamp
from .host.memory import is_out_of_memory, release_memory
from .host.model import base_model, default_resolution, encoding_width
from .host.photos import caption_texts, prepare_photos
from .host.progress import show_text, times_run_again, warn
from .host.scorers import scorer_names
from .host.superclass import LockedWord
from .host.trainee import Subject, check_trainable, open_trainee
from .host.trainings import Course, course_of, key_of
from .host.uses import ConceptUse
from .plots import as_image, loss_curve
from .report import contact_sheet_of, hardly_changed, report, warnings_of
from .run import Run, for_page, judge, saved_state
from .schema import TRAIN, Concepts
from .training_inputs import AUTO, AUTOCAST, ENCODE_ONCE, NONE, TRAIN_THROUGH, training_inputs


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
        linked_or_none = continue_from[0] in (NONE, None)  # None: linked, and not known yet
        stamp = "" if linked_or_none else concept_stamp(continue_from[0])
        return f"{stamp} {times_run_again(cls.hidden.unique_id)}"

    @classmethod
    def execute(
        cls, model, clip, vae, images, masks=(), covariance=(None,), captions=(), **lists: list[Any]
    ) -> io.NodeOutput:
        (model,), (clip,), (vae,), (covariance,) = model, clip, vae, covariance
        options = {**_defaults(cls.define_schema()), **{name: values[0] for name, values in lists.items()}}
        if clip is None:
            raise ValueError("There is no text encoder: this checkpoint has none. Load one with Load CLIP.")
        offset = {AUTO: family_of(model).offset, ENCODE_ONCE: True, TRAIN_THROUGH: False}[options["text_encoder"]]
        check_trainable(model, clip, vae, offset, options["key_freedom"])
        node_id = cls.hidden.unique_id
        locked = text.locked(clip, options["superclass"])
        if locked.warning:
            warn([locked.warning], node_id)
        else:
            show_text(locked.sentence, node_id)
        plan = _plan(model, clip, images, masks, captions, locked.superclass, {**options, "text_encoder": offset})
        resumed, earlier = None, None
        if plan.continue_from:
            resumed, earlier = saved_state(
                plan.continue_from, model, plan.trigger, locked.superclass, plan.settings, offset
            )
        encoder = fingerprint(clip)
        covariance = covariance or cached_covariance(clip, CAPTIONS, node_id, bar=False, key=encoder, model=model)
        if covariance.dim != encoding_width(model):
            raise ValueError(
                f"The covariance is {covariance.dim} wide, this model's text encoding {encoding_width(model)}. "
                "Make it with Perfusion Covariance from the same checkpoint's CLIP."
            )
        course = course_of(key_of(model, vae, encoder, covariance.matrix(), *plan.inputs), plan.settings.steps)
        course.node_id, course.size = node_id, plan.subject.photos.shape[1]
        if course.state is None:
            course.state, course.earlier = resumed, earlier
        metadata = _metadata(encoder, text.skipped(clip), covariance, plan)
        if not course.is_done(plan.settings.steps):
            problem = _train(course, plan, metadata, covariance, model, clip, vae)
            if problem:
                release_memory()  # only now, when nothing holds on to anything
                raise RuntimeError(problem)
        return _output(course, plan, metadata, locked)


@dataclass(frozen=True)
class _Plan:
    """What is to be learned from what, and how."""

    trigger: str
    subject: Subject
    settings: TrainingSettings
    checkpointing: bool
    previews: Sequence[str]  # sentences with {} where the trigger stands
    scorer: str  # "": none
    continue_from: str  # a concept's file, or ""
    options: Mapping[str, Any]  # the node's widgets

    @property
    def inputs(self) -> list[Any]:
        """What decides what is learned, save for the models and, if they do not matter, the number of steps."""
        subject, options = self.subject, dict(self.options)
        del options["gradient_checkpointing"]  # learns the same
        if self.settings.learning_rate_schedule == "constant":
            del options["steps"]
        stamp = concept_stamp(self.continue_from) if self.continue_from else ""
        return [subject.photos, subject.masks, subject.sentences, self.scorer, stamp, options]


def _plan(model, clip, images, masks, captions, superclass: str, options: Mapping[str, Any]) -> _Plan:
    """Raises ValueError for whatever cannot be trained with."""
    trigger = unicodedata.normalize("NFC", options["trigger"].strip())
    _check_trigger(clip, trigger)
    settings, checkpointing = _settings(options, family_of(model).large)
    photos, covers = prepare_photos(images, masks, options["resolution"] or default_resolution(model))
    if len(captions) == 1 < len(photos):  # one text with a line per photo
        captions = captions[0].strip().splitlines()
    sentences = [own or TEMPLATES for own in caption_texts(captions, len(photos), trigger, superclass)]
    subject = Subject(
        photos, covers, sentences, superclass, options["flip"], options["unmasked_weight"], options["min_timestep"]
    )
    scorer = {NONE: "", AUTO: next(iter(scorer_names()), "")}.get(options["scorer"], options["scorer"])
    continue_from = "" if options["continue_from"] == NONE else options["continue_from"]
    previews = _preview_sentences(unicodedata.normalize("NFC", options["previews"]), trigger)
    return _Plan(trigger, subject, settings, checkpointing, previews, scorer, continue_from, options)


def _train(course: Course, plan: _Plan, metadata: Mapping[str, str], covariance: Covariance, model, clip, vae) -> str:
    """Takes the course to its end. Returns what to do where memory does not suffice, else nothing."""
    settings, options, run = plan.settings, plan.options, None
    score = judge(plan.scorer, plan.subject, plan.previews) if plan.scorer and plan.previews else None
    autocast = AUTOCAST[options["precision"]]
    try:
        offset, previews = options["text_encoder"], plan.previews
        with open_trainee(model, clip, vae, plan.subject, autocast, plan.checkpointing, offset, previews) as trainee:
            words = plan.trigger, plan.subject.superclass
            training = Training(trainee, covariance.inverse(), *words, base_model(model), settings)
            warnings = warnings_of(plan.subject)
            run = Run(training, trainee, metadata, options["checkpoint_every"], plan.previews, score, course, warnings)
            run.go()
            if run.step_pace.mean and training.base_model in FAMILIES:
                learn_speed(_job(plan, training.base_model), run.step_pace.mean)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} {run.kept if run else ''}") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = plan.subject.photos.shape[1]
        advice = _out_of_memory(size, settings, options["low_memory"], plan.checkpointing)
        return f"{advice} {run.kept if run else ''}"
    return ""


def _job(plan: _Plan, family: str) -> Job:
    settings, size = plan.settings, plan.subject.photos.shape[1]
    return Job(
        family, settings.steps, settings.batch_size, settings.accumulation, plan.options["checkpoint_every"],
        len(plan.previews), size, gradient_checkpointing="on" if plan.checkpointing else "off",
    )  # fmt: skip


def _output(course: Course, plan: _Plan, metadata: Mapping[str, str], locked: LockedWord) -> io.NodeOutput:
    losses, subject = course.state["losses"].tolist(), plan.subject
    curve = loss_curve(losses, {checkpoint.step: checkpoint.loss for checkpoint in course.checkpoints})
    sheet = contact_sheet_of(course, subject, plan.previews, plan.trigger)
    words = report(course, subject, plan.settings, plan.trigger, plan.scorer, locked)
    used, last = (_learned(course, it, metadata) for it in (course.used, course.checkpoints[-1]))
    warnings = warnings_of(subject) | ({"unchanged": 1} if hardly_changed(course) else {})
    shown = {"perfusion_training": [for_page(course, losses, warnings)]}
    return io.NodeOutput((used,), (last,), as_image(sheet), as_image(curve), words, ui=shown)


def _learned(course: Course, checkpoint: Checkpoint, metadata: Mapping[str, str]) -> ConceptUse:
    """A checkpoint as an output; the first of its sample pictures becomes the thumbnail."""
    metadata = {**metadata, "steps": str(checkpoint.step)}
    if samples := dict(course.rows).get(checkpoint.step):
        metadata[thumbnail.KEY] = thumbnail.encoded(samples[0], checkpoint.concept.base_model)
    concept = checkpoint.concept.replace(metadata=metadata)
    return ConceptUse(concept, training=checkpoint.training, course=course.key)


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


def _metadata(encoder: str, skip: int, covariance: Covariance, plan: _Plan) -> dict[str, str]:
    subject, settings = plan.subject, plan.settings
    return {
        "text_encoder": encoder,
        "clip_skip": str(skip),
        "covariance": f"{covariance.source}, ridge {covariance.ridge:g}",
        "recommended_beta": str(ConceptUse.beta),
        "recommended_temperature": str(ConceptUse.temperature),
        "recommended_key_lock": str(ConceptUse.key_lock),
        "training": json.dumps(
            {
                **dataclasses.asdict(settings),
                "resolution": subject.photos.shape[1],
                "flip": subject.flip,
                "photos": len(subject.photos),
                "unmasked_weight": subject.unmasked_weight,
                "min_timestep": subject.min_timestep,
                "text_encoder": ENCODE_ONCE if plan.options["text_encoder"] else TRAIN_THROUGH,
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
