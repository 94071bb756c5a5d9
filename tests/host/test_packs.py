"""Concepts in the hands of other node packs, which are imitated."""

import pytest
import torch
from comfy.ldm.modules import attention
from comfy_extras.nodes_torch_compile import TorchCompileModel
from comfyui_perfusion.nodes.host.locked import LockedEncoding
from comfyui_perfusion.nodes.host.model import apply_to_model
from comfyui_perfusion.nodes.host.text import apply_to_clip, similar_words
from comfyui_perfusion.nodes.host.uses import KEY, ConceptUse

import packs
from reference_model import TOY_PROMPT, close, edit_weights
from test_model import encode, sample
from test_text import text_concept

SHORT = "a (<my-toy>:1.3), on the (snowy beach:0.6)"
PROMPT = f"{SHORT} with a (red fluffernutter:1.2) " + "very long, " * 30


def prompts(clip, lock: float = 1.0):
    return apply_to_clip(clip, [ConceptUse(text_concept(clip, "<my-toy>", "teddy", 0), key_lock=lock)])


@pytest.mark.parametrize("normalization", packs.NORMALIZATIONS)
@pytest.mark.parametrize("interpretation", packs.INTERPRETATIONS)
def test_the_lock_is_carried_through_every_way_of_weighing_words(models, normalization, interpretation, caplog):
    """Keys see exactly what the pack makes of the prompt with the superclass word."""
    _, clip, _ = models("sd1")
    encoding = packs.advanced_encode(prompts(clip), PROMPT, normalization, interpretation)[0][0]
    local = packs.advanced_encode(prompts(clip, 0.0), PROMPT, normalization, interpretation)[0][0]
    want = packs.advanced_encode(clip, PROMPT.replace("<my-toy>", "teddy"), normalization, interpretation)[0][0]
    assert torch.equal(encoding, local)
    assert torch.equal(getattr(encoding, KEY), want)
    assert not torch.equal(encoding, want)
    assert type(local) is type(want) is torch.Tensor
    assert not caplog.records


@pytest.mark.parametrize("interpretation", packs.INTERPRETATIONS)
def test_where_the_lock_cannot_be_carried_it_is_said_once(models, interpretation, caplog):
    _, clip, _ = models("sdxl")
    taught = prompts(clip)
    encode(taught, "a <my-toy>")
    assert not caplog.records
    for prompt in (PROMPT, SHORT):
        encoding = packs.advanced_encode_xl(taught, prompt, "none", interpretation)[0][0]
    assert [record.message for record in caplog.records if "key lock is local" in record.message] == [
        "Perfusion: a node encodes <my-toy> in a way of its own; its key lock is local."
    ]
    assert not hasattr(encoding, KEY)
    packs.advanced_encode_xl(prompts(clip, 0.0), SHORT, "none", interpretation)
    packs.advanced_encode_xl(taught, "a teddy", "none", interpretation)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("first", ["concepts", "NegPip"])
def test_the_lock_holds_with_keys_and_values_in_turn(world, first):
    """154 interleaved tokens, taken apart in attention; in the picture with a longer negative prompt as well."""

    def with_neg_pip(model):
        if first == "concepts":
            return packs.neg_pip(apply_to_model(model, world.uses), apply_to_clip(world.plain_clip, world.uses))
        model, clip = packs.neg_pip(model, world.plain_clip)
        return apply_to_model(model, world.uses), apply_to_clip(clip, world.uses)

    reference, plain = packs.neg_pip(world.reference, world.plain_clip)
    model, clip = with_neg_pip(world.model)
    text = f"{TOY_PROMPT}, in the (snow:-1)"
    positive, negative = encode(clip, text), encode(clip, "bad, " * 80)
    assert positive[0][0].shape[1] == 154 < negative[0][0].shape[1]
    keys = encode(plain, text.replace("<my-toy>", "teddy"))[0][0]
    edit_weights(world.reference, world.uses, [(positive[0][0][:, 0::2], keys[:, 0::2])])
    found, want = sample(model, positive, negative), sample(reference, positive, negative)
    assert close(found, want)
    edit_weights(world.reference, world.uses, [])
    assert not close(found, sample(reference, positive, negative))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_without_concepts_takes_a_locked_conditioning_as_any_other(world, compiled, monkeypatch):
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # one that is soon compiled
    model = TorchCompileModel.execute(world.model, "eager")[0] if compiled else world.model
    assert isinstance(world.toy[0][0], LockedEncoding)
    plain = [[world.toy[0][0].as_subclass(torch.Tensor), {"pooled_output": world.toy[0][1]["pooled_output"]}]]
    found, want = sample(model, world.toy, world.negative), sample(world.model, plain, world.negative)
    assert torch.equal(found, want)
    assert type(found) is torch.Tensor


def test_words_are_told_from_where_they_stand_with_keys_and_values_in_turn(models):
    model, clip, _ = models("sd1")
    use = ConceptUse(text_concept(clip, "<my-toy>", "teddy", 0), file="toy")
    vectors = {name: torch.randn(768) for name in ("target_input", "target_dual", "superclass_input")}
    use = use.replace(concept=use.concept.replace(**vectors))
    taught = apply_to_clip(clip, [use])
    _, in_turn = packs.neg_pip(model, taught)
    tokens = taught.tokenize("a red <my-toy> on sand")
    found, want = (
        similar_words(clip.tokenizer, tokens, one.encode_from_tokens(tokens), [use])["toy"] for one in (in_turn, taught)
    )
    assert dict(found) == pytest.approx(dict(want), abs=1e-4)


def test_a_text_encoder_that_reads_lists_of_texts_in_its_own_way_keeps_trigger_and_lock(models, caplog):
    _, clip, _ = models("sd1")
    for text in ("a photo of a <my-toy>, red", "<my-toy>"):
        ((encoding, rest),) = packs.plus_plus_encode(prompts(clip), text)
        ((want, _),) = packs.plus_plus_encode(clip, text.replace("<my-toy>", "teddy"))
        ((local, local_rest),) = packs.plus_plus_encode(prompts(clip, 0.0), text)
        assert torch.equal(getattr(encoding, KEY), want)
        assert torch.equal(encoding, local)
        assert not torch.equal(local, want)
        assert local_rest.keys() < rest.keys()
    plain = packs.plus_plus_encode(clip, "a teddy, red")[0][0]
    assert torch.equal(packs.plus_plus_encode(prompts(clip), "a teddy, red")[0][0], plain)
    assert not caplog.records
