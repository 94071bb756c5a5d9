"""Concepts that are kept apart: who is where, and what acts there."""

import pytest
import torch
from comfy import supported_models
from comfyui_perfusion.nodes.apart import PerfusionKeepApart, PerfusionRegions
from comfyui_perfusion.nodes.compose import PerfusionApply
from comfyui_perfusion.nodes.host.apart import Finder, KeepApart
from comfyui_perfusion.nodes.host.model import apply_to_model, concepts_on, cross_attentions, keep_apart
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import concept_set
from einops import rearrange

import nodes as host_nodes
import test_whole_families as families
from random_families import CONFIGS, VIDEO, empty_latent
from test_model import NEGATIVE, PROMPT, encode, sample, two_uses
from test_together import NODES, in_tiles, row_by_row, steered

BOTH = torch.ones(1, 1, 2)  # (pictures, tokens, concepts): each gate is open somewhere
LEFT = torch.zeros(1, 8, 8).index_fill_(2, torch.arange(4), 1.0)


@pytest.fixture
def finders(monkeypatch):
    """All that are made."""
    made, plain = [], Finder.__init__

    def noted(self, *args):
        plain(self, *args)
        made.append(self)

    monkeypatch.setattr(Finder, "__init__", noted)
    return made


def opened(uses):
    """Random encoders find a trigger less alike its concept than trained ones do."""
    return [use.replace(beta=0.07, temperature=0.02) for use in uses]


def open_uses(model, clip):
    return opened(two_uses(model, clip))


def conds_of(clip, uses, prompt=PROMPT):
    known = apply_to_clip(clip, uses)
    return encode(known, prompt), encode(known, NEGATIVE)


def looks(*rows):
    """(1, concepts, 1, 1, spots)"""
    return torch.tensor(rows)[None, :, None, None]


def found_by(finder, seen, gates=BOTH, strength=1.0):
    finder.begin(2.0)
    finder.add(seen, gates, None)
    finder.begin(1.0)
    return [None if mask is None else mask.flatten().tolist() for mask in finder.masks(strength)]


def test_a_concept_that_is_looked_at_from_everywhere_gets_only_its_part():
    finder = Finder((1, 4), [None, None])
    assert found_by(finder, looks([0.5, 0.4, 0.4, 0.4], [0.01, 0.0, 0.1, 0.1])) == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert finder.masks(0.25)[0].flatten().tolist() == [1, 1, 0.75, 0.75]


def test_several_conditionings_and_layers_of_one_evaluation_are_added_up():
    finder = Finder((2, 4), [None, None])
    finder.begin(1.0)
    assert finder.masks(1.0) == [None, None] and finder.found() is None
    finder.add(looks([0.9, 0.1], [0.1, 0.3]), BOTH, None)  # a layer of half the size
    finder.begin(1.0)
    finder.add(looks([0.0, 0.0], [9.0, 9.0]), BOTH, (1, 2, 1, 0))  # an area: the lower row's first two spots
    finder.begin(0.5)
    first, second = finder.masks(1.0)
    assert first[0, 0].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]] and torch.equal(first + second, torch.ones_like(first))


def test_a_concept_that_the_prompt_does_not_name_keeps_nobody_out():
    finder = Finder((1, 2), [None, None])
    assert found_by(finder, looks([0.5, 0.4], [0.0, 0.01]), torch.tensor([[[1.0, 0.1]]])) == [[1, 1], [0, 0]]
    masked = Finder((1, 2), [None, torch.ones(1, 1, 1, 1)])
    assert found_by(masked, looks([0.5, 0.4], [0.0, 0.01]), torch.tensor([[[1.0, 0.1]]]))[0] == [1, 1]


