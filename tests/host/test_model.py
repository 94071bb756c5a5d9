"""What attention receives as keys and values in the real UNet, against the paper's formula with its weights."""

import dataclasses

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.modules import attention
from comfy.patcher_extension import WrappersMP
from comfyui_perfusion.nodes.host.model import PREFIX, apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import ConceptUse

import nodes as host_nodes
from makers import make_concept
from random_checkpoint import SHALLOW_TEXT, random_state_dict

PROMPT = "a photo of a <my-toy> beside a <my-cup>, on the beach"
NEGATIVE = "blurry"


def two_uses(model, clip, **settings) -> list[ConceptUse]:
    """The first with locked keys, the second with some freedom."""
    toy = make_concept(model, clip, "<my-toy>", "teddy", seed=1)
    cup = make_concept(model, clip, "<my-cup>", "cup", seed=2).replace(key_freedom=0.3)
    return [ConceptUse(toy, 0.6, 0.15, **settings), ConceptUse(cup, 0.7, 0.1, **settings)]


def encode(clip, prompt: str):
    return host_nodes.CLIPTextEncode().encode(clip, prompt)[0]


def sample(model, positive, negative, steps: int = 1, cfg: float = 5.0, batch: int = 1, size: int = 8) -> torch.Tensor:
    latent = {"samples": torch.zeros(batch, 4, size, size)}
    return host_nodes.common_ksampler(model, 7, steps, cfg, "euler", "normal", positive, negative, latent)[0]["samples"]


