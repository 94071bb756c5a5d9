"""What the host does with models of families beyond the UNet: weights in parts, compiled, areas of a picture."""

import comfy.model_management
import pytest
import torch
from comfy import supported_models
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras.nodes_video_model import ConditioningSetAreaPercentageVideo
from comfyui_perfusion.nodes.host.model import apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.text import apply_to_clip

import nodes as host_nodes
from makers import assert_compiled_paints_alike
from random_families import CONFIGS
from test_model import encode, record, sample
from test_whole_families import NEGATIVE, PROMPT, two_uses

pytestmark = pytest.mark.skipif(not hasattr(supported_models, "Anima"), reason="this host is older than Anima")
each_family = pytest.mark.parametrize("family", CONFIGS)


def prepared(made, family):
    """A MODEL with two locked concepts and its prompts."""
    model, clip, _ = made(family)
    uses = two_uses(model, clip, key_lock=1.0)
    known = apply_to_clip(clip, uses)
    return apply_to_model(model, uses), encode(known, PROMPT), encode(known, NEGATIVE)


@each_family
def test_partial_loading_gives_the_same_picture(made, family, load_in_part):
    model, positive, negative = prepared(made, family)
    attention = min(cross_attentions(model).items())[1]
    change = 0.02 * torch.randn(attention.to_k.weight.shape, generator=torch.Generator().manual_seed(0))
    model.add_patches({f"{attention.path('to_k')}.weight": ("diff", (change,))})
    whole = sample(model, positive, negative)
    load_in_part(1e4)
    partial = sample(model, positive, negative)
    assert model.lowvram_patch_counter() > 0
    comfy.model_management.unload_all_models()
    assert torch.allclose(whole, partial, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


@pytest.mark.parametrize("family", ["anima", "wan"])  # the others have these networks, or are as simple
def test_the_compile_node_gives_the_same_picture(made, family, monkeypatch):
    network = {"anima": "cosmos.predict2", "wan": "wan.model"}[family]
    monkeypatch.setattr(f"comfy.ldm.{network}.optimized_attention", attention_pytorch)  # one that is soon compiled
    model, positive, negative = prepared(made, family)
    assert_compiled_paints_alike(model, sample, positive, negative)


@each_family
@pytest.mark.parametrize("way", ["area", "time range"])
def test_areas_and_time_ranges_keep_the_concept_and_its_lock(made, family, way):
    model, positive, negative = prepared(made, family)
    if way == "area":
        sizes = {"width": 0.5, "height": 0.5, "temporal": 1.0, "x": 0.0, "y": 0.0, "z": 0.0}
        change = lambda it: ConditioningSetAreaPercentageVideo().append(it, **sizes, strength=1.0)[0]  # noqa: E731
    else:
        change = lambda it: host_nodes.ConditioningSetTimestepRange().set_range(it, 0.0, 1.0)[0]  # noqa: E731
    keys = []
    for prompts in ((positive, negative), (change(positive), change(negative))):
        seen, forwards = record(model, *prompts)
        assert sorted(forwards[0][1]) == [0, 1]  # cond and uncond together
        keys.append(seen[min(cross_attentions(model)), "to_k"][forwards[0][1].index(0)])
    torch.testing.assert_close(*keys, rtol=1e-4, atol=1e-4)