def test_a_mask_is_its_concepts_region():
    given = torch.tensor([[[[1.0, 0.0]]]])
    finder = Finder((1, 4), [given, None])
    masks = found_by(finder, looks([0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5]))
    assert masks == [[1, 0], [0, 0, 1, 1]]
    assert finder.found().flatten(1).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_looks_are_the_models_own_attention(models, monkeypatch):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds, told, seen = conds_of(clip, uses), [], []
    monkeypatch.setattr(Finder, "add", lambda self, looks, gates, area: told.append((looks, gates)))
    model = keep_apart(apply_to_model(model, uses), KeepApart())

    def override(attention, q, k, v, heads, *args, transformer_options, **kwargs):
        if q.shape[1] != k.shape[1]:
            row = transformer_options["cond_or_uncond"].index(0)
            split = (rearrange(x[row : row + 1], "b n (h d) -> b h n d", h=heads) for x in (q, k))
            seen.append(torch.einsum("bhsd,bhtd->bhst", *split).mul((q.shape[-1] // heads) ** -0.5).softmax(-1))
        return attention(q, k, v, heads, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(model, *conds)
    gates = concept_set(uses).gates(conds[0][0][0])
    assert len(told) == len(seen) > 5
    for (shares, open_), attention in zip(told, seen, strict=True):
        torch.testing.assert_close(open_, gates, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(shares[0].flatten(1).T, (attention[0] @ gates[0]).mean(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beside", ["nothing", "LoRA", "ControlNet"])
def test_from_the_second_step_on_each_acts_where_the_other_is_not(models, finders, beside):
    """As two samplers in a row, of which the second has what the first one found as masks."""
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds = conds_of(clip, uses)
    if beside == "LoRA":
        model, layer = model.clone(), next(iter(cross_attentions(model).values()))
        change = 0.1 * torch.randn(layer.to_q.weight.shape, generator=torch.Generator().manual_seed(0))
        model.add_patches({f"{layer.path('to_q')}.weight": ("diff", (change,))})
    elif beside == "ControlNet":
        conds = steered(model, *conds)
    plain = apply_to_model(model, uses)
    apart = keep_apart(plain, KeepApart())
    got, everywhere = sample(apart, *conds, steps=2), sample(plain, *conds, steps=2)
    assert (got - everywhere).abs().max() > 1e-3
    latent, sampler = {"samples": torch.zeros(1, 4, 8, 8)}, host_nodes.KSamplerAdvanced()
    settings = 7, 2, 5.0, "euler", "normal"
    (half,) = sampler.sample(plain, "enable", *settings, *conds, latent, 0, 1, "enable")
    masks = [mask[:, 0] for mask in finders[0].masks(1.0)]
    assert all(0 < mask.mean() < 1 for mask in masks)
    masked = apply_to_model(model, [use.replace(mask=mask) for use, mask in zip(uses, masks, strict=True)])
    (expected,) = sampler.sample(masked, "disable", *settings, *conds, half, 1, 10, "disable")
    torch.testing.assert_close(got, expected["samples"], rtol=1e-3, atol=1e-4)


def test_off_and_alone_it_is_todays_picture_bit_for_bit(models):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds = conds_of(clip, uses)
    for some, apart in ((uses, KeepApart(strength=0.0)), (uses[:1], KeepApart())):
        plain = apply_to_model(model, some)
        assert torch.equal(sample(plain, *conds, steps=2), sample(keep_apart(plain, apart), *conds, steps=2))
    applied = keep_apart(apply_to_model(model, uses), KeepApart())
    assert torch.equal(
        sample(apply_to_model(applied, [use.replace(strength=0.0) for use in uses]), *conds), sample(model, *conds)
    )


def test_it_ends_at_its_percent(models, monkeypatch):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    begun, plain = [], Finder.begin
    monkeypatch.setattr(Finder, "begin", lambda self, sigma: (begun.append(sigma), plain(self, sigma)))
    sample(keep_apart(apply_to_model(model, uses), KeepApart(end_percent=0.5)), *conds_of(clip, uses), steps=6)
    assert 2 <= len(set(begun)) <= 4


def test_every_picture_and_area_has_its_own_regions(models, finders):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    positive, negative = conds_of(clip, uses)
    apart = keep_apart(apply_to_model(model, uses), KeepApart())
    several = sample(apart, positive, negative, steps=3, batch=3)
    first, *_ = finders[0].masks(1.0)
    assert first.shape == (3, 1, 8, 8) and not torch.equal(first[0], first[1])
    assert torch.isfinite(several).all()
    (area,) = host_nodes.ConditioningSetArea().append(positive, 32, 64, 32, 0, 1.0)
    sample(apart, area, negative, steps=2)
    first, second = finders[1].masks(1.0)
    assert first[..., :4].min() == second[..., :4].min() == 1  # nothing is looked at beyond the area
    assert torch.equal(first[..., 4:] + second[..., 4:], torch.ones(1, 1, 8, 4))


def test_the_order_of_the_nodes_and_how_concepts_are_merged_stay(models):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds = conds_of(clip, uses)
    behind, ahead = keep_apart(apply_to_model(model, uses), KeepApart()), keep_apart(model, KeepApart())
    assert torch.equal(sample(behind, *conds, steps=2), sample(apply_to_model(ahead, uses), *conds, steps=2))
    independent = PerfusionApply.execute(ahead, clip, uses, "independent")[0]
    later = keep_apart(apply_to_model(model, uses, joint=False), KeepApart())
    assert torch.equal(sample(independent, *conds, steps=2), sample(later, *conds, steps=2))
    assert not torch.equal(sample(independent, *conds, steps=2), sample(behind, *conds, steps=2))


def test_a_run_that_ends_early_leaves_nothing(models):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds, apart = conds_of(clip, uses), KeepApart()
    model = keep_apart(apply_to_model(model, uses), apart)
    before = sample(model, *conds, steps=2)
    broken = model.clone()
    broken.set_model_sampler_cfg_function(lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(broken, *conds, steps=2)
    assert len(apart.runs) == 1 and torch.equal(sample(model, *conds, steps=2), before)


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_nodes_that_change_the_model_work_before_and_after(models, node):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds, plain = conds_of(clip, uses), apply_to_model(model, uses)
    before = sample(keep_apart(apply_to_model(node(model)[0], uses), KeepApart()), *conds, steps=2, size=16)
    assert torch.equal(sample(node(keep_apart(plain, KeepApart()))[0], *conds, steps=2, size=16), before)
    assert (sample(node(plain)[0], *conds, steps=2, size=16) - before).abs().max() > 1e-4


@pytest.mark.parametrize("wrapper", [in_tiles, row_by_row])
def test_batches_that_other_nodes_make_leave_it_off(models, wrapper):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds, apart = conds_of(clip, uses), KeepApart()
    plain = apply_to_model(model, uses)
    plain.set_model_unet_function_wrapper(wrapper)
    kept = keep_apart(plain, apart)
    alone, beside = (sample(patched, *conds, steps=2) for patched in (plain, kept))
    assert (alone - beside).abs().max() < 1e-5 * alone.abs().max()
    assert not apart.runs


def test_at_cfg_1_there_is_no_negative_prompt(models):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    conds, plain = conds_of(clip, uses), apply_to_model(model, uses)
    pictures = [sample(some, *conds, steps=2, cfg=1.0) for some in (plain, keep_apart(plain, KeepApart()))]
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4


@pytest.mark.skipif(not hasattr(supported_models, "Anima"), reason="this host is older than Anima")
@pytest.mark.parametrize("family", CONFIGS)
def test_it_works_in_every_family(made, family):
    model, clip, _ = made(family)
    uses = families.two_uses(model, clip)
    uses = uses if family == "anima" else opened(uses)  # whose random encoder finds all words alike
    frames = 3 if family in VIDEO else 1
    latent = empty_latent(model, 8, frames, pictures=2)
    known, plain, apart = apply_to_clip(clip, uses), apply_to_model(model, uses), KeepApart()
    conds = encode(known, families.PROMPT), encode(known, families.NEGATIVE)
    pictures = [
        host_nodes.common_ksampler(some, 7, 2, 3.0, "euler", "simple", *conds, latent)[0]["samples"]
        for some in (plain, keep_apart(plain, apart))
    ]
    assert torch.isfinite(pictures[1]).all() and (pictures[0] - pictures[1]).abs().max() > 1e-5
    regions = apart.found_in(pictures[1]).regions
    assert regions.shape == (2, 2, frames, 8, 8) and regions.amax((2, 3, 4)).min() == 1
    assert regions.sum(0).max() == 1


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_regions_come_out_as_masks(models, kind):
    model, clip, _ = models(kind)
    uses = open_uses(model, clip)
    conds = conds_of(clip, uses)
    patched = PerfusionKeepApart.execute(apply_to_model(model, uses), 1.0, 1.0)[0]
    samples = sample(patched, *conds, steps=2, batch=2)
    picture = torch.rand(2, 64, 48, 3)
    masks, overlay = PerfusionRegions.execute(patched, {"samples": samples}, picture).args
    assert masks.shape == (4, 64, 48) and masks.amax((1, 2)).min() > 0.5
    assert (masks[0] + masks[2]).max() < 1.01 and overlay.shape[-1] == 3
    before = PerfusionKeepApart.execute(apply_to_model(model, uses[:1]), 1.0, 1.0)[0]  # a Loader comes behind it
    later = sample(apply_to_model(before, uses[1:]), *conds, steps=2, batch=2)
    masks, *_ = PerfusionRegions.execute(before, {"samples": later}, picture).args
    assert len(masks) == 4
    with pytest.raises(ValueError, match="No regions are known for this LATENT"):
        PerfusionRegions.execute(patched, {"samples": samples + 1}, picture)
    with pytest.raises(ValueError, match="There is no Perfusion Keep Apart on this model"):
        PerfusionRegions.execute(model, {"samples": samples}, picture)


def test_boxes_are_regions(models):
    model, clip, _ = models("sd1")
    uses = open_uses(model, clip)
    applied = apply_to_model(model, uses)
    box = {"type": "obj", "bbox": [0, 0, 1000, 500], "desc": " <My-Toy> "}
    placed = PerfusionKeepApart.execute(applied, 1.0, 1.0, [box, {**box, "bbox": [0, 900, 1000, 1000]}])[0]
    toy, cup = concepts_on(placed)
    assert cup.mask is None and toy.mask.shape == (1, 250, 250)
    assert toy.mask[0, :, [10, 130, 240]].mean(0).tolist() == [1, 0, 1]
    conds = conds_of(clip, uses)
    masked = keep_apart(apply_to_model(model, [toy, cup]), KeepApart())
    assert torch.equal(sample(placed, *conds, steps=2), sample(masked, *conds, steps=2))
    for broken, said in (
        ({**box, "desc": "toy"}, "A box says 'toy'"),
        ({"bbox": box["bbox"]}, "A box has no descript"),
    ):
        with pytest.raises(ValueError, match=said):
            PerfusionKeepApart.execute(applied, 1.0, 1.0, [broken])
    with pytest.raises(ValueError, match="behind the loaders"):
        PerfusionKeepApart.execute(model, 1.0, 1.0, [box])