def record(model, positive, negative, **settings):
    """Samples once. Gives {(layer, projection): K or V} as returned, the contexts and which chunk is whose."""
    seen, forwards = {}, []
    model = model.clone()

    def watch(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        forwards.append((c_crossattn, transformer_options["cond_or_uncond"]))
        handles = []
        for layer, module in cross_attentions(model).items():
            for projection in ("to_k", "to_v"):

                def keep(_, __, output, layer=layer, module=module, projection=projection):
                    output = module.family.by_text(output, len(c_crossattn))
                    seen[layer, projection] = own_part(module, projection, output)

                handles.append(getattr(module, projection).register_forward_hook(keep))
        try:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    sample(model, positive, negative, **settings)
    comfy.model_management.unload_all_models()  # while this clone lives, which alone can take its patches away
    return seen, forwards


def own_part(module, projection: str, tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """K's or V's part of what there is for both together, in some families."""
    return tensor.chunk(2, dim)[projection == "to_v"] if module.is_fused else tensor


def expected(encoding, keys_encoding, weights_k, weights_v, uses, layer):
    """K and V in float64, without bias, from the paper's output-space form: h = W e_perp + sum of gated outputs, W read
    explicitly."""

    def edit(e, weight, outputs, held):
        e, weight = e.double(), weight.double()
        targets = torch.stack([use.concept.target_input for use in uses]).double()
        duals = torch.stack([use.concept.target_dual for use in uses]).double()
        energies = targets @ duals.T
        similarity = e @ duals.T
        share = torch.linalg.solve(energies.T, similarity.mT).mT
        result = e @ weight.T - share * torch.tensor(held).double() @ (targets @ weight.T)
        for j, use in enumerate(uses):
            gate = torch.sigmoid((share[..., j] - use.beta) / use.temperature)
            result = result + held[j] * gate[..., None] * outputs[j]
        return result

    superclasses = [use.concept.superclass_input.double() for use in uses]
    locked = [weights_k.double() @ s for s in superclasses]
    learned = [
        weights_v.double() @ s + use.concept.value_deltas[layer].double()
        for s, use in zip(superclasses, uses, strict=True)
    ]
    held = [1 - use.concept.key_freedom for use in uses]
    return edit(keys_encoding, weights_k, locked, held), edit(encoding, weights_v, learned, [1.0] * len(uses))


def worst_difference(model, seen, forwards, encodings, key_encodings, uses, weight=lambda layer, projection, w: w):
    """The largest relative difference of any layer's K or V to the reference; encodings by cond_or_uncond."""
    ((context, order),) = forwards
    batch = context.shape[0] // len(order)
    rows = torch.cat([encodings[i].expand(batch, -1, -1) for i in order])
    key_rows = torch.cat([key_encodings[i].expand(batch, -1, -1) for i in order])
    worst = 0.0
    for layer, module in cross_attentions(model).items():
        to_k, to_v = (
            weight(layer, p, own_part(module, p, getattr(module, p).weight.float(), 0)) for p in ("to_k", "to_v")
        )
        wanted = expected(rows, key_rows, to_k, to_v, uses, layer)
        for projection, want in zip(("to_k", "to_v"), wanted, strict=True):
            got, bias = seen[layer, projection], getattr(module, projection).bias
            want = want if bias is None else want + own_part(module, projection, bias)
            worst = max(worst, ((got - want).abs().max() / want.abs().max()).item())
    return worst


@pytest.mark.parametrize("key_lock", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd2v", "sdxl"])
def test_keys_and_values_are_the_papers_at_every_layer_in_one_batch(wide_models, kind, key_lock):
    model, clip, _ = wide_models(kind)
    uses = two_uses(model, clip, key_lock=key_lock)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    seen, forwards = record(patched, positive, negative)
    assert sorted(forwards[0][1]) == [0, 1]  # cond and uncond together
    keys = encode(clip, PROMPT.replace("<my-toy>", "teddy").replace("<my-cup>", "cup")) if key_lock else positive
    encodings = {0: positive[0][0], 1: negative[0][0]}
    key_encodings = {0: keys[0][0], 1: negative[0][0]}
    assert len(seen) == 2 * len(cross_attentions(model)) > 4
    assert worst_difference(model, seen, forwards, encodings, key_encodings, uses) < 1e-4


@pytest.mark.parametrize(("kind", "order"), [("sd1", "lora first"), ("sd1", "lora last"), ("sdxl", "lora last")])
def test_a_lora_on_the_same_weights_still_works(models, kind, order):
    model, clip, _ = models(kind)
    uses = two_uses(model, clip)
    changes = {
        f"{PREFIX}{layer}.{projection}.weight": 0.02 * torch.randn(getattr(module, projection).weight.shape)
        for layer, module in cross_attentions(model).items()
        for projection in ("to_k", "to_v")
    }
    patched = model.clone() if order == "lora first" else apply_to_model(model, uses)
    assert len(patched.add_patches({name: ("diff", (change,)) for name, change in changes.items()})) == len(changes)
    if order == "lora first":
        patched = apply_to_model(patched, uses)
    prompts = apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    plain = {name: model.model.get_parameter(name).clone() for name in changes}
    seen, forwards = record(patched, positive, negative)
    encodings = {0: positive[0][0], 1: negative[0][0]}

    def merged(layer, projection, _):
        name = f"{PREFIX}{layer}.{projection}.weight"
        return plain[name].float() + changes[name]

    assert worst_difference(model, seen, forwards, encodings, encodings, uses, merged) < 2e-3  # merged in fp16


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_partial_loading_gives_the_same_picture(models, load_in_part, kind):
    model, clip, _ = models(kind)
    uses = two_uses(model, clip, key_lock=1.0)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    name = f"{PREFIX}{min(cross_attentions(model))}.to_k.weight"
    patched.add_patches({name: ("diff", (0.02 * torch.randn(model.model.get_parameter(name).shape),))})
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    whole = sample(patched, positive, negative)
    load_in_part(1e6)
    partial = sample(patched, positive, negative)
    assert patched.lowvram_patch_counter() > 0
    comfy.model_management.unload_all_models()
    assert torch.allclose(whole, partial, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_any_precision_work(models, dtype):
    state_dict = random_state_dict("sd1", 0, SHALLOW_TEXT)
    model, clip, _, _ = comfy.sd.load_state_dict_guess_config(
        state_dict, te_model_options=SHALLOW_TEXT, model_options={"dtype": dtype}
    )
    assert next(iter(cross_attentions(model).values())).to_k.weight.dtype == dtype
    uses = two_uses(model, clip)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    seen, forwards = record(patched, positive, negative)
    encodings = {0: positive[0][0], 1: negative[0][0]}
    computed_in = next(iter(seen.values())).dtype
    tolerance = 1e-4 if computed_in == torch.float32 else 0.02
    assert worst_difference(model, seen, forwards, encodings, encodings, uses) < tolerance


def test_another_nodes_attention_replacement_receives_the_edited_keys_and_values(models):
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip)
    prompts = apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    received = []

    def replacement(q, k, v, extra_options):
        received.append((k, v))
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, extra_options["n_heads"])

    for first in (True, False):
        patched = model.clone() if first else apply_to_model(model, uses)
        patched.set_model_attn2_replace(replacement, "input", 1, 0)
        patched = apply_to_model(patched, uses) if first else patched
        received.clear()
        seen, _ = record(patched, positive, negative)
        ((k, v),) = received
        layer = "input_blocks.1.1.transformer_blocks.0.attn2"
        assert torch.equal(k, seen[layer, "to_k"])
        assert torch.equal(v, seen[layer, "to_v"])


def test_a_context_that_another_node_changes_is_edited_as_it_arrives(models):
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    patched.set_model_attn2_patch(lambda q, context, value, _: (q, context * 0.5, value * 0.5))
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    seen, forwards = record(patched, positive, negative)
    halves = {0: positive[0][0] * 0.5, 1: negative[0][0] * 0.5}
    assert worst_difference(model, seen, forwards, halves, halves, uses) < 1e-4


def test_another_nodes_patch_of_the_projection_is_kept(models):
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip)
    layer = min(cross_attentions(model))
    projection = cross_attentions(model)[layer].to_v
    calls = []

    def foreign(x):
        calls.append(x)
        return type(projection).forward(projection, x)

    other = model.clone()
    other.add_object_patch(f"{PREFIX}{layer}.to_v.forward", foreign)
    prompts = apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    seen, forwards = record(apply_to_model(apply_to_model(other, uses[:1]), uses[1:]), positive, negative)
    encodings = {0: positive[0][0], 1: negative[0][0]}
    assert len(calls) == 1
    assert worst_difference(model, seen, forwards, encodings, encodings, uses) < 1e-4


def test_the_compile_node_gives_the_same_picture(models, monkeypatch):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # one that is soon compiled
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip, key_lock=1.0)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    eager = sample(patched, positive, negative, steps=2)
    compiled = TorchCompileModel.execute(patched, "eager")[0]
    assert torch.allclose(sample(compiled, positive, negative, steps=2), eager, atol=1e-4 * eager.abs().max().item())
    assert not torch.allclose(sample(model, positive, negative, steps=2), eager, atol=1e-2 * eager.abs().max().item())


