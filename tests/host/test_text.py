"""What prompts with triggers encode to, against tokens made by hand and against prompts with the superclass word."""

import dataclasses
import re
from itertools import chain

import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL
from comfy_extras.nodes_hooks import SetClipHooks
from comfyui_perfusion.nodes.host.encoder_covariance import fingerprint
from comfyui_perfusion.nodes.host.key_lock import ENCODING, KEYS
from comfyui_perfusion.nodes.host.text import apply_to_clip, encoders
from comfyui_perfusion.nodes.host.uses import KEY, ConceptUse
from comfyui_perfusion.perfusion_core import Concept
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import nodes as host_nodes
from random_checkpoint import SHALLOW_TEXT, random_state_dict

SUPERCLASSES = {"<my-toy>": "teddy", "<my-cup>": "cup"}
PROMPTS = {
    "alone": "<my-toy>",
    "in a sentence": "a photo of a <my-toy> on the beach",
    "weighted": "a (<my-toy>:1.2) on the beach",
    "nested": "a photo of ((<my-toy>)) and (a (<my-toy>:0.5) here:1.3)",
    "upper case": "a photo of a <MY-Toy>",
    "several times": "<my-toy> and <my-toy>,<my-toy>",
    "punctuation": "the \"<my-toy>\", '<my-cup>' \\(<my-toy>\\) and <my-toy>'s!\n<my-toy>",
    "several concepts": "a <my-toy> beside a (<my-cup>:0.8), <my-cup>",
    "second chunk": "very long, " * 40 + "a <my-toy>",
    "at the end of a chunk": "long " * 74 + "<my-toy> <my-toy>",
    "embedding before": "a photo, embedding:tiny <my-toy>",
    "embedding after": "(<my-toy>, embedding:tiny :1.1) red",
}
CASES = [("sd1", name) for name in PROMPTS]
CASES += [("sd2", "several concepts"), ("sd2", "second chunk")]
CASES += [("sdxl", "several concepts"), ("sdxl", "embedding before")]


@pytest.fixture
def toy_and_cup(models, tmp_path, monkeypatch):
    """kind -> (CLIP, uses of two concepts); the CLIP finds an embedding called tiny."""

    def of(kind="sd1", **settings):
        _, clip, _ = models(kind)
        tiny = {"clip_l": torch.full((2, 768), 0.01), "clip_g": torch.full((2, 1280), 0.01)}
        save_file({**tiny, "clip_h": torch.full((2, 1024), 0.01)}, tmp_path / "tiny.safetensors")
        for name in clip.tokenize(""):
            monkeypatch.setattr(getattr(clip.tokenizer, f"clip_{name}"), "embedding_directory", str(tmp_path))
        return clip, [
            ConceptUse(text_concept(clip, trigger, superclass, seed), **settings)
            for seed, (trigger, superclass) in enumerate(SUPERCLASSES.items())
        ]

    return of


