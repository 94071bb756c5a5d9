"""Where words are looked at, against attention computed the slow way, and the pictures beside it."""

import importlib
import types

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import pytest
import torch
from comfy import supported_models
from comfyui_perfusion.nodes.attention import PerfusionAttentionMap
from comfyui_perfusion.nodes.demo import PerfusionDemoModel
from comfyui_perfusion.nodes.host.attention import paint_watched, without_concepts
from comfyui_perfusion.nodes.host.model import PREFIX, apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.sampling import Sampling
from comfyui_perfusion.nodes.host.text import apply_to_clip, trigger_places
from comfyui_perfusion.nodes.host.uses import ConceptUse
from einops import rearrange

import test_whole_families as families
from makers import make_concept

SHORT, SHORT_PLACES = "a photo of a <my-toy> beside <MY-TOY> and <my-cup>", {"<my-toy>": [5, 7], "<my-cup>": [9]}
LONG, LONG_PLACES = " ".join(["red"] * 80) + " <my-toy> and a <my-cup>", {"<my-toy>": [83], "<my-cup>": [86]}
SETTINGS = {"steps": 2, "cfg": 5.0, "sampler": "euler", "scheduler": "normal", "resolution": 64}
SAMPLING = Sampling(**SETTINGS)
NETWORKS = {  # of every family, where its cross-attention calls the host's attention
    "anima": "cosmos.predict2", "cosmos-predict2": "cosmos.predict2", "wan": "wan.model",
    "ltx-video": "modules.attention", "pixart-sigma": "pixart.blocks",
}  # fmt: skip
CANCEL = comfy.model_management.InterruptProcessingException


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch):
    monkeypatch.setattr(PerfusionAttentionMap, "hidden", types.SimpleNamespace(unique_id=None))


class World:
    """A model before and after two concepts were applied to it."""

    def __init__(self, model, clip, vae, toy: str = "teddy bear"):
        concepts = make_concept(model, clip, "<my-toy>", toy, 1), make_concept(model, clip, "<my-cup>", "cup", 2)
        self.uses = [ConceptUse(concept, 0.6, 0.15, key_lock=0.5) for concept in concepts]
        self.plain_model, self.plain_clip, self.vae = model, clip, vae
        self.model, self.clip = apply_to_model(model, self.uses), apply_to_clip(clip, self.uses)

    def run(self, text: str, negative: str = "", **settings):
        return PerfusionAttentionMap.execute(
            self.model, self.clip, self.vae, text, negative, seed=3, **{**SETTINGS, **settings}
        )


@pytest.fixture
def world(models):
    return World(*models("sd1"))


@pytest.fixture(params=["demo", "sd1", "sdxl"])
def any_world(models, request):
    return World(*(PerfusionDemoModel.execute().args if request.param == "demo" else models(request.param)))


def slow_maps(calls, places, tokens: int, side: int):
    """{word: (batch, side, side)}, float64, one head of one picture in one layer at one step after the other."""
    maps = {word: 0.0 for word in places}
    evaluations = 0
    for q, k, heads, order in calls:
        if 0 not in order:
            continue
        evaluations += 1
        rows = q.double().chunk(len(order))[order.index(0)], k.double().chunk(len(order))[order.index(0)]
        for word in places:
            pictures = []
            for picture_q, picture_k in zip(*rows, strict=True):
                share = 0.0
                for head_q, head_k in zip(picture_q.chunk(heads, -1), picture_k.chunk(heads, -1), strict=True):
                    weights = torch.exp(head_q @ head_k.T / head_q.shape[1] ** 0.5)
                    weights = weights / weights.sum(1, keepdim=True)
                    for token in range(weights.shape[1]):
                        if token % tokens in places[word]:
                            share = share + weights[:, token] / heads
                small = round(len(share) ** 0.5)
                pictures.append(share.reshape(1, small, small))
            maps[word] = maps[word] + torch.nn.functional.interpolate(
                torch.stack(pictures), (side, side), mode="bilinear"
            )
    return {word: sums[:, 0] / evaluations for word, sums in maps.items()}