def test_loaders_in_a_row_make_one_joint_edit_in_any_order(models):
    model, clip, _ = models("sd1")
    toy, cup = two_uses(model, clip, key_lock=1.0)

    def picture(*steps):
        patched, prompts = model, clip
        for uses in steps:
            patched, prompts = apply_to_model(patched, uses), apply_to_clip(prompts, uses)
        return sample(patched, encode(prompts, PROMPT), encode(prompts, NEGATIVE))

    together = picture([toy, cup])
    close = 1e-4 * together.abs().max().item()
    assert torch.equal(picture([toy], [cup]), together)
    assert torch.allclose(picture([cup], [toy]), together, atol=close)
    weak = dataclasses.replace(toy, beta=0.99)
    assert torch.equal(picture([weak], [cup], [toy]), picture([toy, cup]))  # the later of one trigger counts


def test_clones_sampled_in_turn_do_not_see_each_other_and_leave_nothing_behind(models):
    model, clip, _ = models("sd1")
    toy, cup = two_uses(model, clip, key_lock=1.0)
    with_toy, with_cup = apply_to_model(model, [toy]), apply_to_model(model, [cup])
    prompts = apply_to_clip(clip, [toy, cup])
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    parameters = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    plain = sample(model, positive, negative, steps=2)
    first = [sample(patched, positive, negative, steps=2) for patched in (with_toy, with_cup)]
    assert torch.equal(sample(model, positive, negative, steps=2), plain)
    second = [sample(patched, positive, negative, steps=2) for patched in (with_cup, with_toy)]
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[1], second[0])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(sample(model, positive, negative, steps=2), plain)
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in model.model.named_parameters())
    for module in model.model.modules():  # the host puts a patched forward back as the module's own bound method
        assert getattr(module.forward, "__func__", None) is type(module).forward


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_strength_zero_is_the_base_model_bit_for_bit(models, kind):
    model, clip, _ = models(kind)
    toy, cup = two_uses(model, clip)
    off = [dataclasses.replace(use, strength=0.0) for use in (toy, cup)]
    patched, prompts = apply_to_model(model, off), apply_to_clip(clip, off)
    prompt = "a photo of a <my-toy>"
    plain = sample(model, encode(clip, prompt), encode(clip, NEGATIVE))
    assert torch.equal(sample(patched, encode(prompts, prompt), encode(prompts, NEGATIVE)), plain)
    switched_off = apply_to_model(apply_to_model(model, [toy]), off[:1])
    assert torch.equal(sample(switched_off, encode(clip, prompt), encode(clip, NEGATIVE)), plain)