def text_concept(clip, trigger: str, superclass: str, seed: int) -> Concept:
    """A concept with token embeddings for this CLIP; nothing else of it matters to prompts."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {
        name: 0.02 * torch.randn(encoder.transformer.get_input_embeddings().weight.shape[1], generator=generator)
        for name, encoder in encoders(clip).items()
    }
    one = torch.ones(1)
    return Concept("", trigger, superclass, "", embeddings, one, one, one, {"": one})


def encode(clip, prompt: str):
    """(encoding, the rest of the conditioning) as the stock node makes them."""
    ((encoding, rest),) = host_nodes.CLIPTextEncode().encode(clip, prompt)[0]
    return encoding, rest


def with_superclasses(prompt: str, superclasses=SUPERCLASSES) -> str:
    for trigger, superclass in superclasses.items():
        prompt = re.sub(re.escape(trigger), superclass, prompt, flags=re.IGNORECASE)
    return prompt


def exchanged(tokens, by_token):
    """{encoder: sections of (token, weight)} with {(encoder, token): replacement}."""

    def replacement(name, token):
        return token if torch.is_tensor(token) else by_token.get((name, token), token)

    return {
        name: [[(replacement(name, token), *rest) for token, *rest in section] for section in sections]
        for name, sections in tokens.items()
    }


def embeddings_by_token(clip, uses):
    """{(encoder, the superclass word's token): the trigger's embedding}."""
    return {
        (name, sections[0][1][0]): use.concept.token_embeddings[name]
        for use in uses
        for name, sections in clip.tokenize(use.concept.superclass).items()
    }


def by_hand(clip, prompt: str, uses):
    """The prompt with superclass words, their tokens exchanged for the concepts' embeddings, encoded."""
    tokens = exchanged(clip.tokenize(with_superclasses(prompt)), embeddings_by_token(clip, uses))
    ((encoding, rest),) = clip.encode_from_tokens_scheduled(tokens)
    return encoding, rest


def same(one, other) -> bool:
    """Whether two conditionings have the same encoding and pooled output, bit for bit."""
    pooled, other_pooled = one[1].get("pooled_output"), other[1].get("pooled_output")
    return torch.equal(one[0], other[0]) and torch.equal(pooled, other_pooled)


def test_a_prompt_without_triggers_encodes_as_if_there_were_no_concept(toy_and_cup):
    clip, uses = toy_and_cup(key_lock=1.0)
    prompts = apply_to_clip(clip, uses)
    for prompt in ("a photo of a teddy", "", "(my-toy:1.2) <my toy> my-cup>", "embedding:tiny red"):
        before = encode(clip, prompt)
        taught = encode(prompts, prompt)  # in turn, as the host patches and unpatches
        assert same(before, taught)
        assert before[1].keys() == taught[1].keys()
        assert same(before, encode(clip, prompt))


def test_a_bypassed_loader_leaves_nothing_on_the_clip(toy_and_cup):
    clip, uses = toy_and_cup(key_lock=1.0)
    part, tokenizer = clip.tokenizer.clip_l, clip.tokenizer.clip_l.tokenizer
    vocabulary, tokens = dict(tokenizer.get_vocab()), clip.tokenize(PROMPTS["in a sentence"])
    before = encode(clip, PROMPTS["in a sentence"])
    assert not same(before, encode(apply_to_clip(clip, uses), PROMPTS["in a sentence"]))
    assert clip.tokenizer.clip_l is part
    assert part.tokenizer is tokenizer
    assert tokenizer.get_vocab() == vocabulary
    assert clip.tokenize(PROMPTS["in a sentence"]) == tokens
    assert same(before, encode(clip, PROMPTS["in a sentence"]))
    assert clip.patcher.get_attachment(KEY) is None


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_trigger_encodes_as_its_embedding_and_keys_see_the_superclass_word(toy_and_cup, kind, name):
    clip, uses = toy_and_cup(kind, key_lock=1.0)
    encoded = encode(apply_to_clip(clip, uses), PROMPTS[name])
    assert same(encoded, by_hand(clip, PROMPTS[name], uses))
    assert torch.equal(encoded[1][ENCODING], encoded[0])
    assert torch.equal(encoded[1][KEYS], encode(clip, with_superclasses(PROMPTS[name]))[0])
    assert not torch.equal(encoded[1][KEYS], encoded[0])


def test_key_lock_zero_adds_nothing_to_the_conditioning(toy_and_cup):
    clip, uses = toy_and_cup(key_lock=0.0)
    encoded = encode(apply_to_clip(clip, uses), PROMPTS["in a sentence"])
    assert same(encoded, by_hand(clip, PROMPTS["in a sentence"], uses))
    assert encoded[1].keys() == encode(clip, PROMPTS["in a sentence"])[1].keys()
    assert not hasattr(encoded[0], KEY)


@pytest.fixture
def prompt_pieces(toy_and_cup):
    clip, uses = toy_and_cup()
    return clip, apply_to_clip(clip, uses), embeddings_by_token(clip, uses)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.sampled_from([*SUPERCLASSES, " ", ", ", "(", ")", ":1.2)", "((", "\\(", "\\)", "'s ", '"', "\n", "!", "2 ",
                         " red ", " 帽子 ", " embedding:tiny ", " embedding:no ", "&amp;", " é ", "[", "]"]),
        max_size=30,
    )
)  # fmt: skip
def test_any_prompt_tokenizes_like_the_superclass_prompt(prompt_pieces, pieces):
    clip, prompts, by_token = prompt_pieces
    # spaces, because superclass words without would be one word to the tokenizer
    prompt = "".join(f" {piece} " if piece in SUPERCLASSES else piece for piece in pieces)
    want = exchanged(clip.tokenize(with_superclasses(prompt), return_word_ids=True), by_token)["l"]
    got = prompts.tokenize(prompt, return_word_ids=True)["l"]
    assert [len(section) for section in got] == [len(section) for section in want]
    for (token, *rest), (other, *other_rest) in zip(chain(*got), chain(*want), strict=True):
        assert rest == other_rest
        assert torch.equal(torch.as_tensor(token), torch.as_tensor(other))


