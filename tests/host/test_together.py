"""Other nodes on the same model: each picture against the one of a model that has the edit in its own weights."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.samplers
import comfy_extras.nodes_custom_sampler as host_guiders
import folder_paths
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import DualCFGGuider, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hooks import (
    CreateHookKeyframe,
    CreateHookLora,
    PairConditioningSetProperties,
    SetClipHooks,
    SetHookKeyframes,
)
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from comfyui_perfusion.nodes.host.model import PREFIX, apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.text import apply_to_clip
from safetensors.torch import save_file

import nodes as host_nodes
from random_checkpoint import initialise, load_narrow
from reference_model import CUP_PROMPT, close, edit_weights, locked_prompts
from test_model import NEGATIVE, PROMPT, encode, sample


def lora_weights(part: str, name: str, module: torch.nn.Linear) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for one layer, as files have it."""
    generator = torch.Generator().manual_seed(0)
    key = f"lora_{part}_{name.replace('.', '_')}"
    return {
        f"{key}.lora_up.weight": 0.2 * torch.randn(module.weight.shape[0], 2, generator=generator),
        f"{key}.lora_down.weight": 0.2 * torch.randn(2, module.weight.shape[1], generator=generator),
    }


@pytest.fixture
def lora_name(world, tmp_path, monkeypatch):
    """A LoRA file for the values of one cross-attention and for a layer of the text encoder."""
    unet, text = "input_blocks.1.1.transformer_blocks.0.attn2", "text_model.encoder.layers.0.mlp.fc1"
    modules = dict(world.plain_clip.cond_stage_model.clip_l.transformer.named_modules())
    weights = lora_weights("unet", f"{unet}.to_v", cross_attentions(world.model)[unet].to_v)
    save_file({**weights, **lora_weights("te", text, modules[text])}, tmp_path / "style.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return "style.safetensors"


def merge(model):
    """Half and half with a model that has other values."""
    other = model.clone()
    generator = torch.Generator().manual_seed(0)
    changes = {
        f"{PREFIX}{layer}.to_v.weight": (
            "diff",
            (0.05 * torch.randn(attention.to_v.weight.shape, generator=generator),),
        )
        for layer, attention in cross_attentions(model).items()
    }
    assert len(other.add_patches(changes)) == len(changes)
    return ModelMergeSimple().merge(model, other, 0.5)


def add_attention(model):
    """As IP-Adapter does: an attn2 replacement that adds attention to something of its own."""
    model = model.clone()

    def replacement(q, k, v, extra_options):
        attention = comfy.ldm.modules.attention.optimized_attention
        return attention(q, k, v, extra_options["n_heads"]) + attention(q, k.flip(1), v, extra_options["n_heads"])

    model.set_model_attn2_replace(replacement, "input", 1, 0)
    return (model,)


NODES = {
    "FreeU_V2": lambda model: FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2),
    "PerturbedAttentionGuidance": lambda model: PerturbedAttentionGuidance.execute(model, 3.0),
    "SelfAttentionGuidance": lambda model: SelfAttentionGuidance.execute(model, 0.5, 2.0),
    "HyperTile": lambda model: HyperTile.execute(model, 32, 1, 0, False),
    "TomePatchModel": lambda model: TomePatchModel.execute(model, 0.5),
    "ModelMergeSimple": merge,
    "attn2 replacement": add_attention,
}


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_a_node_that_changes_the_model_works_before_and_after(world, node):
    picture = world.paint(apply_to_model(node(world.model)[0], world.uses))
    assert close(picture, world.paint(node(world.reference)[0]))
    assert torch.equal(world.paint(node(world.patched)[0]), picture)
    assert not close(world.paint(world.patched), picture)  # the other node acts
    assert not close(world.paint(node(world.model)[0]), picture)  # and so do the concepts


def test_what_is_merged_in_brings_no_concept_along(world):
    merged = ModelMergeSimple().merge(world.model, world.patched, 0.5)[0]
    assert torch.equal(world.paint(merged), world.paint(world.model))


def steered(model, positive, negative):
    """Both prompts with a random ControlNet for the MODEL."""
    config = {**model.model.model_config.unet_config, "hint_channels": 3, "dtype": torch.float32}
    del config["out_channels"], config["transformer_depth_output"]
    network = comfy.cldm.cldm.ControlNet(**config)
    initialise(network, torch.Generator().manual_seed(0))
    device = comfy.model_management.get_torch_device()
    control = comfy.controlnet.ControlNet(network, load_device=device)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    apply = host_nodes.ControlNetApplyAdvanced().apply_controlnet
    return apply(positive, negative, control, picture, 0.1, 0.0, 1.0)


