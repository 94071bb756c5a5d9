"""Models where text and picture share one attention: concepts by the values of the text's rows, small and random."""

from __future__ import annotations

import types

import comfy.ldm.flux.math
import comfy.ldm.lumina.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.qwen_image.model
import comfy.model_management
import folder_paths
import pytest
import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from comfyui_perfusion.nodes.attention import PerfusionAttentionMap
from comfyui_perfusion.nodes.covariance import PerfusionCovariance
from comfyui_perfusion.nodes.exchange import PerfusionExportLoRA
from comfyui_perfusion.nodes.host import text
from comfyui_perfusion.nodes.host.apart import KeepApart
from comfyui_perfusion.nodes.host.encoder_covariance import _counted, measure_covariance
from comfyui_perfusion.nodes.host.families import family_of
from comfyui_perfusion.nodes.host.joint import value_layers
from comfyui_perfusion.nodes.host.model import apply_to_model, base_model, keep_apart, value_widths
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.trainee import Subject, open_trainee
from comfyui_perfusion.nodes.host.uses import ConceptUse, stages
from comfyui_perfusion.nodes.load import PerfusionLoader, PerfusionSaveConcept
from comfyui_perfusion.nodes.maps import PerfusionGateMap
from comfyui_perfusion.nodes.sweep import PerfusionSweep
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.nodes.tune import PerfusionTune
from comfyui_perfusion.perfusion_core import ConceptSet, Training, TrainingSettings
from comfyui_perfusion.perfusion_core.captions import TEMPLATES
from comfyui_perfusion.perfusion_core.concept import OFFSET

import nodes as host_nodes
from makers import (
    assert_compiled_paints_alike,
    assert_learns_and_paints,
    assert_trainings_go_on_and_paint,
    covariance_inverse,
    make_concept,
    train_node,
)
from random_families import JOINT, empty_latent, random_model
from test_model import encode

PROMPT = "a photo of a <my-dog> beside a <my-cup>, on the beach"
NEGATIVE = "a photo of a cat beside a tree, on the beach"  # as long, so that both are in one batch
SETTINGS = {"steps": 1, "cfg": 3.0, "sampler": "euler", "scheduler": "simple", "resolution": 64}
NARROW = [family for family in JOINT if family != "sd3"]  # with covariances that are inverted soon
each_network = pytest.mark.parametrize("family", ["qwen-image", "z-image", "flux", "sd3"])  # of which the others are
each_family = pytest.mark.parametrize("family", JOINT)


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch):
    for node in (PerfusionTrainConcept, PerfusionCovariance, PerfusionAttentionMap, PerfusionSweep, PerfusionLoader,
                 PerfusionTune):  # fmt: skip
        monkeypatch.setattr(node, "hidden", types.SimpleNamespace(unique_id=None), raising=False)


def concept_of(model, clip, trigger: str, superclass: str, seed: int):
    """With an offset, as they are trained."""
    concept = make_concept(model, clip, trigger, superclass, seed)
    scale = 0.1 * concept.superclass_input.std()
    offset = scale * torch.randn(concept.dim, generator=torch.Generator().manual_seed(seed))
    target = concept.superclass_input + offset
    dual = (covariance_inverse(model, clip) @ target.double()).float()
    return concept.replace(token_embeddings={OFFSET: offset}, target_input=target, target_dual=dual)


def two_uses(model, clip, **settings) -> list[ConceptUse]:
    dog, cup = concept_of(model, clip, "<my-dog>", "dog", 1), concept_of(model, clip, "<my-cup>", "cup", 2)
    return [ConceptUse(dog, 0.6, 0.15, **settings), ConceptUse(cup, 0.7, 0.1, **settings)]


def prepared(made, family, **settings):
    """A MODEL, the same with two concepts, and the prompts."""
    model, clip, _ = made(family)
    uses = two_uses(model, clip, **settings)
    known = apply_to_clip(clip, uses)
    return model, apply_to_model(model, uses), encode(known, PROMPT), encode(known, NEGATIVE)


def sample(model, positive, negative, steps: int = 1, side: int = 8) -> torch.Tensor:
    latent = empty_latent(model, side)
    return host_nodes.common_ksampler(model, 7, steps, 3.0, "euler", "simple", positive, negative, latent)[0]["samples"]


