"""Conditionings from the host's nodes, each prompt with the key lock of its own triggers: whole pictures against those
of a model that has the edit in its own weights."""

import pytest
import torch
from comfy_extras.nodes_hooks import ConditioningSetDefaultAndCombine, ConditioningSetProperties
from comfyui_perfusion.nodes.host.model import apply_to_model
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import STAGES, ConceptUse

import nodes as host_nodes
from makers import make_concept
from reference_model import TOY_PROMPT, close, edit_weights
from test_model import NEGATIVE, PROMPT, encode, record, sample, worst_difference
from test_schedule import step_at

LEFT = torch.zeros(1, 8, 8)
LEFT[:, :, :4] = 1


def combine(*conditionings):
    first, second = conditionings
    return host_nodes.ConditioningCombine().combine(first, second)[0]


def masked(conditioning, mask):
    return host_nodes.ConditioningSetMask().append(conditioning, mask, "default", 1.0)[0]


def in_bounds(conditioning, mask):
    return ConditioningSetProperties().set_properties(conditioning, 1.0, "mask bounds", mask=mask)[0]


def in_area(conditioning, x):
    return host_nodes.ConditioningSetArea().append(conditioning, 32, 64, x, 0, 1.0)[0]


def in_range(conditioning, start, end):
    return host_nodes.ConditioningSetTimestepRange().set_range(conditioning, start, end)[0]


WAYS = {  # and in how many steps both prompts show
    "combine": (combine, 1),
    "masks": (lambda toy, cup: combine(masked(toy, LEFT), masked(cup, 1 - LEFT)), 1),
    "mask bounds": (lambda toy, cup: combine(in_bounds(toy, LEFT), in_bounds(cup, 1 - LEFT)), 1),
    "default": (
        lambda toy, cup: ConditioningSetDefaultAndCombine().set_default_and_combine(masked(toy, LEFT), cup)[0],
        1,
    ),
    "areas": (lambda toy, cup: combine(in_area(toy, 0), in_area(cup, 32)), 1),
    "time ranges": (lambda toy, cup: combine(in_range(toy, 0.0, 0.3), in_range(cup, 0.3, 1.0)), 3),
}


@pytest.mark.parametrize(("way", "steps"), WAYS.values(), ids=WAYS)
def test_of_several_prompts_each_keeps_its_own_lock(world, way, steps):
    def paint(model, conditioning=way(world.toy, world.cup)):
        return sample(model, conditioning, world.negative, steps=steps)

    found = paint(world.patched)
    assert close(found, paint(world.reference))
    _, toy, cup = world.locked
    for only in (toy, cup):
        edit_weights(world.reference, world.uses, [only])
        assert not close(found, paint(world.reference))  # the other's lock is in the picture


def test_a_region_is_painted_as_if_its_prompt_were_alone(world):
    """After one step, in which regions cannot yet see each other."""
    together = sample(world.patched, combine(masked(world.toy, LEFT), masked(world.cup, 1 - LEFT)), world.negative)
    toy, cup = (sample(world.patched, one, world.negative) for one in (world.toy, world.cup))
    assert close(together[..., :4], toy[..., :4])
    assert close(together[..., 4:], cup[..., 4:])
    assert not close(toy, cup)


def test_attention_couple_edits_each_regions_prompt_locally(world):
    """As nodes that hand other prompts to attention do: every row of q meets both prompts."""

    def paint(model):
        model = model.clone()
        other = world.cup[0][0]

        def both(q, k, v, options):
            return torch.cat([q, q]), torch.cat([k, other.expand_as(k)]), torch.cat([v, other.expand_as(v)])

        def halves(out, options):
            ours, theirs = out.chunk(2)
            middle = out.shape[1] // 2
            return torch.cat([ours[:, :middle], theirs[:, middle:]], dim=1)

        model.set_model_attn2_patch(both)
        model.set_model_attn2_output_patch(halves)
        return world.paint(model)

    found = paint(world.patched)
    assert not close(found, world.paint(world.patched))
    edit_weights(world.reference, world.uses, world.locked[:1])
    assert close(found, paint(world.reference))


def test_a_prompt_put_behind_another_is_locked_locally(world):
    """ConditioningConcat keeps what it knows of the first only."""
    conditioning = host_nodes.ConditioningConcat().concat(world.toy, world.cup)[0]
    keys = torch.cat([world.keys(TOY_PROMPT, world.clip), world.cup[0][0]], dim=1)
    edit_weights(world.reference, world.uses, [(conditioning[0][0], keys)])
    found = sample(world.patched, conditioning, world.negative)
    assert close(found, sample(world.reference, conditioning, world.negative))


