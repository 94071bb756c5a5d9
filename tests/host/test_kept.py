"""Kept keys and values: the same pictures bit for bit as without, never a stale one, and nothing left behind."""

import itertools
from types import SimpleNamespace

import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from comfy import supported_models
from comfyui_perfusion.nodes.host import kept, runtime
from comfyui_perfusion.nodes.host.key_lock import ENCODING, KEYS
from comfyui_perfusion.nodes.host.model import PREFIX, apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.uses import ConceptUse

import nodes as host_nodes
from random_checkpoint import KINDS, UNET, initialise
from random_families import CONFIGS, empty_latent, random_model
from test_conditionings import WAYS
from test_families import WIDTH, concept, conditioning, uses_of
from test_model import sample
from test_together import in_frames, in_tiles, lora_weights, row_by_row

TOKENS = 7
STEPS = 3


@pytest.fixture(scope="module")
def world():
    """A narrow UNet with two concepts, and prompts with locked keys."""
    kind, cpu = KINDS["sd1"], torch.device("cpu")
    narrow = {**UNET, **kind.unet, "model_channels": 32, "context_dim": WIDTH, "dtype": torch.float32}
    unet = kind.host_config({**narrow, "adm_in_channels": None}).get_model({}, device=cpu)
    initialise(unet.diffusion_model, torch.Generator().manual_seed(0))
    model = comfy.model_patcher.ModelPatcher(unet, cpu, cpu)
    uses = [ConceptUse(concept(model, seed)) for seed in (1, 2)]

    def prompt(*triggers: int):
        encoding, keys = torch.randn(2, 1, TOKENS, WIDTH)
        for trigger in triggers:
            encoding[:, trigger] = uses[trigger].concept.target_input
        return [[encoding, {ENCODING: encoding, KEYS: keys} if triggers else {}]]

    def paint(model, **settings):
        return sample(model, found.positive, found.negative, **settings)

    found = SimpleNamespace(
        model=model, uses=uses, patched=apply_to_model(model, uses), paint=paint,
        positive=prompt(0, 1), toy=prompt(0), cup=prompt(1), negative=prompt(),
    )  # fmt: skip
    return found


@pytest.fixture
def projected(monkeypatch):
    """The paths of all projections that were computed, one after the other."""
    paths, found = [], runtime._Forward.projection

    def projection(self, path):
        paths.append(path)
        return found(self, path)

    monkeypatch.setattr(runtime._Forward, "projection", projection)
    return paths


@pytest.fixture
def runs(monkeypatch):
    """All sampling runs that keep something."""
    made = []

    class Seen(kept.Run):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(runtime, "Run", Seen)
    return made


@pytest.fixture
def both_ways(monkeypatch, projected):
    """Paints with all that can be kept and with nothing, which has to give the same picture.

    Gives it with how often a layer projected, with and without.
    """

    def painted(world, paint):
        projected.clear()
        found = paint()
        counts = [len(projected)]
        with monkeypatch.context() as patch:
            patch.setattr(kept, "LIMIT", 0)
            assert torch.equal(paint(), found)
        counts.append(len(projected) - counts[0])
        layers = cross_attentions(world.model).values()
        each = len({attention.path(projection) for attention in layers for projection in ("to_k", "to_v")})
        return found, *(count / each for count in counts)

    return painted


def test_from_the_second_step_on_no_layer_projects_the_text(world, both_ways):
    once = world.paint(world.patched)
    assert both_ways(world, lambda: world.paint(world.patched, steps=STEPS))[1:] == (1, STEPS)
    assert torch.equal(world.paint(world.patched), once)  # nothing is left of the other run


def with_wrapper(wrapper):
    def patched(world):
        model = world.patched.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model

    return patched


def with_lora(world):
    changes = {
        f"{PREFIX}{layer}.to_v.weight": ("diff", (0.05 * torch.randn(attention.to_v.weight.shape),))
        for layer, attention in cross_attentions(world.model).items()
    }
    model = world.patched.clone()
    model.add_patches(changes)
    return model


def scheduled(**changes):
    return lambda world: apply_to_model(world.model, [use.replace(**changes) for use in world.uses])


MODELS = {  # and how often each layer projects in three steps, with all that is kept and without
    "in tiles": (with_wrapper(in_tiles), 1, 3),
    "in frames": (with_wrapper(in_frames), 1, 3),
    "row by row": (with_wrapper(row_by_row), 2, 6),
    "LoRA": (with_lora, 1, 3),
    "from the second step on": (scheduled(start_percent=0.2), 2, 3),
    "moving": (scheduled(beta_end=0.9), 3, 3),
}


@pytest.mark.parametrize(("make", "times", "times_without"), MODELS.values(), ids=MODELS)
def test_each_text_is_projected_once_while_nothing_changes(world, both_ways, make, times, times_without):
    model = make(world)
    assert both_ways(world, lambda: world.paint(model, steps=STEPS))[1:] == (times, times_without)


@pytest.mark.parametrize(("way", "times"), [("combine", 1), ("areas", 2), ("time ranges", 2)])
def test_each_batch_of_prompts_has_its_own(world, both_ways, way, times):
    conditioning = WAYS[way][0](world.toy, world.cup)
    painted = both_ways(world, lambda: sample(world.patched, conditioning, world.negative, steps=STEPS))
    assert painted[1] == times