def record(model, positive, negative, **settings):
    """{layer: what its projection receives and gives}, and of every forward its context and which part is whose."""
    seen, forwards, model = {}, [], model.clone()

    def watch(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        forwards.append((c_crossattn, transformer_options["cond_or_uncond"]))
        handles = [
            executor.class_obj.get_submodule(values.projection).register_forward_hook(
                lambda _, inputs, output, layer=layer: seen.update({layer: (inputs[0].clone(), output.clone())})
            )
            for layer, values in value_layers(model).items()
        ]
        try:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    sample(model, positive, negative, **settings)
    comfy.model_management.unload_all_models()  # while this clone lives, which alone can take its patches away
    return seen, forwards


def gates_of(uses: list[ConceptUse], encoding: torch.Tensor) -> list[torch.Tensor]:
    """In float64, of every concept, (batch, tokens): the sigmoid of its coordinate in the joint projection."""
    duals = torch.stack([use.concept.target_dual for use in uses]).double()
    energies = torch.stack([use.concept.target_input for use in uses]).double() @ duals.T
    shares = torch.linalg.solve(energies.T, (encoding.double() @ duals.T).mT).mT
    return [torch.sigmoid((shares[..., j] - use.beta) / use.temperature) for j, use in enumerate(uses)]


def rows_of_text(family: str, context: torch.Tensor) -> torch.Tensor:
    """Where a concept may be, (batch, tokens)."""
    return context[..., 2048:].any(-1) if family == "sd3" else context.any(-1)


@each_family
def test_values_are_the_formulas_at_every_layer_and_all_else_the_same_bits(made, family):
    model, patched, positive, negative = prepared(made, family)
    uses = patched.get_attachment("perfusion")
    seen, ((context, order),) = record(patched, positive, negative)
    assert sorted(order) == [0, 1]  # cond and uncond together
    encodings = torch.cat([(positive, negative)[kind][0][0] for kind in order])
    torch.testing.assert_close(context[:, -encodings.shape[1] :], encodings)
    words, layers = rows_of_text(family, context), value_layers(model)
    assert len(seen) == len(layers) >= 4
    for layer, (received, output) in seen.items():
        module = model.model.get_submodule(layers[layer].projection)
        plain = type(module).forward(module, received)
        expected = plain.double()
        columns = slice(layers[layer].start, layers[layer].start + layers[layer].width)
        for use, gate in zip(uses, gates_of(uses, context), strict=True):
            added = gate[..., None] * use.concept.value_deltas[layer].double()
            expected[:, : context.shape[1], columns] += words[..., None] * added
        worst = (output - expected).abs().max() / (expected - plain).abs().max()
        assert worst < 1e-4, layer
        changed = output != plain
        assert changed[:, : context.shape[1], columns][words].all(-1).any()
        changed[:, : context.shape[1], columns] = False
        assert not changed.any(), layer


@pytest.mark.parametrize("family", ["flux", "z-image"])  # whose graphs have such a negative
def test_nothing_is_added_to_a_text_that_was_zeroed(made, family):
    model, patched, positive, negative = prepared(made, family)
    zeroed = host_nodes.ConditioningZeroOut().zero_out(negative)[0]
    seen, ((context, order),) = record(patched, positive, zeroed)
    for layer, (received, output) in seen.items():
        module = model.model.get_submodule(value_layers(model)[layer].projection)
        same = output == type(module).forward(module, received)
        assert same[order.index(1)].all() and not same[order.index(0), : context.shape[1]].all()


@each_family
def test_a_bypassed_model_gives_the_same_bits(made, family):
    model, patched, positive, negative = prepared(made, family)
    plain, painted = sample(model, positive, negative, steps=2), sample(patched, positive, negative, steps=2)
    assert (painted - plain).abs().max() > 1e-3
    off = apply_to_model(patched, [use.replace(strength=0.0) for use in patched.get_attachment("perfusion")])
    assert torch.equal(sample(off, positive, negative, steps=2), plain)
    assert torch.equal(sample(model, positive, negative, steps=2), plain)
    comfy.model_management.unload_all_models()
    assert all(getattr(m.forward, "__func__", None) is type(m).forward for m in model.model.modules())


@each_family
def test_a_lora_beside_concepts_and_clones_in_turn(made, family):
    model, both, positive, negative = prepared(made, family)
    uses = both.get_attachment("perfusion")
    other = apply_to_model(model, uses[:1])
    first, single = sample(both, positive, negative), sample(other, positive, negative)
    assert not torch.equal(first, single)
    name = min(value_layers(model).items())[1].projection + ".weight"
    change = 0.1 * torch.randn(model.model.get_parameter(name).shape, generator=torch.Generator().manual_seed(1))
    before, after = model.clone(), both.clone()
    for patched in (before, after):
        assert patched.add_patches({name: ("diff", (change,))})
    pictures = [sample(patched, positive, negative) for patched in (apply_to_model(before, uses), after)]
    assert torch.equal(*pictures) and not torch.equal(pictures[0], first)
    assert torch.equal(sample(both, positive, negative), first)
    assert torch.equal(sample(other, positive, negative), single)


@each_family
def test_the_order_of_loaders_does_not_matter(made, family):
    model, both, positive, negative = prepared(made, family)
    first, second = both.get_attachment("perfusion")
    turned = apply_to_model(apply_to_model(model, [second]), [first])
    torch.testing.assert_close(
        sample(turned, positive, negative), sample(both, positive, negative), rtol=1e-3, atol=1e-3
    )


@each_family
def test_another_nodes_patch_of_the_projection_is_kept(made, family):
    model, patched, positive, negative = prepared(made, family)
    projection, calls = min(value_layers(model).items())[1].projection, []
    module = model.model.get_submodule(projection)

    def foreign(x):
        calls.append(x)
        return type(module).forward(module, x)

    other = model.clone()
    other.add_object_patch(f"{projection}.forward", foreign)
    uses = patched.get_attachment("perfusion")
    found = sample(apply_to_model(other, uses), positive, negative)
    assert len(calls) == 1 and torch.equal(found, sample(patched, positive, negative))


@each_family
def test_partial_loading_gives_the_same_picture(made, family, load_in_part):
    model, patched, positive, negative = prepared(made, family)
    name = min(value_layers(model).items())[1].projection + ".weight"
    change = 0.02 * torch.randn(model.model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0))
    patched.add_patches({name: ("diff", (change,))})
    whole = sample(patched, positive, negative)
    load_in_part(1e4)
    partial = sample(patched, positive, negative)
    assert patched.lowvram_patch_counter() > 0
    comfy.model_management.unload_all_models()
    assert torch.allclose(whole, partial, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


@pytest.fixture
def attending(monkeypatch):
    """attending(function): from then on the networks call this one as the host's chosen attention."""
    network = comfy.ldm
    modules = network.qwen_image.model, network.lumina.model, network.flux.math, network.modules.diffusionmodules.mmdit

    def call(function) -> None:
        for module in modules:
            for name in ("optimized_attention", "optimized_attention_masked"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, function)

    return call


@each_network
def test_a_concept_is_learned_beside_an_attention_without_a_backward(made, family, attending):
    model, clip, vae = made(family)
    attending(attention.wrap_attn(lambda *args, **kwargs: attention_pytorch(*args, **kwargs).detach()))
    subject = Subject(torch.rand(1, 64, 64, 3), None, [TEMPLATES[:2]], "dog")
    with open_trainee(model, clip, vae, subject, offset=True) as trainee:
        settings = TrainingSettings(batch_size=1, accumulation=1)
        training = Training(trainee, covariance_inverse(model, clip), "<my-dog>", "dog", family, settings)
        training.step()  # or a part got no gradient


@each_network
def test_the_compile_node_gives_the_same_picture(made, family, attending):
    attending(attention_pytorch)  # which is soon compiled
    _, patched, positive, negative = prepared(made, family)
    assert_compiled_paints_alike(patched, sample, positive, negative)


@each_family
@pytest.mark.parametrize("way", ["area", "time range"])
def test_areas_and_time_ranges_keep_the_concept(made, family, way):
    _, patched, positive, negative = prepared(made, family)
    if way == "time range":
        change = lambda it: host_nodes.ConditioningSetTimestepRange().set_range(it, 0.0, 1.0)[0]  # noqa: E731
    elif empty_latent(patched, 8)["samples"].ndim == 5:
        from comfy_extras.nodes_video_model import ConditioningSetAreaPercentageVideo

        sizes = {"width": 0.5, "height": 0.5, "temporal": 1.0, "x": 0.0, "y": 0.0, "z": 0.0}
        change = lambda it: ConditioningSetAreaPercentageVideo().append(it, **sizes, strength=1.0)[0]  # noqa: E731
    else:
        change = lambda it: host_nodes.ConditioningSetAreaPercentage().append(it, 0.5, 0.5, 0.0, 0.0, 1.0)[0]  # noqa: E731
    layer, values = min(value_layers(patched).items())
    found = []
    for prompts in ((positive, negative), (change(positive), change(negative))):
        seen, forwards = record(patched, *prompts)
        assert sorted(forwards[0][1]) == [0, 1]  # cond and uncond together
        tokens, (_, output) = forwards[0][0].shape[1], seen[layer]
        part = output[forwards[0][1].index(0), :tokens, values.start : values.start + values.width]
        found.append(part)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@each_family
def test_schedules_and_weights_of_stages_are_followed(made, family):
    model, patched, positive, negative = prepared(made, family)
    plain = sample(model, positive, negative)
    uses = patched.get_attachment("perfusion")
    late = apply_to_model(model, [use.replace(start_percent=0.9) for use in uses])
    assert torch.equal(sample(late, positive, negative), plain)  # its one step is the first of the schedule
    nowhere = apply_to_model(model, [use.replace(down=0.0, middle=0.0, up=0.0) for use in uses])
    assert torch.equal(sample(nowhere, positive, negative), plain)
    half = [use.replace(strength=0.5) for use in uses]
    scheduled = [use.replace(strength=0.5, end_percent=0.99) for use in uses]
    pictures = [sample(apply_to_model(model, some), positive, negative) for some in (half, scheduled)]
    assert torch.equal(*pictures) and not torch.equal(pictures[0], plain)


def test_the_stages_of_blocks_of_two_kinds_follow_one_another():
    layers = [f"{kind}.{number}" for kind in ("double_blocks", "single_blocks") for number in range(3)]
    assert [stages(layers)[layer] for layer in layers] == ["down", "down", "middle", "middle", "up", "up"]


@each_family
def test_a_trigger_reads_like_its_superclass_word(made, family):
    model, clip, _ = made(family)
    concept = concept_of(model, clip, "<my-dog>", "dog", 1)
    known = apply_to_clip(clip, [ConceptUse(concept.replace(token_embeddings={OFFSET: torch.zeros(concept.dim)}))])
    for prompt in ("a photo of a {}, on the beach", "a {}\nin snow " + "x " * 300):
        tokens, plain = known.tokenize(prompt.format("<my-dog>")), clip.tokenize(prompt.format("dog"))
        got, want = (it.encode_from_tokens(its) for it, its in ((known, tokens), (clip, plain)))
        assert torch.equal(got, want)
        (places,) = text.trigger_places(tokens, got.shape[1]).values()
        assert len(places) == 1
        assert dict(text.token_labels(known, tokens, got.shape[1]))[places[0]] == "<my-dog>"


@pytest.mark.parametrize("family", ["qwen-image", "sd3"])  # with fewer rows than tokens, and with more
def test_the_closest_words_are_those_of_their_rows(made, family, monkeypatch):
    monkeypatch.setattr(text, "_MOST_SIMILAR", 100)  # all of them
    model, clip, _ = made(family)
    use = ConceptUse(concept_of(model, clip, "<my-dog>", "dog", 1), file="dog.safetensors")
    known = apply_to_clip(clip, [use])
    tokens = known.tokenize("a <my-dog> house")
    encoding = known.encode_from_tokens(tokens)
    found = dict(text.similar_words(known.tokenizer, tokens, encoding, [use])["dog.safetensors"])
    labels = {label: position for position, label in text.token_labels(known, tokens, encoding.shape[1])}
    house = use.concept.similarity(encoding[0, labels["house"]]).item()
    assert found["house"] == pytest.approx(house)


@each_family
def test_prompts_are_encoded_as_in_training_with_the_offset_at_the_word(made, family):
    model, clip, vae = made(family)
    concept = concept_of(model, clip, "<my-dog>", "dog", 1)
    known = apply_to_clip(clip, [ConceptUse(concept)])
    prompts = ["a photo of a {} on the beach", "a {} in a long, long sentence with many other words, at night"]
    seen = []
    for prompt in prompts:
        tokens = known.tokenize(prompt.format("<my-dog>"))
        encoding = known.encode_from_tokens(tokens).float()
        plain = clip.encode_from_tokens(clip.tokenize(prompt.format("dog")))
        (place,) = text.trigger_places(tokens, encoding.shape[1])["<my-dog>"]
        plain[:, place] += concept.token_embeddings[OFFSET]
        torch.testing.assert_close(encoding, plain)
        seen.append((encoding, place))
    subject = Subject(torch.rand(1, 64, 64, 3), None, [prompts], "dog")
    with open_trainee(model, clip, vae, subject, offset=True) as trainee:
        assert not trainee.superclass_embeddings()[OFFSET].any()
        encoded = trainee.encode([0, 1], concept.token_embeddings)
    for (want, place), got, position in zip(seen, encoded.encodings, encoded.trigger_positions, strict=True):
        assert position == place
        torch.testing.assert_close(got[: want.shape[1]], want[0], rtol=1e-4, atol=1e-4)


@each_family
def test_thirty_steps_lower_the_loss_and_leave_the_model_as_it_was(made, family):
    model, clip, vae = made(family)
    generator = torch.Generator().manual_seed(0)
    photos, masks = torch.rand(2, 64, 64, 3, generator=generator), torch.ones(2, 64, 64)
    masks[:, :16] = 0
    weights = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    rate = 1000.0 if family == "flux-2-klein" else 10.0  # one row of 512 is little
    settings = TrainingSettings(steps=30, batch_size=1, accumulation=1, learning_rate_values=rate)
    subject = Subject(photos, masks, [TEMPLATES[:4]] * 2, "dog")
    with open_trainee(model, clip, vae, subject, offset=True) as trainee:
        inverse = covariance_inverse(model, clip)
        training = Training(trainee, inverse, "<my-dog>", "dog", base_model(model), settings)
        before = training.evaluate(draws=2)
        for _ in range(30):
            training.step()
        assert training.evaluate(draws=2) < 0.9 * before
    concept = training.concept()
    assert concept.token_embeddings[OFFSET].any()
    assert {layer: len(delta) for layer, delta in concept.value_deltas.items()} == value_widths(model)
    assert all(delta.any() for delta in concept.value_deltas.values())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.model.named_parameters())
    for network in (model.model, clip.cond_stage_model):
        assert all(getattr(m.forward, "__func__", None) is type(m).forward for m in network.modules())