@pytest.mark.parametrize(
    ("text", "places", "negative", "together"),
    [
        (LONG, LONG_PLACES, "blurry", True),
        (SHORT, SHORT_PLACES, " ".join(["blue"] * 80), True),
        (SHORT, SHORT_PLACES, "blurry", False),
    ],
    ids=["long prompt", "long negative", "one after the other"],
)
def test_maps_are_the_mean_of_the_positive_prompts_attention_as_other_nodes_left_it(
    world, monkeypatch, text, places, negative, together
):
    layer = min(cross_attentions(world.model))
    to_q = cross_attentions(world.model)[layer].to_q
    world.model.add_object_patch(f"{PREFIX}{layer}.to_q.forward", lambda x: 2 * type(to_q).forward(to_q, x))
    world.model.set_model_attn2_patch(lambda n, context, value, _: (n, 1.5 * context, value))
    if not together:
        monkeypatch.setattr(world.model.model, "memory_required", lambda *_, **__: 1e30)
    calls, attention = [], host_attention.optimized_attention

    def spy(q, k, v, heads, *args, **kwargs):
        if k.shape[1] % 77 == 0:
            calls.append((q, k, heads, kwargs["transformer_options"]["cond_or_uncond"]))
        return attention(q, k, v, heads, *args, **kwargs)

    monkeypatch.setattr(host_attention, "optimized_attention", spy)
    _, maps = paint_watched(world.model, world.clip, world.vae, SAMPLING, text, negative, seed=1, count=2)
    assert len(calls) == (1 if together else 2) * SAMPLING.steps * len(cross_attentions(world.model))
    expected = slow_maps(calls, places, 154 if text == LONG else 77, 64)
    assert list(maps) == list(expected)
    for word, values in maps.items():
        assert values.shape == (2, 64, 64)
        assert torch.allclose(values.double(), expected[word], rtol=1e-4, atol=0)


@pytest.mark.skipif(not hasattr(supported_models, "Anima"), reason="this host is older than Anima")
@pytest.mark.parametrize("family", NETWORKS)
def test_maps_are_what_attention_makes_of_queries_and_keys_in_every_family(made, family, monkeypatch):
    """With norms, and without the padding that it is told to leave out."""
    model, clip, vae = made(family)
    uses = families.two_uses(model, clip)
    model, known, shares = apply_to_model(model, uses), apply_to_clip(clip, uses), []
    network = importlib.import_module(f"comfy.ldm.{NETWORKS[family]}")
    attention, prompt = network.optimized_attention, "a photo of a <my-dog> and a <my-cup>"
    places = trigger_places(known.tokenize(prompt))

    def spy(q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
        if k.shape != q.shape:
            q_, k_ = (x if skip_reshape else rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k))
            weights = (q_ @ k_.mT / q_.shape[-1] ** 0.5 + (0.0 if mask is None else mask)).softmax(-1)
            shares.append([weights[..., own].sum(-1).mean(1) for own in places.values()])  # (batch, spots) each
        return attention(q, k, v, heads, mask=mask, skip_reshape=skip_reshape, **kwargs)

    for name in ("optimized_attention", "optimized_attention_masked"):  # older hosts have another one for masks
        monkeypatch.setattr(network, name, spy, raising=False)
    sampling = Sampling(1, 1.0, "euler", "simple", 64)  # without guidance: the positive prompt alone
    _, maps = paint_watched(model, known, vae, sampling, prompt, "", seed=1)
    assert len(shares) == len(cross_attentions(model))
    for index, found in enumerate(maps.values()):
        mean = torch.stack([of_layer[index] for of_layer in shares]).mean(0)
        square = mean.reshape(1, 1, *[round(mean.numel() ** 0.5)] * 2)
        expected = torch.nn.functional.interpolate(square, found.shape[1:], mode="bilinear")
        torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-6)


def test_pictures_are_the_stock_ones_bit_for_bit(any_world):
    world, sampling = any_world, Sampling(1, 5.0, "euler", "normal", 64)
    plain_text = "a photo of a teddy bear beside teddy bear and cup"
    stock = sampling.paint(world.model, world.clip, world.vae, SHORT, "blurry", 3, count=2)
    plain = sampling.paint(world.plain_model, world.plain_clip, world.vae, plain_text, "blurry", 3, count=2)
    assert not torch.equal(stock, plain)
    settings = (world.vae, sampling, SHORT, "blurry", 3, 2)
    assert torch.equal(paint_watched(world.model, world.clip, *settings)[0], stock)
    assert torch.equal(paint_watched(*without_concepts(world.model, world.clip), *settings)[0], plain)


