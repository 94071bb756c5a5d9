"""The edit in models that are no UNets, at every layer, against the paper's formula in float64."""

from __future__ import annotations

import pytest
import torch
from comfy import supported_models
from comfy.model_patcher import ModelPatcher
from comfyui_perfusion.nodes.host.families import FAMILIES, family_of
from comfyui_perfusion.nodes.host.model import apply_to_model, base_model, cross_attentions, encoding_width
from comfyui_perfusion.nodes.host.text import ENCODING, KEYS
from comfyui_perfusion.nodes.host.uses import ConceptUse, stages
from comfyui_perfusion.perfusion_core import Concept

import nodes as host_nodes
from random_families import CONFIGS, PIXART, WIDTH, empty_latent, random_model
from test_model import own_part, record, worst_difference

pytestmark = pytest.mark.skipif(not hasattr(supported_models, "Anima"), reason="this host is older than Anima")
TOKENS, PADDED = 9, 512
CPU = torch.device("cpu")
each_family = pytest.mark.parametrize("family", CONFIGS)


def concept(model, seed: int) -> Concept:
    """Its token embedding is what a text encoder would give for the trigger, which may be all that layers receive."""
    generator = torch.Generator().manual_seed(seed)
    encodings, family = torch.randn(2, WIDTH, generator=generator), family_of(model)
    if family.in_forward:
        received = family.received(model.model.diffusion_model, encodings, {})
    target, superclass = received if family.in_forward else encodings
    deltas = {
        layer: 0.5 * torch.randn(attention.width, generator=generator)
        for layer, attention in cross_attentions(model).items()
    }
    dual = target / target.square().sum()
    return Concept(
        f"c{seed}", f"<c{seed}>", "thing", base_model(model), {"x": encodings[0]}, target, dual, superclass, deltas
    )


def conditioning(model, uses, seed: int, lock: bool = False):
    """What a text encoder would give for a prompt with all triggers, and what its layers then receive: of the encoding
    and of what keys see in its place, (1, tokens, d) each."""
    family, generator = family_of(model), torch.Generator().manual_seed(seed)
    encoding, more = torch.randn(1, TOKENS, WIDTH, generator=generator), {}
    if family.name == "anima":
        more["t5xxl_ids"] = torch.randint(1, 32000, (TOKENS,), generator=generator, dtype=torch.int)
        more["t5xxl_weights"] = torch.linspace(1, 1.2, TOKENS)
    else:
        for place, use in enumerate(uses):
            encoding[:, 3 + place] = use.concept.token_embeddings["x"]
        if family.name == "ltx-video":
            more["attention_mask"] = torch.ones(1, TOKENS, dtype=torch.int)
        elif family.zero_padded:
            encoding = torch.nn.functional.pad(encoding, (0, 0, 0, PADDED - TOKENS))
    keys = (
        encoding
        if not lock
        else torch.where(encoding == 0, 0.0, encoding + torch.randn(encoding.shape, generator=generator))
    )
    locked = {ENCODING: encoding, KEYS: keys} if lock else {}
    with torch.no_grad():
        received = [family.received(model.model.diffusion_model, text, more) for text in (encoding, keys)]
    return [[encoding, {**more, **locked}]], received


def uses_of(model):
    return [ConceptUse(concept(model, 1), 0.6, 0.15), ConceptUse(concept(model, 2), 0.7, 0.1)]


@each_family
@pytest.mark.parametrize("lock", [False, True])
def test_keys_and_values_are_the_papers_at_every_layer_and_padding_stays_as_it_is(made, family, lock):
    model, *_ = made(family)
    uses = uses_of(model)
    positive, (encoding, keys) = conditioning(model, uses, 3, lock)
    negative, (blank, _) = conditioning(model, [], 4)
    seen, forwards = record(apply_to_model(model, uses), positive, negative)
    assert sorted(forwards[0][1]) == [0, 1]  # cond and uncond together
    assert len(seen) == 2 * len(cross_attentions(model)) == 8
    assert encoding.shape == (1, PADDED if family_of(model).zero_padded else TOKENS, encoding_width(model))
    words = {0: encoding[:, :TOKENS], 1: blank[:, :TOKENS]}
    key_words = {0: keys[:, :TOKENS], 1: blank[:, :TOKENS]}
    outputs = {place: output[:, :TOKENS] for place, output in seen.items()}
    assert worst_difference(model, outputs, forwards, words, key_words, uses) < 1e-4
    for (layer, projection), output in seen.items():  # no concept in the padding
        attention = cross_attentions(model)[layer]
        module = getattr(attention, projection)
        plain = own_part(attention, projection, type(module).forward(module, encoding))
        torch.testing.assert_close(output[:1, TOKENS:], plain[:, TOKENS:])


@each_family
def test_a_bypassed_model_gives_the_same_bits(made, family):
    model, *_ = made(family)
    uses = uses_of(model)
    positive, negative = conditioning(model, uses, 3)[0], conditioning(model, [], 4)[0]
    paint = lambda model: host_nodes.common_ksampler(  # noqa: E731
        model, 7, 2, 3.0, "euler", "simple", positive, negative, empty_latent(model, 4)
    )[0]["samples"]
    before = paint(model)
    patched = paint(apply_to_model(model, uses))
    assert not torch.equal(before, patched)
    off = apply_to_model(apply_to_model(model, uses), [use.replace(strength=0.0) for use in uses])
    assert torch.equal(before, paint(off))
    assert torch.equal(before, paint(model))


def test_a_family_is_told_by_the_hosts_class_not_by_its_width(made, models):
    kinds = {"sd1": "sd1", "sd2": "sd2", "sd2v": "sd2", "sdxl": "sdxl"}
    assert {kind: base_model(models(kind)[0]) for kind in kinds} == kinds
    assert all(base_model(made(family)[0]) == family for family in CONFIGS)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_a_concept_of_another_family_with_the_same_layers_is_refused(made):
    (cosmos, *_), (anima, *_) = made("cosmos-predict2"), made("anima")
    with pytest.raises(ValueError, match=r"trained for cosmos-predict2.*this model is anima"):
        apply_to_model(anima, [ConceptUse(concept(cosmos, 1))])


def test_both_kinds_of_pixart_are_told_apart():
    """Their autoencoders differ, the layers do not."""
    sizes = {"image_model": "pixart_alpha", **PIXART, "micro_condition": True}
    alpha = supported_models.PixArtAlpha({**sizes, "dtype": torch.float32})
    alpha = ModelPatcher(alpha.get_model({}, device=CPU), CPU, CPU)
    assert base_model(alpha) == "pixart-alpha" and len(cross_attentions(alpha)) == 4
    with pytest.raises(ValueError, match=r"trained for pixart-sigma.*this model is pixart-alpha"):
        apply_to_model(alpha, [ConceptUse(concept(random_model("pixart-sigma"), 1))])


def test_models_of_no_known_family_are_refused_by_name(made):
    model = made("anima")[0].clone()
    model.model = torch.nn.Module()
    with pytest.raises(
        ValueError,
        match=r"SD1.x, .*Anima, .*PixArt Sigma, Qwen-Image, .*Flux, Flux 2 Klein and SD3. This one is Module",
    ):
        family_of(model)


def test_blocks_in_a_row_have_their_thirds_as_stages():
    layers = [f"blocks.{number}.cross_attn" for number in (10, 2, 0, 1, 3, 11)]
    assert [stages(layers)[layer] for layer in layers] == ["up", "middle", "down", "down", "middle", "up"]
