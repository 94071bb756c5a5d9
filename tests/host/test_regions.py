"""Concepts with masks: what attention gives in a layer, against attention on values that differ from spot to spot."""

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy import supported_models
from comfy.patcher_extension import WrappersMP
from comfyui_perfusion.nodes import compose
from comfyui_perfusion.nodes.host.model import apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.regions import grid
from comfyui_perfusion.nodes.host.text import apply_to_clip
from einops import rearrange

import nodes as host_nodes
import test_whole_families as families
from random_families import CONFIGS, VIDEO, empty_latent
from test_model import NEGATIVE, PROMPT, encode, sample, two_uses

LEFT = torch.zeros(1, 16, 16).index_fill_(2, torch.arange(8), 1.0)


def masked(uses, *masks):
    return [use.replace(mask=mask) for use, mask in zip(uses, masks, strict=True)]


def without_look(use):
    """The concept as its masks leave it outside: where it stands, and the superclass's look."""
    deltas = {layer: torch.zeros_like(delta) for layer, delta in use.concept.value_deltas.items()}
    return use.replace(concept=use.concept.replace(value_deltas=deltas))


def painted(model, clip, uses, prompt=PROMPT, **settings):
    prompts = apply_to_clip(clip, uses)
    return sample(apply_to_model(model, uses), encode(prompts, prompt), encode(prompts, NEGATIVE), **settings)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_white_mask_is_none_and_a_black_one_leaves_the_superclass(models, kind):
    model, clip, _ = models(kind)
    uses = two_uses(model, clip)
    everywhere, white, black = (
        painted(model, clip, some, steps=2)
        for some in (uses, masked(uses, *[torch.ones(1, 5, 7)] * 2), masked(uses, torch.zeros(1, 5, 7), None))
    )
    assert (everywhere - white).abs().max() < 1e-4 * everywhere.abs().max()
    bare = painted(model, clip, [without_look(uses[0]), uses[1]], steps=2)
    assert (bare - black).abs().max() < 1e-4 * bare.abs().max()
    assert (everywhere - black).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_attention_sees_every_spots_own_values(models, kind):
    model, clip, _ = models(kind)
    ramp = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    uses = masked(two_uses(model, clip), LEFT, ramp)
    with_toy, with_cup = masked(uses, None, None)
    toy_gone, cup_gone = map(without_look, (with_toy, with_cup))
    prompts = apply_to_clip(clip, uses)
    conds = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    shown = uses, [with_toy, with_cup], [toy_gone, with_cup], [with_toy, cup_gone], [toy_gone, cup_gone]
    layer, *_ = cross_attentions(model)  # all that comes before it is the same in all five
    got, everywhere, toyless, cupless, bare = (listened(apply_to_model(model, some), *conds)[layer] for some in shown)
    spots = got.shape[1]
    side = int(spots**0.5)
    left, right = (torch.nn.functional.interpolate(m[:, None], (side, side), mode="area").flatten()[:, None]
                   for m in (LEFT, ramp))  # fmt: skip
    toy, cup = cupless - bare, toyless - bare  # attention is linear in the values
    torch.testing.assert_close(bare + toy + cup, everywhere, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got, bare + left * toy + right * cup, rtol=1e-3, atol=1e-5)
    assert toy.abs().max() > 1e-3 and cup.abs().max() > 1e-3


def listened(model, positive, negative) -> dict[str, torch.Tensor]:
    """{layer: what its to_out received, (batch, spots, heads d)} in the first forward, as the module itself gets it."""
    heard, layers, model = {}, cross_attentions(model), model.clone()

    def watch(executor, *args, **kwargs):
        handles = []
        for layer, attention in layers.items():
            linear = comfy.utils.get_attr(model.model, f"{attention.path('to_out')}.0")

            def note(_, given, layer=layer):
                heard.setdefault(layer, given[0])

            handles.append(linear.register_forward_pre_hook(note))
        try:
            return executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    sample(model, positive, negative, steps=1)
    comfy.model_management.unload_all_models()
    return heard


def test_the_mask_lies_on_the_picture_in_areas_batches_and_odd_sizes(models):
    """A mask that is white in the area's part is a white mask there; the second picture has its own."""
    model, clip, _ = models("sd1")
    toy, _ = two_uses(model, clip)
    prompts = apply_to_clip(clip, [toy])
    positive, negative = encode(prompts, "a <my-toy>"), encode(prompts, NEGATIVE)

    def of(mask, conds=positive, **settings):
        return sample(apply_to_model(model, [toy.replace(mask=mask)]), conds, negative, steps=2, **settings)

    for area in (
        host_nodes.ConditioningSetArea().append(positive, 32, 64, 32, 0, 1.0)[0],
        host_nodes.ConditioningSetAreaPercentage().append(positive, 0.5, 1.0, 0.5, 0.0, 1.0)[0],
    ):
        # at cfg 1, since the host also evaluates the negative prompt on the whole picture, where gates are hardly open
        whole, right, left = (of(mask, area, cfg=1.0) for mask in (None, 1 - LEFT, LEFT))
        assert (whole - right).abs().max() < 1e-4 * whole.abs().max()
        assert (whole - left).abs().max() > 0.01
    two = of(torch.cat([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)]), batch=2)
    white, black = (of(torch.full((1, 4, 4), value), batch=2) for value in (1.0, 0.0))
    assert (two[0] - white[0]).abs().max() < 1e-4 and (two[1] - black[1]).abs().max() < 1e-4
    odd = [of(mask, size=9) for mask in (None, torch.ones(1, 40, 40))]
    assert (odd[0] - odd[1]).abs().max() < 1e-4 * odd[0].abs().max()