@pytest.mark.parametrize(
    ("trigger", "text", "fires"),
    [
        ("mytoy", "a mytoy, here", 1),
        ("mytoy", "a MyToy here", 1),
        ("mytoy", "mytoys amytoy mytoy2 my toy", 0),
        ("my-toy", "my-toys (my-toy:1.1)", 1),
        ("<my-toy>", "a<my-toy>b <my-toy>s", 2),
        ("<toy>", "<toy2> <toy> toy", 1),
        ("_toy_", "my_toy_ _toy_ _toy_s", 1),
        ("Straße", "a straße", 1),
        ("<sks>", "a <ſks>", None),  # equal only to those who ignore case: firing or not, it encodes
        ("<İ>", "a <İ>", 1),
        ("玩具", "a 玩具 here", 1),
        ("<b\u00e4r>", "a <ba\u0308r> and a <B\u00c4R>", 2),
        ("<ba\u0308r>", "a <ba\u0308r> and a <b\u00e4r>", 2),
        ("<\uacf0>", "a <\u1100\u1169\u11b7>", 1),
        ("<\u1ebf>", "<e\u0302\u0301> <\u00ea\u0301>", 2),
        ("cafe", "a cafe\u0301", 0),
    ],
)
def test_triggers_fire_as_whole_words_in_any_case(toy_and_cup, trigger, text, fires):
    clip, (use, _) = toy_and_cup()
    prompts = apply_to_clip(clip, [dataclasses.replace(use, concept=use.concept.replace(trigger=trigger))])
    found = sum(torch.is_tensor(token) for token, _ in prompts.tokenize(text)["l"][0])
    assert fires is None or found == fires


def test_of_two_triggers_the_longer_counts_where_both_match(toy_and_cup):
    clip, (toy, cup) = toy_and_cup()
    uses = [
        dataclasses.replace(use, concept=use.concept.replace(trigger=trigger))
        for use, trigger in ((toy, "my-toy"), (cup, "my-toy-car"))
    ]
    (section,) = apply_to_clip(clip, uses).tokenize("my-toy-car my-toy")["l"]
    first, second = (token for token, _ in section if torch.is_tensor(token))
    assert torch.equal(first, cup.concept.token_embeddings["l"])
    assert torch.equal(second, toy.concept.token_embeddings["l"])


@pytest.mark.parametrize(("kind", "order"), [("sd1", "before"), ("sd1", "after"), ("sdxl", "after")])
def test_keys_are_exact_with_clip_skip(toy_and_cup, kind, order):
    clip, uses = toy_and_cup(kind, key_lock=1.0)
    skipped = host_nodes.CLIPSetLastLayer().set_last_layer(clip, -3 if kind == "sdxl" else -2)[0]
    prompts = apply_to_clip(skipped if order == "before" else clip, uses)
    if order == "after":
        (prompts,) = host_nodes.CLIPSetLastLayer().set_last_layer(prompts, skipped.layer_idx)
    encoded = encode(prompts, PROMPTS["weighted"])
    assert same(encoded, by_hand(skipped, PROMPTS["weighted"], uses))
    assert torch.equal(encoded[1][KEYS], encode(skipped, with_superclasses(PROMPTS["weighted"]))[0])
    assert not torch.equal(encoded[0], encode(apply_to_clip(clip, uses), PROMPTS["weighted"])[0])


def add_lora(clip):
    """A CLIP whose first encoder has a changed layer."""
    name = next(key for key in clip.patcher.model_state_dict() if key.endswith("layers.0.mlp.fc1.weight"))
    generator = torch.Generator().manual_seed(0)
    change = 0.05 * torch.randn(clip.patcher.model.get_parameter(name).shape, generator=generator)
    clip = clip.clone()
    assert clip.add_patches({name: ("diff", (change,))}) == [name]
    return clip