@each_family
def test_checkpointing_learns_the_same(made, family):
    model, clip, vae = made(family)
    photos = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    subject = Subject(photos, None, [TEMPLATES[:2]], "dog")
    inverse = covariance_inverse(model, clip)
    learned = []
    for checkpointing in (False, True):
        with open_trainee(model, clip, vae, subject, checkpointing=checkpointing, offset=True) as trainee:
            settings = TrainingSettings(batch_size=1, accumulation=1)
            training = Training(trainee, inverse, "<my-dog>", "dog", family, settings)
            training.step()
            learned.append(training.concept().tensors())
    for name, tensor in learned[0].items():
        torch.testing.assert_close(tensor, learned[1][name], rtol=1e-3, atol=1e-5, msg=name)


@each_family
def test_texts_of_different_lengths_learn_as_each_alone(made, family):
    model, clip, vae = made(family)
    sentences = ["a {}", "a photo of a {} on the beach", "a {} in snow" + " x" * 300]
    photos = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    subject = Subject(photos, None, [[sentence] for sentence in sentences], "dog")
    concept = concept_of(model, clip, "<my-dog>", "dog", 1)
    with open_trainee(model, clip, vae, subject, offset=True) as trainee, torch.no_grad():
        trainee.wiring.concepts = ConceptSet([concept], zero_padded=trainee.zero_padded)
        sigma = torch.tensor([0.2, 0.5, 0.8])
        x = torch.randn(trainee._latents.shape, generator=torch.Generator().manual_seed(1))
        together = trainee._denoised(x, sigma, trainee.encode([0, 1, 2], concept.token_embeddings))
        for at in range(3):
            encoded = trainee.encode([at], concept.token_embeddings)
            alone = trainee._denoised(x[at, None], sigma[at, None], encoded)
            torch.testing.assert_close(together[at, None], alone, rtol=1e-4, atol=1e-4)