def test_nothing_is_left_without_masks_and_other_nodes_patches_stay(models):
    model, clip, _ = models("sd1")
    toy, cup = two_uses(model, clip)
    called = []

    def theirs(x, module=None):
        called.append(x.shape)
        return type(module).forward(module, x)

    (attention, *_) = cross_attentions(model).values()
    name = f"{attention.path('to_out')}.forward"
    model = model.clone()
    to_out = comfy.utils.get_attr(model.model, attention.path("to_out"))
    model.add_object_patch(name, lambda x: theirs(x, to_out))
    before = dict(model.object_patches)
    patched = apply_to_model(model, [toy.replace(mask=LEFT), cup])
    assert len(patched.object_patches) == 4 * len(cross_attentions(model))
    plain = apply_to_model(patched, [toy, cup])
    assert len(plain.object_patches) == 2 * len(cross_attentions(model)) + 1
    assert apply_to_model(plain, [toy.replace(strength=0.0), cup.replace(strength=0.0)]).object_patches == before
    prompts = apply_to_clip(clip, [toy, cup])
    sample(patched, encode(prompts, PROMPT), encode(prompts, NEGATIVE))
    assert called


def test_the_mask_holds_for_attention_that_another_node_computes(models):
    """As IP-Adapter replaces it, without the host's options."""
    model, clip, _ = models("sd1")
    toy, cup = two_uses(model, clip)

    def attention(q, k, v, options):
        heads = options["n_heads"]
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
        return rearrange(torch.nn.functional.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")

    replaced = model.clone()
    for block, number in (("input", 1), ("input", 2), ("input", 4), ("input", 5), ("middle", 0), ("output", 3)):
        replaced.set_model_attn2_replace(attention, block, number)
    uses = masked([toy, cup], LEFT, 1 - LEFT)
    own, theirs = (painted(patched, clip, uses) for patched in (model, replaced))
    assert (own - theirs).abs().max() < 1e-5 * own.abs().max()


@pytest.mark.skipif(not hasattr(supported_models, "Anima"), reason="this host is older than Anima")
@pytest.mark.parametrize("family", CONFIGS)
def test_masks_work_in_every_family(made, family):
    model, clip, _ = made(family)
    uses = families.two_uses(model, clip)
    latent = empty_latent(model, 4, frames=3 if family in VIDEO else 1)

    def of(*masks):
        shown = masked(uses, *masks)
        known, patched = apply_to_clip(clip, shown), apply_to_model(model, shown)
        conds = encode(known, families.PROMPT), encode(known, families.NEGATIVE)
        return host_nodes.common_ksampler(patched, 7, 1, 3.0, "euler", "simple", *conds, latent)[0]["samples"]

    everywhere, white, black = of(None, None), of(*[torch.ones(1, 5, 7)] * 2), of(*[torch.zeros(1, 5, 7)] * 2)
    assert (everywhere - white).abs().max() < 1e-3 * everywhere.abs().max()
    assert (everywhere - black).abs().max() > 1e-3


def test_the_grid_of_a_layer():
    assert grid((9, 13), 9 * 13) == ((9, 13), 1) and grid((9, 13), 5 * 7) == ((5, 7), 1)
    assert grid((4, 8, 8), 4 * 16) == ((4, 4), 4) and grid((1, 8, 8), 16) == ((4, 4), 1)
    with pytest.raises(ValueError, match=r"a layer of 50 spots.*9 x 13.*merges tokens"):
        grid((9, 13), 50)


def test_concept_settings_take_a_mask_in_any_usual_form(models):
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip)
    for mask in (LEFT, LEFT[0], LEFT[:, None]):
        for use in compose.PerfusionConceptSettings.execute(uses, mask=mask, strength=0.5)[0]:
            assert torch.equal(use.mask, LEFT) and use.strength == 0.5
    assert compose.PerfusionConceptSettings.execute(masked(uses, LEFT, LEFT), beta=0.6)[0][0].mask is None
    with pytest.raises(ValueError, match="The mask holds NaN"):
        compose.PerfusionConceptSettings.execute(uses, mask=LEFT * float("nan"))
