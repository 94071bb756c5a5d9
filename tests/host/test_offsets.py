"""Concepts that are read as their superclass word, with an offset added to the text encoder's output."""

import types
from pathlib import Path

import pytest
import torch
from comfy import supported_models
from comfyui_perfusion.nodes.exchange import PerfusionExportLoRA
from comfyui_perfusion.nodes.host import text
from comfyui_perfusion.nodes.host.families import family_of
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.trainable import bypassed, out_of_place, rotation_with_backward
from comfyui_perfusion.nodes.host.trainee import Subject, open_trainee
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.load import PerfusionSaveConcept
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import load_concept
from comfyui_perfusion.perfusion_core.concept import OFFSET

from makers import make_concept, train_node
from random_families import CONFIGS, PROJECTED, WIDTH, empty_latent

PROMPT = "a photo of a {} on the beach"
KINDS = ["sd1", "sdxl", *(CONFIGS if hasattr(supported_models, "Anima") else ())]


@pytest.fixture
def of_kind(models, made):
    return lambda kind: models(kind) if kind not in CONFIGS else made(kind)


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None), raising=False)


def with_offset(model, clip, trigger: str = "<my-dog>", seed: int = 0):
    concept = make_concept(model, clip, trigger, "dog", seed)
    width = sum(table.shape[1] for table in text.embedding_tables(clip).values())
    offset = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return concept.replace(token_embeddings={OFFSET: offset})


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_in_training(of_kind, kind):
    model, clip, vae = of_kind(kind)
    concept = with_offset(model, clip)
    known = apply_to_clip(clip, [ConceptUse(concept)])
    prompts = [PROMPT, "{} in a long, long sentence with many other words, at night"]
    seen = []
    for prompt in prompts:
        tokens = known.tokenize(prompt.format("<my-dog>"))
        (places,) = text.trigger_places(tokens).values()
        seen.append((text.encoding_of_layers(known, tokens, model).float(), places))
    subject = Subject(torch.rand(1, 64, 64, 3), None, [prompts], "dog")
    with open_trainee(model, clip, vae, subject, offset=True) as trainee:
        assert not trainee.superclass_embeddings()[OFFSET].any()
        encoded = trainee.encode([0, 1], concept.token_embeddings)
    for (want, (place,)), got, position in zip(seen, encoded.encodings, encoded.trigger_positions, strict=True):
        assert position == place
        words = (
            want.shape[1] if kind not in ("ltx-video", "pixart-sigma") else place + 1
        )  # behind may be unseen padding
        torch.testing.assert_close(got[:words], want[0, :words], rtol=1e-3, atol=1e-3)


def test_an_offset_is_added_at_the_triggers_place_alone_times_its_weight(models):
    model, clip, _ = models("sd1")
    first, second = with_offset(model, clip), with_offset(model, clip, "<other>", 1)
    known = apply_to_clip(clip, [ConceptUse(first), ConceptUse(second)])
    prompt = "a (<my-dog>:1.5) and a <other>"
    plain = prompt.replace("<my-dog>", "dog").replace("<other>", "dog")
    got, want = (it.encode_from_tokens(it.tokenize(words)) for it, words in ((known, prompt), (clip, plain)))
    (own,), (others,) = text.trigger_places(known.tokenize(prompt)).values()
    want[0, own] += 1.5 * first.token_embeddings[OFFSET]
    want[0, others] += second.token_embeddings[OFFSET]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("lock", [0.0, 0.5, 1.0])
def test_locked_keys_see_no_offset(models, lock):
    model, clip, _ = models("sd1")
    concept = with_offset(model, clip)
    other = ConceptUse(with_offset(model, clip, "<other>", 1))
    known = apply_to_clip(clip, [ConceptUse(concept, key_lock=lock), other])
    prompt = "a <my-dog> and a <other>"
    locked = apply_to_clip(clip, [other]).encode_from_tokens(known.tokenize(prompt.replace("<my-dog>", "dog")))
    encoded = known.encode_from_tokens(known.tokenize(prompt), return_dict=True)
    keys = encoded.get(text.KEYS, encoded["cond"])
    torch.testing.assert_close(keys, encoded["cond"].as_subclass(torch.Tensor).lerp(locked, lock))


def test_a_concept_with_an_offset_is_saved_as_one_and_goes_on_as_one(models, model_folder):
    inputs = {"superclass": ["dog"], "text_encoder": ["encode once"], "previews": ["a {}"]}
    (use,), *_ = train_node(models, "sd1", **inputs).args
    assert use.concept.token_embeddings.keys() == {OFFSET} and use.concept.token_embeddings[OFFSET].any()
    assert '"text_encoder": "encode once"' in use.concept.metadata["training"]
    path = Path(PerfusionSaveConcept.execute((use,), "dog", False).args[0])
    assert load_concept(path).has_offset
    inputs |= {"continue_from": ["dog.safetensors"], "steps": [3]}
    _, (resumed,), *_ = train_node(models, "sd1", **inputs).args
    assert resumed.concept.has_offset
    with pytest.raises(ValueError, match="Set text_encoder to encode once"):
        train_node(models, "sd1", **{**inputs, "text_encoder": ["auto"]})
    model, clip, _ = models("sd1")
    with pytest.raises(ValueError, match="Use the concept with Perfusion Loader"):
        PerfusionExportLoRA.execute(model, clip, (use,), "dog", False)


def test_a_text_encoder_of_another_width_is_refused(models):
    model, clip, _ = models("sd1")
    concept = with_offset(model, clip)
    with pytest.raises(ValueError, match=r"trained with the text encoders offset \(768 wide\)"):
        apply_to_clip(models("sdxl")[1], [ConceptUse(concept)])


@pytest.mark.parametrize("family", PROJECTED)
def test_what_stands_in_while_training_computes_what_the_model_does(made, family):
    model, *_ = made(family)
    network, kind = model.model.diffusion_model, family_of(model)
    generator = torch.Generator().manual_seed(0)
    shapes = empty_latent(model, 4, pictures=2)["samples"].shape, (2, 5, WIDTH)
    x, context = (torch.randn(shape, generator=generator) for shape in shapes)
    times, mask = torch.tensor([0.3, 0.7]), torch.ones(2, 5, dtype=torch.int)
    plain = network(x.clone(), times, context, attention_mask=mask)
    projected = kind.received(network, context, {})
    with out_of_place(network), rotation_with_backward(), bypassed(network.get_submodule(kind.adapter)):
        assert torch.equal(kind.received(network, context, {}), projected)
        found = network(x.clone(), times, projected, attention_mask=mask)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