@each_family
def test_a_training_computes_what_sampling_does(made, family):
    """With another forward of some blocks, another rotation, and the wiring in place of patches."""
    model, clip, vae = made(family)
    concept = concept_of(model, clip, "<my-dog>", "dog", 1)
    use, generator = ConceptUse(concept, 0.6, 0.15), torch.Generator().manual_seed(1)
    known = apply_to_clip(clip, [use])
    positive = encode(known, "a photo of a <my-dog>")
    x, sigma = torch.randn(empty_latent(model, 8)["samples"].shape, generator=generator), torch.tensor([0.6])
    sampled = []

    def watch(executor, _x, _t, *rest, **kwargs):
        sampled.append(executor(x, sigma, *rest, **kwargs))
        return sampled[-1].expand(_x.shape)

    patched = apply_to_model(model, [use])
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    latent = empty_latent(model, 8)
    host_nodes.common_ksampler(patched, 7, 1, 1.0, "euler", "simple", positive, positive, latent)
    comfy.model_management.unload_all_models()
    subject = Subject(torch.rand(1, 64, 64, 3), None, [["a photo of a {}"]], "dog")
    with open_trainee(model, clip, vae, subject, offset=True) as trainee, torch.no_grad():
        trainee.wiring.concepts = ConceptSet([concept], 0.6, 0.15, zero_padded=trainee.zero_padded)
        encoded = trainee.encode([0], concept.token_embeddings)
        learned = trainee._denoised(x, sigma, encoded, guidance=3.5)  # the host's own
    torch.testing.assert_close(learned, sampled[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", NARROW)
def test_a_concept_goes_through_the_nodes(made, family, model_folder, tmp_path, monkeypatch):
    model, clip, vae = made(family)
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    (covariance, _) = PerfusionCovariance.execute(clip, "a dog\na red house", 100, "content", 0.01, "none").args
    inputs = {"trigger": ["<my-teddy>"], "superclass": ["dog"], "covariance": [covariance], "previews": ["a {}"]}
    (use,), _, sheet, *_ = train_node(lambda _: (model, clip, vae), family, **inputs).args
    assert use.concept.base_model == family and sheet.std() > 0 and use.concept.has_offset
    PerfusionSaveConcept.execute((use,), "dog", False)
    _, known = PerfusionLoader.execute(model, clip, "dog.safetensors").args
    _, report = PerfusionGateMap.execute(known, "a <my-teddy> in snow").args
    assert report.startswith("<my-teddy> acts on")
    axes = {"columns": "beta", "values": "0.5, 0.7"}, {"rows": "temperature", "values": "0.15"}
    _, pictures, _ = PerfusionSweep.execute(
        model, clip, vae, (use,), "a <my-teddy>", *axes, "", seed=1, **SETTINGS
    ).args
    assert pictures.shape == (2, 64, 64, 3)


@each_family
def test_what_cannot_be_says_so_with_the_reason(made, family, model_folder):
    model, clip, vae = made(family)
    use, title = ConceptUse(concept_of(model, clip, "<my-dog>", "dog", 1)), family_of(model).title
    known, used = apply_to_clip(clip, [use]), apply_to_model(model, [use])
    with pytest.raises(ValueError, match=f"key_lock is not for {title}.*Set key_lock of <my-dog> to 0"):
        apply_to_model(model, [use.replace(key_lock=0.5)])
    with pytest.raises(ValueError, match=f"A mask for a concept is not for {title}"):
        apply_to_model(model, [use.replace(mask=torch.ones(1, 8, 8))])
    with pytest.raises(ValueError, match=f"Perfusion Keep Apart is not for {title}"):
        keep_apart(used, KeepApart())
    with pytest.raises(ValueError, match=f"A map of attention is not for {title}"):
        PerfusionAttentionMap.execute(used, known, vae, "a <my-dog>", "", seed=1, **SETTINGS)
    given = {"model": model, "clip": clip, "vae": vae, "concept": (use,), "prompts": "a {}", "budget": 4, "pictures": 1}
    given |= {"scorer": "auto", "negative": "", "seed": 1, **SETTINGS}
    with pytest.raises(ValueError, match=f"Perfusion Tune also tries key_lock, which is not for {title}"):
        PerfusionTune.execute([torch.rand(1, 64, 64, 3)], **{name: [value] for name, value in given.items()})
    with pytest.raises(ValueError, match="Use the concept with Perfusion Loader"):
        PerfusionExportLoRA.execute(model, clip, (use,), "dog", False)
    with pytest.raises(ValueError, match="too large to train through"):
        train_node(lambda _: (model, clip, vae), superclass=["dog"], text_encoder=["train through"])
    with pytest.raises(ValueError, match=f"key_freedom is not for {title}"):
        train_node(lambda _: (model, clip, vae), superclass=["dog"], key_freedom=[0.5])


@pytest.mark.parametrize(
    ("family", "dtype", "computing"),
    [
        ("qwen-image", torch.float8_e4m3fn, torch.bfloat16),
        ("z-image", torch.bfloat16, None),
        ("lumina-2", torch.float16, None),
        ("flux", torch.float8_e4m3fn, torch.bfloat16),
        ("flux-2-klein", torch.bfloat16, None),
        ("sd3", torch.float16, None),
    ],
)
def test_weights_of_any_precision_learn_and_paint(made, model_folder, family, dtype, computing):
    model, (_, clip, vae) = random_model(family, 0, dtype, computing), made(family)
    assert {model.model.get_submodule(it.projection).weight.dtype for it in value_layers(model).values()} == {dtype}
    assert_learns_and_paints((model, clip, vae), family, sample, superclass=["dog"])


def test_trainings_go_on_from_their_files_and_these_paint_alike_in_a_new_process(made, model_folder, tmp_path):
    chosen = "qwen-image", "lumina-2", "flux"  # the others learn in these ways
    assert_trainings_go_on_and_paint(made, chosen, model_folder, tmp_path)


def test_a_concept_of_another_family_of_the_same_size_is_refused(made):
    (z_image, clip, _), (qwen, *_) = made("z-image"), made("qwen-image")
    with pytest.raises(ValueError, match=r"trained for z-image.*this model is qwen-image"):
        apply_to_model(qwen, [ConceptUse(concept_of(z_image, clip, "<my-dog>", "dog", 1))])


def test_a_text_encoder_of_another_model_is_refused(made, model_folder):
    (z_image, _, vae), (_, klein, _), (qwen, _, video) = made("z-image"), made("flux-2-klein"), made("qwen-image")
    with pytest.raises(ValueError, match=r"gives 192 numbers for a word, and Z-Image takes 64.*Load CLIP of the type"):
        train_node(lambda _: (z_image, klein, vae), superclass=["dog"])
    with pytest.raises(ValueError, match=r"This text encoder \(qwen3_4b\) is not this model's \(qwen-image\)"):
        train_node(lambda _: (qwen, klein, video), superclass=["dog"])


def test_a_network_of_another_kind_is_refused(made, monkeypatch):
    model, clip, _ = made("qwen-image")
    concept = concept_of(model, clip, "<my-dog>", "dog", 1)
    monkeypatch.setattr(model.model, "diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"none of Qwen-Image's layers.*ComfyUI's own loader"):
        apply_to_model(model, [ConceptUse(concept)])


def test_sd3_without_t5_is_refused(made):
    model, clip, _ = made("sd3")
    use, without = ConceptUse(concept_of(model, clip, "<my-dog>", "dog", 1)), clip.clone()
    without.cond_stage_model = types.SimpleNamespace(
        clip_l=clip.cond_stage_model.clip_l, clip_g=clip.cond_stage_model.clip_g, t5xxl=None
    )
    with pytest.raises(ValueError, match="loaded without T5"):
        apply_to_clip(without, [use])


def test_of_a_covariance_a_few_rows_of_padding_count_and_none_of_clip(made):
    _, flux, _ = made("flux")
    tokens = len(flux.tokenizer.tokenize_with_weights("a dog")["t5xxl"][0])
    words = 5  # "▁", "a", "▁", "dog" or so, and the end
    counted = measure_covariance(flux, ["a dog"], None, "content").count
    assert counted <= words and measure_covariance(flux, ["a dog"], None).count == counted + tokens // 16 - 1
    _, sd3, _ = made("sd3")
    rows = {
        name: [[token for token, _ in own[0]]] for name, own in sd3.tokenizer.tokenize_with_weights("a dog").items()
    }
    encodings, _ = text.encode_rows(sd3, rows)
    mask = _counted(sd3, rows, "all", encodings.shape[1])
    assert encodings.shape[1] == 154 and not mask[:, :77].any() and mask[:, 77 : 77 + counted].all()


def test_reference_pictures_ahead_of_the_text_are_refused(made):
    _, patched, positive, negative = prepared(made, "z-image")
    reference = {"reference_latents": [torch.zeros(1, 16, 8, 8)]}
    positive, negative = ([[it[0][0], {**it[0][1], **reference}]] for it in (positive, negative))
    with pytest.raises(ValueError, match="Concepts do not work beside reference pictures in Z-Image"):
        sample(patched, positive, negative)
