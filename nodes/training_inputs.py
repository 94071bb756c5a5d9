"""What Perfusion Train Concept takes. Workflows keep widgets by their order: new ones go to the end."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..perfusion_core import TrainingSettings
from ..perfusion_core.training import SCHEDULES
from .host.files import concept_names
from .host.scorers import scorer_names
from .schema import ADVANCED, CovarianceType

AUTOCAST = {"as loaded": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NONE, AUTO = "none", "auto"
TRAIN_THROUGH, ENCODE_ONCE = "train through", "encode once"
_PREVIEWS = "a photo of {}\n{} on the beach\nan oil painting of {}\n{} wearing a hat"
_RARE = {"optional": True, **ADVANCED}


def training_inputs() -> list[io.Input]:
    settings = TrainingSettings()
    return [
        io.Model.Input(
            "model",
            tooltip="The diffusion model to train on: SD1.x, SD2.x, SDXL, Anima, Cosmos-Predict2, Wan, LTX-Video or "
            "PixArt. Experimental: Qwen-Image, Z-Image, Lumina 2, Flux, Flux 2 Klein and SD3. It stays as it is.",
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
            default="bear",
            tooltip="The plain word your subject is a kind of, in English. It decides where the subject goes in a "
            "picture. Of several words the last is locked.",
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
            options=[NONE, *concept_names()],
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
            tooltip="Less memory for some more time: backward computes again what it needs. auto: for SDXL "
            "and larger models.",
            **_RARE,
        ),
        io.Combo.Input(
            "precision",
            options=list(AUTOCAST),
            tooltip="The network's arithmetic. The concept itself is always trained in fp32.",
            **_RARE,
        ),
        io.Int.Input(
            "resolution",
            default=0,
            min=0,
            max=2048,
            step=64,
            tooltip="Photos are cropped to a square around the subject and scaled to this. 0: 512 for SD1.x, SD2.x, "
            "Wan and LTX-Video, 96 for the demo model, else 1024.",
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
            options=[AUTO, NONE, *scorer_names()],
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
            tooltip="Of 1000 timesteps, leave out those below, of little noise. Paper: 0. Shapes are made in the "
            "noisier half, from 500 on.",
            **_RARE,
        ),
        io.Combo.Input(
            "learning_rate_schedule",
            options=list(SCHEDULES),
            tooltip="cosine takes both rates down to 0 over the steps; then double learning_rate_values.",
            **_RARE,
        ),
        io.Combo.Input(
            "text_encoder",
            options=[AUTO, TRAIN_THROUGH, ENCODE_ONCE],
            tooltip="train through: your word gets an embedding of its own. encode once: it is read as the superclass, "
            "and what is learned is added to that; the text encoder is needed only at the start. auto: encode once for "
            "Wan, LTX-Video, PixArt and the experimental models.",
            **_RARE,
        ),
        io.Float.Input(
            "key_freedom",
            default=settings.key_freedom,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How freely your word is placed. Paper: 0, just like the superclass, to which its keys are locked; "
            "1: in its own way. On the demo model concepts are more like their photos with 1, and two in one prompt "
            "mix less.",
            **_RARE,
        ),
    ]