@pytest.mark.parametrize(("kind", "order"), [("sd1", "before"), ("sd1", "after"), ("sdxl", "after")])
def test_keys_are_exact_with_a_lora(toy_and_cup, kind, order):
    clip, uses = toy_and_cup(kind, key_lock=1.0)
    prompts = apply_to_clip(add_lora(clip), uses) if order == "before" else add_lora(apply_to_clip(clip, uses))
    plain = encode(clip, with_superclasses(PROMPTS["weighted"]))
    encoded = encode(prompts, PROMPTS["weighted"])
    assert same(encoded, by_hand(add_lora(clip), PROMPTS["weighted"], uses))
    assert torch.equal(encoded[1][KEYS], encode(add_lora(clip), with_superclasses(PROMPTS["weighted"]))[0])
    assert not torch.equal(encoded[1][KEYS], plain[0])
    assert same(plain, encode(clip, with_superclasses(PROMPTS["weighted"])))


@pytest.mark.parametrize(
    ("text_g", "text_l"),
    [
        ("a <my-toy> on the beach", "a red <my-toy>"),
        ("a <my-toy>", "a photo"),
        ("a photo", "<my-toy>"),
        ("long, " * 50 + "<my-cup>", "a <my-toy>"),
    ],
)
def test_keys_are_exact_with_different_texts_for_the_two_encoders(toy_and_cup, text_g, text_l):
    clip, uses = toy_and_cup("sdxl", key_lock=1.0)

    def encode_both(clip, text_g, text_l):
        ((encoding, rest),) = CLIPTextEncodeSDXL.execute(clip, 64, 64, 0, 0, 64, 64, text_g, text_l)[0]
        return encoding, rest

    encoding, rest = encode_both(apply_to_clip(clip, uses), text_g, text_l)
    want, _ = encode_both(clip, with_superclasses(text_g), with_superclasses(text_l))
    assert torch.equal(rest[KEYS], want)
    assert rest["width"] == 64
    assert not torch.equal(rest[KEYS], encoding)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_of_a_superclass_of_several_words_the_last_is_locked(toy_and_cup, kind):
    clip, (use, _) = toy_and_cup(kind, key_lock=1.0)
    bear = dataclasses.replace(use, concept=use.concept.replace(superclass="teddy bear"))
    _, rest = encode(apply_to_clip(clip, [bear]), PROMPTS["in a sentence"])
    assert torch.equal(rest[KEYS], encode(clip, PROMPTS["in a sentence"].replace("<my-toy>", "bear"))[0])


@pytest.mark.parametrize(("toy_lock", "cup_lock"), [(1.0, 0.0), (0.5, 0.0), (0.5, 0.5), (1.0, 0.5), (0.25, 0.75)])
def test_key_locks_between_local_and_global_blend_in_steps(toy_and_cup, toy_lock, cup_lock):
    clip, uses = toy_and_cup()
    locks = {"<my-toy>": toy_lock, "<my-cup>": cup_lock}
    uses = [dataclasses.replace(use, key_lock=locks[use.concept.trigger]) for use in uses]
    prompt = PROMPTS["several concepts"]
    prompts = apply_to_clip(clip, uses)
    encoding, rest = encode(prompts, prompt)

    def locked_from(level):
        return encode(prompts, with_superclasses(prompt, {t: SUPERCLASSES[t] for t in locks if locks[t] >= level}))[0]

    low, high = sorted(locks.values())
    want = (1 - high) * encoding + (high - low) * locked_from(high) + low * locked_from(low)
    assert torch.allclose(rest[KEYS], want, atol=1e-5)
    if cup_lock == 0 and toy_lock == 1:
        assert torch.equal(rest[KEYS], locked_from(1.0))


def test_only_triggers_in_the_prompt_lock_its_keys(toy_and_cup):
    clip, (toy, cup) = toy_and_cup()
    prompts = apply_to_clip(clip, [dataclasses.replace(toy, key_lock=1.0), cup])
    assert KEYS in encode(prompts, "a <my-toy>")[1]
    assert KEYS not in encode(prompts, "a <my-cup>")[1]


def test_loaders_in_a_row_encode_the_same_in_either_order(toy_and_cup):
    clip, (toy, cup) = toy_and_cup(key_lock=1.0)
    together = encode(apply_to_clip(clip, [toy, cup]), PROMPTS["several concepts"])
    for first, second in ((toy, cup), (cup, toy)):
        chained = encode(apply_to_clip(apply_to_clip(clip, [first]), [second]), PROMPTS["several concepts"])
        assert same(chained, together)
        assert torch.equal(chained[1][KEYS], together[1][KEYS])