def test_a_controlnet_steers_the_picture_with_the_concepts(world):
    prompts = steered(world.model, world.positive, world.negative)
    found = sample(world.patched, *prompts)
    assert close(found, sample(world.reference, *prompts))
    assert not close(world.paint(world.patched), found)
    assert not close(sample(world.model, *prompts), found)


@pytest.mark.parametrize("guider", ["perp-neg", "dual regular", "dual nested"])
def test_guiders_of_three_conditionings_edit_each_as_its_own(world, guider):
    def paint(model, cup=world.cup):
        if guider == "perp-neg":  # the cup is what is kept out of the picture
            (made,) = PerpNegGuider.execute(model, world.positive, cup, world.negative, 5.0, 1.0).args
        else:
            style = guider.removeprefix("dual ")
            (made,) = DualCFGGuider.execute(model, world.positive, cup, world.negative, 5.0, 3.0, style).args
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
        euler, latent = comfy.samplers.sampler_object("euler"), {"samples": torch.zeros(1, 4, 8, 8)}
        return SamplerCustomAdvanced.execute(RandomNoise.execute(7)[0], made, euler, sigmas, latent)[0]["samples"]

    found = paint(world.patched)
    assert close(found, paint(world.reference))
    assert not close(paint(world.patched, world.negative), found)
    assert not close(paint(world.model), found)


@pytest.mark.skipif(not hasattr(host_guiders, "DualModelGuider"), reason="this host has no such guider")
def test_a_guider_with_a_model_for_each_conditioning_edits_both(world):
    uses = [use.replace(key_lock=0.0) for use in world.uses]
    other = load_narrow("sd1")[0]
    first, second = (apply_to_model(model, uses) for model in (world.model, other))
    positive, negative = (encode(apply_to_clip(world.plain_clip, uses), prompt) for prompt in (PROMPT, CUP_PROMPT))
    sigmas = comfy.samplers.calculate_sigmas(first.get_model_object("model_sampling"), "normal", 1)
    euler, latent = comfy.samplers.sampler_object("euler"), {"samples": torch.zeros(1, 4, 8, 8)}

    def paint(*models):
        made = host_guiders.DualModelGuider.execute(models[0], positive, 5.0, *models[1:], negative=negative)[0]
        return SamplerCustomAdvanced.execute(RandomNoise.execute(7)[0], made, euler, sigmas, latent)[0]["samples"]

    assert close(paint(first, second), paint(first))
    assert not close(paint(first, other), paint(first))


def test_a_lora_by_its_loader_before_and_after(world, lora_name):
    def load(model, clip):
        return host_nodes.LoraLoader().load_lora(model, clip, lora_name, 1.0, 1.0)

    before, after = load(world.model, world.plain_clip), load(world.patched, world.clip)
    before = apply_to_model(before[0], world.uses), apply_to_clip(before[1], world.uses)
    found, other = (sample(model, encode(clip, PROMPT), encode(clip, NEGATIVE)) for model, clip in (before, after))
    assert torch.equal(found, other)
    assert not close(world.paint(world.patched), found)
    reference, clip = load(world.reference, world.clip)
    positive = encode(clip, PROMPT)
    edit_weights(reference, world.uses, [(positive[0][0], world.keys(PROMPT, clip))])
    assert close(found, sample(reference, positive, encode(clip, NEGATIVE)))


