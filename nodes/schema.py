"""What the schemas of all families share."""

from __future__ import annotations

import inspect

import comfy.samplers
from comfy_api.latest import io

from ..perfusion_core.edit import BETA, TEMPERATURE
from .host.files import FOLDER, concept_names

# Groups of the node library
USE, TRAIN, INSPECT, EXCHANGE = (f"perfusion/{group}" for group in ("Use", "Train", "Inspect", "Exchange"))
Concepts = io.Custom("PERFUSION_CONCEPTS")  # tuple[ConceptUse, ...]
CovarianceType = io.Custom("PERFUSION_COVARIANCE")  # perfusion_core.Covariance

# Folded away until asked for, on hosts that can.
ADVANCED = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input.__init__).parameters else {}

NEEDS_MODEL = (
    "Only for Anima, Wan, LTX-Video and PixArt, whose models read the prompt a second time: the same model as for "
    "sampling."
)


def concept_input() -> io.Combo.Input:
    return io.Combo.Input("concept", options=concept_names(), tooltip=f"A concept file from models/{FOLDER}.")


def use_inputs() -> list[io.Input]:
    """The settings of a ConceptUse. ``web/saved.js`` knows in which order older graphs have them."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            display_mode=io.NumberDisplay.slider,
            tooltip="How much of the concept, as with a LoRA. 1: all of it. 0: the model without it.",
        ),
        io.Float.Input(
            "beta",
            default=BETA,
            min=0.0,
            max=1.0,
            step=0.01,
            display_mode=io.NumberDisplay.slider,
            tooltip="Lower: more like your photos. Higher: follows the rest of the prompt more. Start at 0.7; the "
            "paper uses 0.60 to 0.75.",
        ),
        io.Float.Input(
            "temperature",
            default=TEMPERATURE,
            min=0.01,
            max=1.0,
            step=0.01,
            display_mode=io.NumberDisplay.slider,
            tooltip="How sharply other words are kept out. Low: only your trigger changes. Leave it at 0.15.",
        ),
        io.Float.Input(
            "key_lock",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            display_mode=io.NumberDisplay.slider,
            tooltip="Whose layout the picture gets. 0: only your trigger is placed like the plain word. 1: the whole "
            "picture is composed as if you had written the plain word; take beta 0.5 then.",
        ),
        *span_inputs(optional=True, **ADVANCED),
        *(
            io.Float.Input(
                stage,
                default=1.0,
                min=0.0,
                max=2.0,
                step=0.05,
                optional=True,
                tooltip=f"What strength is multiplied by in the {place} of the UNet.",
                **ADVANCED,
            )
            for stage, place in (("down", "first half"), ("middle", "middle"), ("up", "second half"))
        ),
    ]


def sampling_inputs() -> list[io.Input]:
    """How a node that samples by itself does so: the seed and the settings of a ``Sampling``."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Of the noise that all pictures start from.",
        ),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of each picture."),
        io.Float.Input(
            "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance, as in KSampler.", **ADVANCED
        ),
        io.Combo.Input(
            "sampler", options=list(comfy.samplers.KSampler.SAMPLERS), default="dpmpp_2m",
            tooltip="As in KSampler.", **ADVANCED,
        ),
        io.Combo.Input(
            "scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), default="karras",
            tooltip="As in KSampler.", **ADVANCED,
        ),
        io.Int.Input(
            "resolution", default=0, min=0, max=4096, step=64,
            tooltip="Pixels on a side. 0 is what the model is made for: 512, or 1024 from SDXL on.", **ADVANCED,
        ),
    ]  # fmt: skip


def span_inputs(**options) -> list[io.Input]:
    """The part of the sampling in which a concept is used."""
    words = (("start_percent", 0.0, "When the concept sets in"), ("end_percent", 1.0, "When it ends"))
    return [
        io.Float.Input(
            name,
            default=default,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"{meaning}: 0 is the first step, which makes the layout, 1 the last, which makes detail.",
            **options,
        )
        for name, default, meaning in words
    ]
