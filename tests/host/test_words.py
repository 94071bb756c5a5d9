"""The words of a prompt that are most like a concept, which the pages are told of."""

import sys
from types import SimpleNamespace

import comfy.hooks
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from comfyui_perfusion.nodes.host import text
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.uses import KEY, ConceptUse
from comfyui_perfusion.nodes.load import PerfusionLoader
from comfyui_perfusion.perfusion_core import save_concept

import nodes as host_nodes
from makers import make_concept

PROMPT = "An old <my-toy>, on the (Sand:1.3) beside a fluffernutter of sand and 漢字! <my-cup>"


@pytest.fixture
def told(monkeypatch):
    """(event, data, page) of all that a page is told of words."""
    messages = []

    def send(event, *rest):
        if event != "perfusion.encoder":  # tests of its own
            messages.append((event, *rest))

    server = SimpleNamespace(client_id="page", send_sync=send)
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    return messages


@pytest.fixture
def concepts(models, request):
    """A CLIP and two concepts for it."""
    model, clip, _ = models(getattr(request, "param", "sd1"))
    return clip, make_concept(model, clip, "<my-toy>", "teddy", 1), make_concept(model, clip, "<My-Cup>", "cup", 2)


def encode(clip, prompt):
    return host_nodes.CLIPTextEncode().encode(clip, prompt)[0]


@pytest.mark.parametrize("concepts", ["sd1", "sd2", "sdxl"], indirect=True)
@pytest.mark.parametrize("before", ["", "very long, " * 40])
def test_every_word_is_where_the_gate_sees_it(concepts, told, monkeypatch, before):
    monkeypatch.setattr(text, "_MOST_SIMILAR", 99)
    clip, toy, cup = concepts
    clip = apply_to_clip(clip, [ConceptUse(toy, file="toy"), ConceptUse(cup, file="cup")])
    ((encoding, _),) = encode(clip, before + PROMPT)
    ((event, words, page),) = told
    assert (event, page, list(words)) == ("perfusion.words", "page", ["toy", "cup"])
    labels = text.token_labels(clip, clip.tokenize(before + PROMPT))
    targets, duals = (torch.stack([getattr(one, name) for one in (toy, cup)]).double()
                      for name in ("target_input", "target_dual"))  # fmt: skip
    shares = torch.linalg.solve((targets @ duals.T).T, (encoding[0].double() @ duals.T).T)
    for similarity, found in zip(shares, words.values(), strict=True):
        found = dict(found)
        for word in ("an", "old", "sand", "beside", *(["very"] if before else [])):
            assert found[word] == pytest.approx(max(similarity[at].item() for at, label in labels if label == word))
        assert found.keys() - {"very", "long"} == {
            "an", "old", "on", "the", "sand", "beside", "a", "fluffernutter", "of", "and", "漢字",
        }  # fmt: skip
        names = [name for _, name in labels]
        parts = labels[names.index("beside") + 2 : names.index("of")]
        assert len(parts) > 1
        assert found["fluffernutter"] == pytest.approx(max(similarity[at].item() for at, _ in parts))


def test_the_three_most_similar_are_told_highest_first(concepts, told):
    clip, toy, _ = concepts
    encode(apply_to_clip(clip, [ConceptUse(toy, file="toy")]), PROMPT)
    similarities = [similarity for _, similarity in told[0][1]["toy"]]
    assert len(similarities) == 3
    assert similarities == sorted(similarities, reverse=True)


def test_a_concept_is_told_by_its_file_when_its_trigger_is_in_the_prompt(concepts, told, models, model_folder):
    model, clip, _ = models("sd1")
    _, toy, cup = concepts
    for concept, name in ((toy, "toy"), (toy, "other toy"), (cup, "cup")):
        save_concept(concept, model_folder / f"{name}.safetensors")
        model, clip = PerfusionLoader.execute(model, clip, f"{name}.safetensors").args
    encode(clip, "a photo")
    encode(clip, "a <my-toy> on sand")
    assert [list(words) for _, words, _ in told] == [["other toy.safetensors"]]


def test_telling_leaves_encodings_as_they_are_bit_for_bit(concepts, told, monkeypatch):
    clip, toy, cup = concepts
    clip = apply_to_clip(clip, [ConceptUse(toy, key_lock=0.5, file="toy"), ConceptUse(cup, file="cup")])
    hook, hooks, keyframes = comfy.hooks.WeightHook(), comfy.hooks.HookGroup(), comfy.hooks.HookKeyframeGroup()
    hook.weights, hook.weights_clip, hook.need_weight_init = {}, {}, False
    hooks.add(hook)
    for strength, start in ((1.0, 0.0), (0.5, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(keyframes)
    (hooked,) = SetClipHooks().apply_hooks(clip, apply_to_conds=True, schedule_clip=True, hooks=hooks)
    with_page = encode(clip, PROMPT) + encode(hooked, PROMPT)
    assert len(told) == len(with_page) == 3
    monkeypatch.delitem(sys.modules, "server")
    without = encode(clip, PROMPT) + encode(hooked, PROMPT)
    assert len(told) == 3
    for (encoding, rest), (other, other_rest) in zip(with_page, without, strict=True):
        assert torch.equal(encoding, other)
        assert torch.equal(rest["pooled_output"], other_rest["pooled_output"])
        assert torch.equal(getattr(encoding, KEY), getattr(other, KEY))


def test_nobody_is_told_when_no_page_asked(concepts, told):
    clip, toy, _ = concepts
    clip = apply_to_clip(clip, [ConceptUse(toy, file="toy")])
    sys.modules["server"].PromptServer.instance.client_id = None
    encode(clip, PROMPT)
    del sys.modules["server"].PromptServer.instance
    encode(clip, PROMPT)
    assert told == []
