"""Concepts for the random models, untrained but with everything a trained one has."""

from functools import cache
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from comfyui_perfusion.nodes.host import text, trainings
from comfyui_perfusion.nodes.host.encoder_covariance import measure_covariance
from comfyui_perfusion.nodes.host.model import base_model, encoding_width, value_widths
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import Concept, Covariance
from comfyui_perfusion.perfusion_core.captions import TEMPLATES, captions

FEW_TEMPLATES = TEMPLATES[:4]  # every training encodes all of them before its first step
_inverses = WeakKeyDictionary()  # a later encoder may lie where an earlier one lay


def covariance_inverse(model, clip) -> torch.Tensor:
    """C^-1 (d, d) of a random text encoder, from a few captions, once. Of one as wide as T5 it would take too long."""
    encoder = clip.cond_stage_model
    if (width := encoding_width(model)) > 2048:
        return torch.eye(width, dtype=torch.float64)
    if encoder not in _inverses:
        _inverses[encoder] = measure_covariance(clip, list(captions(24)), None, model=model).inverse()
    return _inverses[encoder]


def make_concept(model, clip, trigger: str = "<my-toy>", superclass: str = "teddy", seed: int = 0) -> Concept:
    """A concept whose embedding is its own, i* and s as encoded in "a photo of a ...", and whose deltas are random."""
    generator = torch.Generator().manual_seed(seed)
    start = {
        name: encoder.transformer.get_input_embeddings().weight[text.superclass_tokens(clip, superclass)[name]].float()
        for name, encoder in text.encoders(clip).items()
    }
    embeddings = {
        name: vector.cpu() + 0.02 * torch.randn(vector.shape, generator=generator) for name, vector in start.items()
    }
    target, original = (encode_in_sentence(model, clip, own, superclass) for own in (embeddings, start))
    return Concept(
        name=trigger.strip("<>"),
        trigger=trigger,
        superclass=superclass,
        base_model=base_model(model),
        token_embeddings=embeddings,
        target_input=target,
        target_dual=(covariance_inverse(model, clip) @ target.double()).float(),
        superclass_input=original,
        value_deltas={
            layer: 0.5 * torch.randn(width, generator=generator) for layer, width in value_widths(model).items()
        },
    )


def encode_in_sentence(model, clip, embeddings, superclass: str) -> torch.Tensor:
    """(d,), what layers receive of these token embeddings at the end of "a photo of a"."""
    clip = clip.clone()
    clip.tokenizer = text.with_triggers(clip.tokenizer, {"<x>": text.reading(clip, superclass, embeddings)})
    tokens = clip.tokenize("a photo of a <x>")
    encoding = text.encoding_of_layers(clip, tokens, model)
    (position,) = text.trigger_places(tokens, encoding.shape[1])["<x>"]
    return encoding[0, position].float().cpu()


@cache
def random_covariance(width: int = 768) -> Covariance:
    covariance = Covariance(width)
    covariance.update(torch.randn(100, width, generator=torch.Generator().manual_seed(0)))
    return covariance


def train_node(models, kind: str = "sd1", remembered: bool = False, **changes):
    """Two tiny steps of Perfusion Train Concept; ``changes`` are inputs as the host gives them, lists.

    Unless what earlier trainings learned shall be ``remembered``, it begins anew.
    """
    if not remembered:
        trainings.forget()
    model, clip, vae = models(kind)
    grey = torch.full((1, 64, 64, 3), 0.5)
    inputs = {
        "model": [model], "clip": [clip], "vae": [vae], "images": [grey], "trigger": ["<my-toy>"],
        "superclass": ["teddy"], "steps": [2], "seed": [0], "resolution": [64], "batch_size": [1], "accumulation": [1],
        "flip": [False], "covariance": [random_covariance(encoding_width(model))], "previews": [""],
    }  # fmt: skip
    with mock.patch("comfyui_perfusion.nodes.train.TEMPLATES", FEW_TEMPLATES):
        return PerfusionTrainConcept.execute(**{**inputs, **changes})