def test_an_average_is_locked_locally_and_says_so(world, caplog):
    conditioning = host_nodes.ConditioningAverage().addWeighted(world.toy, world.cup, 0.7)[0]
    found = sample(world.patched, conditioning, world.negative)
    assert "key lock is local" in caplog.text
    assert close(found, sample(world.reference, conditioning, world.negative))  # which finds no lock for it
    assert not close(found, sample(world.patched, world.toy, world.negative))


def test_a_prompt_encoded_without_concepts_is_locked_locally(world):
    foreign = encode(world.plain_clip, "a photo of a teddy, " + "very long, " * 40)
    assert foreign[0][0].shape[1] > 77
    for conditionings in ((foreign, world.negative), (world.toy, foreign), (world.toy, encode(world.plain_clip, ""))):
        assert close(sample(world.patched, *conditionings), sample(world.reference, *conditionings))


@pytest.mark.parametrize("lock", [0.0, 0.25, 1.0])
def test_one_prompt_with_two_locks_in_one_batch(world, lock):
    """The same encoding twice, told apart by its place in the batch."""
    (toy, _), prompt = world.uses, TOY_PROMPT
    other = encode(apply_to_clip(world.plain_clip, [toy.replace(key_lock=lock)]), prompt)
    assert torch.equal(other[0][0], world.toy[0][0])
    apart = [sample(world.patched, one, world.negative, cfg=1.0) for one in (world.toy, other)]
    together = sample(world.patched, combine(world.toy, other), world.negative, cfg=1.0)
    assert close(together, (apart[0] + apart[1]) / 2)
    assert close(*apart) == (lock == 1.0)


def test_two_concepts_of_one_superclass(models):
    model, clip, _ = models("sd1")
    uses = [
        ConceptUse(make_concept(model, clip, trigger, "teddy", seed), 0.6, 0.15)
        for seed, trigger in enumerate(("<my-toy>", "<my-cup>"))
    ]
    prompts = apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    seen, forwards = record(apply_to_model(model, uses), positive, negative)
    encodings = {0: positive[0][0], 1: negative[0][0]}
    assert worst_difference(model, seen, forwards, encodings, encodings, uses) < 1e-4


def test_half_the_strength_is_half_the_edit(world):
    halves = [use.replace(strength=0.5) for use in world.uses]
    plain, full, half = (
        record(model, world.positive, world.negative)[0]
        for model in (world.model, world.patched, apply_to_model(world.model, halves))
    )
    for place, output in half.items():
        if place[1] == "to_v":  # keys are of the locked prompt, or not
            torch.testing.assert_close(output, (plain[place] + full[place]) / 2, rtol=1e-3, atol=1e-3)
            assert (plain[place] - full[place]).abs().max() > 0.1


@pytest.mark.parametrize("first", ["toy", "cup"])
def test_of_two_concepts_with_spans_each_acts_in_its_own(world, first):
    """The locks are the conditioning's, and hold while any concept acts."""
    spans = {"start_percent": 0.0, "end_percent": 0.5}, {"start_percent": 0.5, "end_percent": 1.0}
    early, late = world.uses if first == "toy" else reversed(world.uses)
    both = apply_to_model(world.model, [early.replace(**spans[0]), late.replace(**spans[1])])
    for denoise, use in ((1.0, early), (0.25, late)):
        found, alone = (
            step_at(model, world.positive, world.negative, denoise)
            for model in (both, apply_to_model(world.model, [use]))
        )
        assert close(found, alone)
        assert not close(found, step_at(world.patched, world.positive, world.negative, denoise))


def test_a_locked_concept_outside_its_span_or_stage_is_absent_bit_for_bit(world):
    toy, _ = world.uses
    late = apply_to_model(world.model, [toy.replace(start_percent=0.5)])
    found, plain = (step_at(model, world.toy, world.negative, 1.0) for model in (late, world.model))
    assert torch.equal(found, plain)
    up = record(apply_to_model(world.model, [toy.replace(down=0.0, middle=0.0)]), world.toy, world.negative)[0]
    for (layer, projection), output in record(world.model, world.toy, world.negative)[0].items():
        acts = STAGES[layer.partition(".")[0]] == "up"
        assert torch.equal(up[layer, projection], output) == (not acts)
