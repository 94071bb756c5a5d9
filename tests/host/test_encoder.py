"""It is said where a concept is encoded by another text encoder, or another layer, than it was trained with."""

import sys
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import pytest
from comfyui_perfusion.nodes.host import encoder
from comfyui_perfusion.nodes.host.encoder_covariance import fingerprint
from comfyui_perfusion.nodes.host.text import apply_to_clip, skipped
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.train import PerfusionTrainConcept

import nodes as host_nodes
from makers import train_node
from test_text import add_lora, encode, text_concept


def skip(clip, layer: int):
    return host_nodes.CLIPSetLastLayer().set_last_layer(clip, layer)[0]


def trained_with(clip, **changes):
    """A use of a concept that this CLIP was trained with, from toy.safetensors."""
    metadata = {"text_encoder": fingerprint(clip), "clip_skip": str(skipped(clip)), **changes}
    concept = text_concept(clip, "<my-toy>", "teddy", 0).replace(metadata=metadata)
    return ConceptUse(concept, file="toy.safetensors")


@pytest.fixture
def told(monkeypatch):
    """What the page hears of text encoders."""
    heard = []
    server = SimpleNamespace(
        client_id="page", send_sync=lambda event, data, _: heard.append(data) if event == "perfusion.encoder" else None
    )
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    monkeypatch.setattr("comfyui_perfusion.nodes.host.text.similar_words", lambda *_: {})
    return heard


@pytest.mark.parametrize(("kind", "own"), [("sd1", 1), ("sd2", 2), ("sdxl", 2)])
def test_clip_skip_is_counted_as_people_do(models, kind, own):
    _, clip, _ = models(kind)
    assert skipped(clip) == own
    assert [skipped(skip(clip, layer)) for layer in (-1, -2)] == [1, 2]
    assert fingerprint(skip(clip, -own)) == fingerprint(clip) != fingerprint(skip(clip, -3 + own))


def test_the_weights_are_read_once_while_they_stay(models, monkeypatch):
    _, clip, _ = models("sd1")
    adapted = add_lora(clip)
    first, other = fingerprint(clip), fingerprint(adapted)
    assert first != other
    monkeypatch.setattr(encoder, "add", lambda *_: pytest.fail("they are read again"))
    assert (fingerprint(clip), fingerprint(adapted)) == (first, other)


def test_weights_that_cannot_be_read_cannot_be_trained_with(models, monkeypatch):
    """As those that a node pack has in a form of its own; they are used all the same."""

    def unreadable(*_):
        raise RuntimeError("has no bytes")

    _, clip, _ = models("sd1")
    uses = trained_with(clip)
    monkeypatch.setattr(encoder, "_digests", WeakKeyDictionary())
    monkeypatch.setattr(encoder, "add", unreadable)
    assert "text_encoder" not in encoder.differences(uses, clip.cond_stage_model)
    with pytest.raises(ValueError, match=r"cannot be read.*Load CLIP"):
        fingerprint(clip)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_nothing_is_said_where_nothing_differs(models, told, caplog, kind):
    _, clip, _ = models(kind)
    prompts = apply_to_clip(clip, [trained_with(clip)])
    encode(prompts, "a <my-toy>")
    encode(skip(prompts, -skipped(clip)), "a <my-toy>")
    encode(skip(prompts, -3 + skipped(clip)), "no trigger")
    assert told == [{"toy.safetensors": {}}] * 2
    assert not caplog.records


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_another_clip_skip_is_said_once(models, told, caplog, kind, order):
    _, clip, _ = models(kind)
    own, other = skipped(clip), 3 - skipped(clip)
    use = trained_with(clip)
    prompts = (
        apply_to_clip(skip(clip, -other), [use]) if order == "before" else skip(apply_to_clip(clip, [use]), -other)
    )
    for prompt in ("a <my-toy>", "the <my-toy>"):
        encode(prompts, prompt)
    assert told == [{"toy.safetensors": {"clip_skip": (own, other)}}] * 2
    (record,) = caplog.records
    assert f"trained with clip skip {own}, this is {other} (set CLIP Set Last Layer to -{own})" in record.message
    encode(apply_to_clip(clip, [use]), "a <my-toy>")
    assert told[-1] == {"toy.safetensors": {}}


def test_a_lora_on_the_text_encoder_is_said(models, told, caplog):
    _, clip, _ = models("sd1")
    use = trained_with(clip)
    encode(add_lora(apply_to_clip(clip, [use])), "a <my-toy>")
    assert told == [{"toy.safetensors": {"text_encoder": True}}]
    assert "with another text encoder" in caplog.text
    encode(apply_to_clip(clip, [use]), "a <my-toy>")
    assert told[-1] == {"toy.safetensors": {}}


def test_another_text_encoder_is_said_also_of_files_without_a_layer(models, told, caplog):
    _, clip, _ = models("sd1")
    use = trained_with(clip, text_encoder="0" * 16)
    del use.concept.metadata["clip_skip"]
    encode(skip(apply_to_clip(clip, [use]), -2), "a <my-toy>")
    assert told == [{"toy.safetensors": {"clip_skip": (1, 2), "text_encoder": True}}]
    assert "clip skip 1, this is 2 (set CLIP Set Last Layer to -1) and with another text encoder" in caplog.text


@pytest.mark.parametrize("skip", ["", "x", "-1", "9" * 500, "\u00b2"])
def test_files_may_say_anything(models, told, skip):
    _, clip, _ = models("sd1")
    encode(apply_to_clip(clip, [trained_with(clip, clip_skip=skip)]), "a <my-toy>")
    imported = ConceptUse(text_concept(clip, "<my-cup>", "cup", 0), file="cup")
    encode(apply_to_clip(clip, [imported]), "a <my-cup>")
    assert told == [{"toy.safetensors": {}}, {"cup": {}}]


@pytest.mark.usefixtures("model_folder")
def test_a_trained_concept_has_layer_and_fingerprint(models, monkeypatch):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", SimpleNamespace(unique_id=None))
    _, clip, _ = models("sd1")
    _, (use,), *_ = train_node(models, clip=[skip(clip, -2)], steps=[1]).args
    assert use.concept.metadata["clip_skip"] == "2"
    assert use.concept.metadata["text_encoder"] == fingerprint(skip(clip, -2))
