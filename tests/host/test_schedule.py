"""When and where in the UNet a concept acts."""

import comfy.sample
import pytest
import torch
from comfyui_perfusion.nodes.compose import PerfusionSchedule
from comfyui_perfusion.nodes.host.model import apply_to_model
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import EASINGS, STAGES, ConceptUse

import nodes as host_nodes
from makers import make_concept
from test_model import encode, record

PROMPT = "a photo of a <my-toy> on the beach"


@pytest.fixture
def world(models):
    """The model, its encoded prompts, and the plain use of a concept."""
    model, clip, _ = models("sd1")
    use = ConceptUse(make_concept(model, clip), 0.6, 0.15)
    clip = apply_to_clip(clip, [use])
    return model, encode(clip, PROMPT), encode(clip, "blurry"), use


def step_at(model, positive, negative, denoise: float) -> torch.Tensor:
    """One step from a noise level of the schedule; it stands at 1 - denoise of it."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    sampled = host_nodes.common_ksampler(
        model, 7, 1, 5.0, "euler", "normal", positive, negative, latent, denoise=denoise
    )
    return sampled[0]["samples"]


@pytest.mark.parametrize(
    ("span", "denoise", "on"),
    [
        ((0.0, 0.5), 1.0, True),
        ((0.0, 0.5), 0.25, False),
        ((0.5, 1.0), 1.0, False),
        ((0.5, 1.0), 0.25, True),
    ],
)
def test_outside_its_span_a_concept_is_absent_bit_for_bit(world, span, denoise, on):
    model, positive, negative, use = world
    spanned = apply_to_model(model, [use.replace(start_percent=span[0], end_percent=span[1])])
    expected = apply_to_model(model, [use]) if on else model
    assert torch.equal(step_at(spanned, positive, negative, denoise), step_at(expected, positive, negative, denoise))


@pytest.mark.parametrize("easing", EASINGS)
def test_beta_and_temperature_go_from_their_starts_to_their_ends(world, easing):
    model, positive, negative, use = world
    (scheduled,) = PerfusionSchedule.execute(
        (use,), start_percent=0.0, end_percent=1.0, beta_end=0.9, temperature_end=0.4, easing=easing
    ).args[0]
    changing = apply_to_model(model, [scheduled])
    for denoise in (1.0, 0.5, 0.2):
        (sigma, _) = comfy.samplers.KSampler(model, 1, "cpu", "euler", "normal", denoise).sigmas
        percent = 1 - model.model.model_sampling.timestep(sigma).item() / 999
        way = EASINGS[easing](percent)
        still = use.replace(beta=0.6 + way * 0.3, temperature=0.15 + way * 0.25)
        found, expected, start = (
            step_at(one, positive, negative, denoise)
            for one in (changing, apply_to_model(model, [still]), apply_to_model(model, [use]))
        )
        assert (found - expected).norm() <= 0.02 * (expected - start).norm() + 1e-5 * start.norm()


@pytest.mark.parametrize("stage", STAGES.values())
def test_a_stage_at_zero_is_the_base_models_and_the_others_are_edited(world, stage):
    model, positive, negative, use = world
    base, full, part = (
        record(one, positive, negative)[0]
        for one in (model, apply_to_model(model, [use]), apply_to_model(model, [use.replace(**{stage: 0.0})]))
    )
    off = {layer for layer, _ in base if STAGES[layer.partition(".")[0]] == stage}
    assert 0 < len(off) < len({layer for layer, _ in base})
    for (layer, projection), output in part.items():
        assert torch.equal(output, (base if layer in off else full)[layer, projection])
        assert not torch.equal(base[layer, projection], full[layer, projection])


def test_an_end_before_the_start_is_an_error_that_says_so(world):
    with pytest.raises(ValueError, match=r"ends at 0\.2 before it starts at 0\.5: set end_percent above start_percent"):
        world[-1].replace(start_percent=0.5, end_percent=0.2)