@pytest.mark.skipif(not hasattr(supported_models, "Anima"), reason="this host is older than Anima")
@pytest.mark.parametrize("family", CONFIGS)
def test_other_families_are_projected_once_too(both_ways, family):
    model = random_model(family)
    uses = uses_of(model)
    patched, positive = apply_to_model(model, uses), conditioning(model, uses, 3, lock=True)[0]
    negative, latent = conditioning(model, [], 4)[0], empty_latent(model, 4)

    def paint():
        return host_nodes.common_ksampler(patched, 7, STEPS, 3.0, "euler", "simple", positive, negative, latent)[0][
            "samples"
        ]

    assert both_ways(SimpleNamespace(model=model), paint)[1:] == (1, STEPS)


def test_a_prompt_that_travels_over_the_steps_is_never_an_earlier_one(world, both_ways):
    """As nodes do that change the encoding in the same place and shape at every step."""

    def travelling(apply_model, args):
        share = args["timestep"][0] / 15
        c = {**args["c"], "c_crossattn": args["c"]["c_crossattn"].lerp(world.cup[0][0], 1 - share)}
        return apply_model(args["input"], args["timestep"], **c)

    model = with_wrapper(travelling)(world)
    found, times, _ = both_ways(world, lambda: world.paint(model, steps=STEPS))
    assert times == STEPS
    assert not torch.equal(found, world.paint(world.patched, steps=STEPS))


def test_what_another_node_writes_into_keys_and_values_does_not_add_up(world, both_ways):
    def replacement(q, k, v, extra_options):
        attention = comfy.ldm.modules.attention.optimized_attention
        return attention(q, k.mul_(0.5), v.add_(1), extra_options["n_heads"])

    model = world.patched.clone()
    model.set_model_attn2_replace(replacement, "input", 1, 0)
    assert both_ways(world, lambda: world.paint(model, steps=STEPS))[1] > 1


def test_another_nodes_projection_is_asked_at_every_step(world):
    layer, attention = next(iter(cross_attentions(world.model).items()))
    asked = []

    def foreign(x):
        asked.append(x)
        return type(attention.to_v).forward(attention.to_v, x)

    other = world.model.clone()
    other.add_object_patch(f"{PREFIX}{layer}.to_v.forward", foreign)
    assert torch.equal(
        world.paint(apply_to_model(other, world.uses), steps=STEPS), world.paint(world.patched, steps=STEPS)
    )
    assert len(asked) == STEPS


def test_what_is_beyond_the_limit_is_projected_at_every_step(world, monkeypatch, projected, runs):
    whole = world.paint(world.patched, steps=STEPS)
    monkeypatch.setattr(kept, "LIMIT", (kept.LIMIT - runs[0].free) // 2)
    projected.clear()
    assert torch.equal(world.paint(world.patched, steps=STEPS), whole)
    assert 0 <= runs[1].free < kept.LIMIT
    assert 1 < len(projected) / (2 * len(cross_attentions(world.model))) < STEPS


def test_nothing_is_kept_while_hooks_change_weights(world, both_ways, runs):
    layer, attention = next(iter(cross_attentions(world.model).items()))
    hooks = comfy.hooks.create_hook_lora(lora_weights("unet", layer, attention.to_v), 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(1.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(0.0, start_percent=0.3))
    hooks.set_keyframes_on_hooks(keyframes)
    hooked = [[encoding, {**options, "hooks": hooks}] for encoding, options in world.positive]
    found, *times = both_ways(world, lambda: sample(world.patched, hooked, world.negative, steps=STEPS))
    assert times[0] == times[1] >= STEPS
    assert not runs
    assert not torch.equal(found, world.paint(world.patched, steps=STEPS))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, comfy.model_management.InterruptProcessingException])
def test_after_a_step_that_failed_or_was_no_number_the_next_picture_is_as_ever(world, error):
    before = world.paint(world.patched, steps=2)
    failing, spoiled, steps = world.patched.clone(), world.patched.clone(), itertools.count()

    def fail(q, k, v, _):
        if next(steps) == 3:
            raise error("in the middle of a step")
        return q, k, v

    failing.set_model_attn2_patch(fail)
    with pytest.raises(error):
        world.paint(failing, steps=4)
    spoiled.set_model_attn2_patch(lambda q, k, v, _: (q, k * torch.nan, v))
    assert world.paint(spoiled).isnan().any()
    assert torch.equal(world.paint(world.patched, steps=2), before)


def test_all_is_let_go_of_when_sampling_ends_however_it_ends(world, runs):
    world.paint(world.patched)
    failing, steps = world.patched.clone(), itertools.count()

    def stop(*_):
        if next(steps) > 8:
            raise comfy.model_management.InterruptProcessingException

    failing.set_model_attn2_patch(lambda q, k, v, _: stop() or (q, k, v))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        world.paint(failing, steps=9)
    assert len(runs) == 2
    assert all(run.free < kept.LIMIT and not run._texts and not run._projections for run in runs)
    closure = world.patched.wrappers["outer_sample"]["perfusion"][0].__self__
    assert closure._running.run is None