@pytest.mark.parametrize("on", ["prompts", "pair"])
def test_a_lora_as_a_hook_with_keyframes(world, lora_name, on):
    """On in the first of three steps, then off."""
    keyframes = CreateHookKeyframe().create_hook_keyframe(1.0, 0.0)[0]
    keyframes = CreateHookKeyframe().create_hook_keyframe(0.0, 0.3, keyframes)[0]
    always = CreateHookLora().create_hook(lora_name, 1.0, 1.0)[0]
    first = SetHookKeyframes().set_hook_keyframes(always, keyframes)[0]

    def conditionings(hooks, *prompts):
        clip = world.clip
        if on == "prompts":
            (clip,) = SetClipHooks().apply_hooks(clip, apply_to_conds=True, schedule_clip=True, hooks=hooks)
        encoded = [encode(clip, prompt) for prompt in prompts]
        if on == "pair":
            encoded = PairConditioningSetProperties().set_properties(*encoded, 1.0, "default", hooks=hooks)
        return encoded

    hooked = conditionings(first, PROMPT, NEGATIVE)
    toy, both = (conditionings(first, prompt, NEGATIVE)[0] for prompt in locked_prompts(PROMPT))
    pairs = [(own[0], 0.5 * a[0] + 0.5 * b[0]) for own, a, b in zip(hooked[0], toy, both, strict=True)]
    assert len(pairs) == (2 if on == "prompts" else 1)
    edit_weights(world.reference, world.uses, pairs)
    found = sample(world.patched, *hooked, steps=3)
    assert close(found, sample(world.reference, *hooked, steps=3))
    for other in ((world.positive, world.negative), conditionings(always, PROMPT, NEGATIVE)):
        assert not close(sample(world.patched, *other, steps=3), found)
    assert not close(sample(world.model, *hooked, steps=3), found)
    edit_weights(world.reference, world.uses, [])
    assert not close(sample(world.reference, *hooked, steps=3), found)


def in_tiles(apply_model, args):
    """As Tiled Diffusion does: left and right half of every row of the batch, the text repeated for the halves."""
    x, c = args["input"], dict(args["c"])
    c["c_crossattn"] = c["c_crossattn"].repeat(2, 1, 1)
    halves = apply_model(torch.cat(x.chunk(2, dim=3)), args["timestep"].repeat(2), **c)
    return torch.cat(halves.chunk(2), dim=3)


def in_frames(apply_model, args):
    """Two frames for every row of the batch, the text repeated in place."""
    c = {**args["c"], "c_crossattn": args["c"]["c_crossattn"].repeat_interleave(2, 0)}
    frames = apply_model(args["input"].repeat_interleave(2, 0), args["timestep"].repeat_interleave(2), **c)
    return frames.unflatten(0, (-1, 2)).mean(1)


def row_by_row(apply_model, args):
    rows = zip(args["input"].split(1), args["timestep"].split(1), args["c"]["c_crossattn"].split(1), strict=True)
    return torch.cat([apply_model(x, t, **{**args["c"], "c_crossattn": text}) for x, t, text in rows])


@pytest.mark.parametrize("wrapper", [in_tiles, in_frames, row_by_row])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_key_lock_follows_its_prompt_into_batches_made_by_others(world, wrapper, batch):
    patched, reference = world.patched.clone(), world.reference.clone()
    for model in (patched, reference):
        model.set_model_unet_function_wrapper(wrapper)
    assert close(world.paint(patched, batch=batch), world.paint(reference, batch=batch))


def test_attention_of_more_rows_than_the_prompts_is_edited_row_by_row(world):
    patched, reference = world.patched.clone(), world.reference.clone()
    for model in (patched, reference):
        model.set_model_attn2_patch(lambda q, k, v, _: tuple(t.repeat(2, 1, 1) for t in (q, k, v)))
        model.set_model_attn2_output_patch(lambda out, _: out.chunk(2)[1])
    assert close(world.paint(patched), world.paint(reference))


def test_context_windows_over_frames(world):
    """Four frames, two at a time, of a conditioning with a row for every frame."""
    positive = [[world.positive[0][0].repeat(4, 1, 1), world.positive[0][1]]]

    def paint(model):
        window = {"context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1}
        (model,) = ContextWindowsManualNode.execute(
            model, **window, closed_loop=False, fuse_method="pyramid", dim=0, freenoise=False
        ).args
        return sample(model, positive, world.negative, batch=4)

    assert close(paint(world.patched), paint(world.reference))


def test_a_batch_of_prompts(world):
    """Three pictures of two prompts in one conditioning; the host repeats them."""
    texts = ("a <my-toy>", "a <my-cup>, red")
    locked = [(encode(world.clip, text)[0][0], world.keys(text, world.clip)) for text in texts]
    both = torch.cat([encoding for encoding, _ in locked])  # the encodings bring their keys along
    conditioning = [[both, {}]]
    edit_weights(world.reference, world.uses, locked)
    found = sample(world.patched, conditioning, world.negative, batch=3)
    assert close(found, sample(world.reference, conditioning, world.negative, batch=3))
    apart = sample(world.patched, [[both[1:], {}]], world.negative, batch=3)
    assert close(found[1], apart[1])
    assert not close(found[0], apart[0])