def test_of_two_concepts_with_one_trigger_the_later_counts(toy_and_cup):
    clip, (toy, cup) = toy_and_cup()
    renamed = dataclasses.replace(cup, key_lock=1.0, concept=cup.concept.replace(trigger="<MY-TOY>"))
    only, replaced = (apply_to_clip(base, [renamed]) for base in (clip, apply_to_clip(clip, [toy])))
    encoded = encode(replaced, "a <my-toy>")
    assert same(encoded, encode(only, "a <my-toy>"))
    assert torch.equal(encoded[1][KEYS], encode(clip, "a cup")[0])
    local = dataclasses.replace(toy, key_lock=0.0)
    assert KEYS not in encode(apply_to_clip(replaced, [local]), "a <my-toy>")[1]


def test_strength_zero_leaves_the_trigger_as_plain_text(toy_and_cup):
    clip, (toy, cup) = toy_and_cup(key_lock=1.0)
    off = dataclasses.replace(toy, strength=0.0)
    for prompts in (apply_to_clip(clip, [off]), apply_to_clip(apply_to_clip(clip, [toy]), [off])):
        encoded = encode(prompts, PROMPTS["in a sentence"])
        assert same(encoded, encode(clip, PROMPTS["in a sentence"]))
        assert KEYS not in encoded[1]
    cup_only = encode(apply_to_clip(clip, [off, cup]), PROMPTS["several concepts"])
    assert same(cup_only, encode(apply_to_clip(clip, [cup]), PROMPTS["several concepts"]))


@pytest.mark.parametrize("schedule", [False, True])
def test_keys_survive_lora_hooks_on_the_clip(toy_and_cup, schedule):
    clip, uses = toy_and_cup(key_lock=1.0)
    name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    change = torch.full_like(clip.patcher.model.get_parameter(name), 0.01, dtype=torch.float32)
    hooks = comfy.hooks.HookGroup()
    hook = comfy.hooks.WeightHook(1.0, 1.0)
    hooks.add(hook)
    if schedule:
        keyframes = comfy.hooks.HookKeyframeGroup()
        keyframes.add(comfy.hooks.HookKeyframe(1.0, 0.0))
        keyframes.add(comfy.hooks.HookKeyframe(0.0, 0.5))
        hooks.set_keyframes_on_hooks(keyframes)
    hook.weights, hook.weights_clip = {}, {name: ("diff", (change,))}
    hook.need_weight_init = False

    def hooked(clip):
        (clip,) = SetClipHooks().apply_hooks(clip, apply_to_conds=True, schedule_clip=schedule, hooks=hooks)
        clip.patcher.add_hook_patches(hook, {name: ("diff", (change,))})
        return clip

    got = host_nodes.CLIPTextEncode().encode(hooked(apply_to_clip(clip, uses)), PROMPTS["weighted"])[0]
    want = host_nodes.CLIPTextEncode().encode(hooked(clip), with_superclasses(PROMPTS["weighted"]))[0]
    assert len(got) == len(want) == (2 if schedule else 1)
    for (encoding, rest), (superclass_encoding, _) in zip(got, want, strict=True):
        assert torch.equal(getattr(encoding, KEY), superclass_encoding)
        assert "hooks" in rest
    assert not torch.equal(want[0][0], encode(clip, with_superclasses(PROMPTS["weighted"]))[0])


def test_a_text_encoder_has_one_fingerprint_however_often_it_is_loaded():
    state_dict = {
        name: tensor for name, tensor in random_state_dict("sd1", 0, SHALLOW_TEXT).items() if "first_stage" not in name
    }

    def loaded():
        _, clip, *_ = comfy.sd.load_state_dict_guess_config(
            dict(state_dict), output_vae=False, output_model=False, te_model_options=SHALLOW_TEXT
        )
        return clip

    clips = [loaded() for _ in range(3)]
    assert len({fingerprint(clip) for clip in clips}) == 1
    (skipped,) = host_nodes.CLIPSetLastLayer().set_last_layer(clips[0], -2)
    assert fingerprint(skipped) != fingerprint(clips[0])
