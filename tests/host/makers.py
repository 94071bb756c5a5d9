"""Concepts for the random models, untrained but with everything a trained one has."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from comfyui_perfusion.nodes.host import text, trainings
from comfyui_perfusion.nodes.host.encoder_covariance import measure_covariance
from comfyui_perfusion.nodes.host.model import apply_to_model, base_model, encoding_width, value_widths
from comfyui_perfusion.nodes.load import PerfusionSaveConcept
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import Concept, Covariance
from comfyui_perfusion.perfusion_core.captions import TEMPLATES, captions

import nodes as host_nodes

FEW_TEMPLATES = TEMPLATES[:4]  # every training encodes all of them before its first step
_inverses = WeakKeyDictionary()  # a later encoder may lie where an earlier one lay
_concepts = WeakKeyDictionary()  # of models


def covariance_inverse(model, clip) -> torch.Tensor:
    """C^-1 (d, d) of a random text encoder, from a few captions, once. Of one as wide as T5 it would take too long."""
    encoder = clip.cond_stage_model
    if (width := encoding_width(model)) > 2048:
        return torch.eye(width, dtype=torch.float64)
    if encoder not in _inverses:
        _inverses[encoder] = measure_covariance(clip, list(captions(24)), None, model=model).inverse()
    return _inverses[encoder]


def make_concept(model, clip, trigger: str = "<my-toy>", superclass: str = "teddy", seed: int = 0) -> Concept:
    """A concept whose embedding is its own, i* and s as encoded in "a photo of a ...", and whose deltas are random.

    Made once: encoding takes long.
    """
    made, inputs = _concepts.setdefault(model, {}), (clip, trigger, superclass, seed)
    if inputs not in made:
        made[inputs] = _new_concept(model, *inputs)
    return made[inputs]


def _new_concept(model, clip, trigger: str, superclass: str, seed: int) -> Concept:
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
    inverse = torch.eye(width, dtype=torch.float64) if width > 2048 else covariance.inverse()
    covariance.inverse = lambda: inverse  # which every training asks for
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


def assert_learns_and_paints(models, kind: str, sample: Callable[..., torch.Tensor], **changes) -> None:
    """A short training gives values to every layer, and a concept with such values another picture."""
    model, clip, _ = models
    (use,), *_ = train_node(lambda _: models, kind, **changes).args
    assert all(delta.any() for delta in use.concept.value_deltas.values())
    use = use.replace(concept=use.concept.replace(value_deltas={
        layer: torch.ones_like(delta) for layer, delta in use.concept.value_deltas.items()
    }))  # fmt: skip
    encode = host_nodes.CLIPTextEncode().encode
    prompts = encode(text.apply_to_clip(clip, [use]), "a <my-toy>")[0], encode(clip, "")[0]
    plain, painted = (sample(some, *prompts) for some in (model, apply_to_model(model, [use])))
    assert painted.isfinite().all() and (painted - plain).abs().max() > 1e-3


def assert_trainings_go_on_and_paint(made, families: Sequence[str], models_folder: Path, results: Path) -> None:
    """A training that goes on from its file ends where one at a stretch does, and the file paints the same picture in
    a new process. made: {family: MODEL, CLIP, VAE}, as a function."""
    command = [sys.executable, str(Path(__file__).with_name("sample_once.py"))]
    for family in families:
        train = lambda steps, family=family, **more: train_node(  # noqa: E731
            lambda _: made(family), family, superclass=["dog"], trigger=["<my-teddy>"], steps=[steps], **more
        ).args[1][0]
        path = PerfusionSaveConcept.execute((train(2),), family, False).args[0]
        resumed, straight = train(3, continue_from=[f"{family}.safetensors"]), train(3)
        for name, tensor in resumed.concept.tensors().items():
            torch.testing.assert_close(tensor, straight.concept.tensors()[name], rtol=1e-3, atol=1e-4, msg=name)
        command += [path, str(results / family), family]
    subprocess.run(command, check=True)
    from sample_once import sample_with

    for family in families:
        found = sample_with(models_folder / f"{family}.safetensors", made(family))
        assert torch.allclose(found, torch.load(results / family), rtol=1e-4, atol=1e-5), family


def assert_compiled_paints_alike(model, sample: Callable[..., torch.Tensor], positive, negative) -> None:
    """With the compile node's eager backend. sample: of steps."""
    plain = sample(model, positive, negative, steps=2)
    found = sample(TorchCompileModel.execute(model, "eager")[0], positive, negative, steps=2)
    assert torch.allclose(found, plain, rtol=1e-3, atol=1e-3 * plain.abs().max().item())