@pytest.mark.parametrize(
    ("text", "places"), [(SHORT, [5, 6, 8, 9]), (LONG, [83, 84]), ("x " * 74 + "<my-toy>", [75, 78])]
)
def test_without_concepts_a_trigger_is_all_of_its_superclass_words(world, text, places):
    _, clip = without_concepts(world.model, world.clip)
    tokens = clip.tokenize(text)
    plain = text.lower().replace("<my-toy>", "teddy bear").replace("<my-cup>", "cup")
    assert trigger_places(tokens)["<my-toy>"] == places
    assert tokens == world.plain_clip.tokenize(plain)


def test_the_sheet_has_a_row_and_a_mask_for_every_trigger_in_the_prompt(world):
    sheet, picture, masks, report = world.run("a <my-cup> and (<my-toy>:1.2)").args
    one, _, one_mask, one_report = world.run("a <my-cup>").args
    assert picture.shape == (1, 64, 64, 3)
    assert masks.shape == (2, 64, 64) and one_mask.shape == (1, 64, 64)
    assert all((mask.min().item(), mask.max().item()) == (0.0, 1.0) for mask in masks)
    assert sheet.shape[1] - one.shape[1] > 200
    assert [line.split()[0] for line in report.splitlines()] == ["<my-cup>", "<my-toy>"]
    assert len(one_report.splitlines()) == 1


def test_the_word_of_an_object_is_looked_at_where_the_object_is():
    world = World(*PerfusionDemoModel.execute().args, toy="cat")
    plain = without_concepts(world.model, world.clip)
    sampling = Sampling(15, 3.0, "dpmpp_2m", "karras")
    text = "a photo of a red <my-toy> and a blue car on the beach"
    pictures, maps = paint_watched(*plain, world.vae, sampling, text, "", 0, 3)
    for picture, attention in zip(pictures, maps["<my-toy>"], strict=True):
        cat = picture[..., 0] > picture[..., 1] + 0.1  # and a little of the sand
        car = picture[..., 2] > picture[..., 0] + 0.2
        car[:32], car[:, :48] = False, False  # below the sky, to the right
        assert 0.1 < cat.float().mean() < 0.6 and 0.1 < car.float().mean() < 0.3
        assert attention[cat].mean() > 3 * attention[~cat].mean()
        assert attention[cat].mean() > 4 * attention[car].mean()


def test_a_cancel_leaves_model_and_text_encoder_as_they_were(world):
    before = SAMPLING.paint(world.model, world.clip, world.vae, SHORT, "", 3)
    plain = SAMPLING.paint(world.plain_model, world.plain_clip, world.vae, "a cup", "", 3)
    patches, calls = dict(world.model.object_patches), []

    def cancel(q, context, value, _):
        calls.append(None)
        if len(calls) == 1 + len(cross_attentions(world.model)):  # in the first picture's second step
            comfy.model_management.interrupt_current_processing()
        return q, context, value

    cancelled = world.model.clone()
    cancelled.set_model_attn2_patch(cancel)
    with pytest.raises(CANCEL):
        PerfusionAttentionMap.execute(cancelled, world.clip, world.vae, SHORT, "", seed=3, **SETTINGS)
    assert cancelled.object_patches == world.model.object_patches == patches
    assert cancelled.wrappers == world.model.wrappers
    assert torch.equal(SAMPLING.paint(world.model, world.clip, world.vae, SHORT, "", 3), before)
    assert torch.equal(SAMPLING.paint(world.plain_model, world.plain_clip, world.vae, "a cup", "", 3), plain)
    for module in world.plain_model.model.modules():
        assert getattr(module.forward, "__func__", None) is type(module).forward


def test_what_cannot_be_shown_is_an_error_that_says_what_to_do(world):
    with pytest.raises(ValueError, match="<my-toy>, <my-cup>: write one"):
        world.run("a photo of a cat")
    world.model = apply_to_model(world.plain_model, world.uses[1:])
    with pytest.raises(ValueError, match="CLIP knows <my-toy>, the model does not: connect MODEL and CLIP"):
        world.run(SHORT)
    world.clip = world.plain_clip
    with pytest.raises(ValueError, match="Connect the CLIP output of Perfusion Loader"):
        world.run(SHORT)
    world.model = types.SimpleNamespace(model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"Perfusion knows SD1.x, .*This one is Linear"):
        world.run(SHORT)