def test_an_error_while_sampling_leaves_the_model_as_it_was(models):
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    plain, edited = sample(model, positive, negative), sample(patched, positive, negative)
    failing = patched.clone()

    def fail(*_):
        raise comfy.model_management.InterruptProcessingException

    failing.set_model_attn2_patch(fail)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(failing, positive, negative)
    assert torch.equal(sample(model, positive, negative), plain)
    assert torch.equal(sample(patched, positive, negative), edited)


def keys_of_first_layer(model, positive, negative, **settings):
    seen, forwards = record(model, positive, negative, **settings)
    return seen[min(layer for layer, _ in seen), "to_k"], forwards[0][1]


def test_key_lock_follows_its_own_conditioning(models):
    """Long and short prompts, a batch of two and another text encoder's conditioning, all in one batch."""
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip, key_lock=1.0)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    long = PROMPT + ", very long" * 40
    positive, negative = encode(prompts, long), encode(clip, NEGATIVE)  # 154+ and 77 tokens; no lock in the negative
    assert positive[0][0].shape[1] > 77
    seen, forwards = record(patched, positive, negative, batch=2)
    tokens = forwards[0][0].shape[1]
    keys = encode(clip, long.replace("<my-toy>", "teddy").replace("<my-cup>", "cup"))[0][0]

    def tiled(e):
        return e.repeat(1, tokens // e.shape[1], 1)

    encodings = {0: tiled(positive[0][0]), 1: tiled(negative[0][0])}
    assert worst_difference(model, seen, forwards, encodings, {**encodings, 0: tiled(keys)}, uses) < 1e-4


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_key_lock_survives_areas_time_ranges_combine_and_concat(models, kind):
    model, clip, _ = models(kind)
    uses = two_uses(model, clip, key_lock=1.0)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    positive, other, negative = (encode(prompts, text) for text in (PROMPT, "a beach", NEGATIVE))
    plain_keys, order = keys_of_first_layer(patched, positive, negative)
    locked = plain_keys[order.index(0)]
    for changed in (
        host_nodes.ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)[0],
        host_nodes.ConditioningSetTimestepRange().set_range(positive, 0.0, 1.0)[0],
        host_nodes.ConditioningCombine().combine(positive, other)[0],
        host_nodes.ConditioningConcat().concat(positive, other)[0],
    ):
        keys, order = keys_of_first_layer(patched, changed, negative)
        assert any(torch.allclose(row[:77], locked, atol=1e-4 * locked.abs().max().item()) for row in keys)


def test_a_conditioning_changed_after_encoding_falls_back_to_the_local_lock(models, caplog):
    model, clip, _ = models("sd1")
    uses = two_uses(model, clip, key_lock=1.0)
    patched, prompts = apply_to_model(model, uses), apply_to_clip(clip, uses)
    positive, negative = encode(prompts, PROMPT), encode(prompts, NEGATIVE)
    zeroed = host_nodes.ConditioningZeroOut().zero_out(positive)[0]
    seen, forwards = record(patched, zeroed, negative)
    encodings = {0: torch.zeros_like(positive[0][0]), 1: negative[0][0]}
    assert worst_difference(model, seen, forwards, encodings, encodings, uses) < 1e-4
    assert "key lock is local" in caplog.text
