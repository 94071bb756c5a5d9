"""The tokenizer that knows triggers answers every call that Hugging Face's does, and without triggers as that does.

The calls are those of node packs that read prompts with the tokenizer themselves: lists of texts, no special tokens,
lengths, truncation and padding, ids as an attribute.
"""

import copy
import logging

import pytest
import torch
from comfyui_perfusion.nodes.host.tokenizer import TRIGGER, knowing, plain_tokenizer

TRIGGER_WORD = "<my-toy>"
CALLS = {
    "plain": {},
    "no special tokens": {"add_special_tokens": False},
    "no special tokens, untruncated": {"add_special_tokens": False, "truncation": False},
    "truncated": {"truncation": True, "max_length": 6},
    "truncated, no special tokens": {"truncation": True, "max_length": 4, "add_special_tokens": False},
    "padded": {"padding": "max_length", "max_length": 20},
    "padded to the longest": {"padding": True},
    "padded on the left": {"padding": "max_length", "max_length": 20, "padding_side": "left"},
    "no mask": {"return_attention_mask": False},
    "special tokens told": {"return_special_tokens_mask": True, "return_length": True},
}
TEXTS = {
    "one": "a photo of a <my-toy>, red",
    "at the start": "<my-toy> and a<my-toy>b",
    "a list": ["a photo", "a <MY-TOY> on the beach at night", "", "<my-toy>"],
    "a tuple": ("<my-toy>", "x"),
    "with a start token": "a <|startoftext|> <my-toy> <|startoftext|>",
    "a second one cut off": "<my-toy> a b c d e f g <my-toy>",
}


@pytest.fixture(scope="module")
def tokenizers(models):
    """(Hugging Face's, ours, with the trigger's embedding and its stand-in word, a token of its own)."""
    plain = plain_tokenizer(models("sd1")[1].tokenizer.clip_l)
    with torch.inference_mode():
        embedding = torch.arange(768.0)
    return plain, knowing(plain, {TRIGGER_WORD: embedding}), embedding


def with_stand_in(text):
    """The text with a word of one token in the trigger's place."""
    if isinstance(text, str):
        return text.replace("<my-toy>", " teddy ").replace("<MY-TOY>", " teddy ")
    return [with_stand_in(one) for one in text]


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_call_answers_as_theirs_does_with_the_embedding_in_a_words_place(tokenizers, text, options):
    plain, ours, embedding = tokenizers
    if options.get("padding") is True and isinstance(text, str):
        pytest.skip("there is nothing to pad to")
    got, want = ours(text, **options), plain(with_stand_in(text), **options)
    assert got.keys() == want.keys()
    assert type(got) is type(want)
    assert got.input_ids is got["input_ids"]
    for key in want.keys() - {"input_ids"}:
        assert got[key] == want[key]
    (teddy,) = plain("teddy", add_special_tokens=False)["input_ids"]
    rows = (got.input_ids, want.input_ids) if not isinstance(text, str) else ([got.input_ids], [want.input_ids])
    fired = 0
    for row, other in zip(*rows, strict=True):
        for token, id in zip(row, other, strict=True):
            if id == teddy:
                assert torch.equal(token, embedding)
                assert getattr(token, TRIGGER) == TRIGGER_WORD
                fired += 1
            else:
                assert token == id
    assert fired or options.get("truncation")  # which may have cut it off


@pytest.mark.parametrize("options", [{}, {"add_special_tokens": False}, {"truncation": True, "max_length": 5}])
def test_encode_gives_the_same_ids_as_a_list(tokenizers, options):
    plain, ours, _ = tokenizers
    got = ours.encode("a <my-toy> here", **options)
    assert len(got) == len(plain.encode("a teddy here", **options))
    assert [hasattr(token, TRIGGER) for token in got].count(True) == 1
    assert ours.encode("a teddy", **options) == plain.encode("a teddy", **options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a photo", {}),
        ("a photo", {"return_tensors": "pt", "padding": "max_length", "max_length": 77, "truncation": True}),
        (["a", "photo of a teddy"], {"return_tensors": "pt", "padding": True}),
        ("a photo", {"text_pair": "of a teddy"}),
        (["a", "photo"], {"is_split_into_words": True}),
        ("very long, " * 50, {"return_overflowing_tokens": True, "max_length": 20, "truncation": True}),
        ("a <|startoftext|> b <|endoftext|>", {}),
        ("", {"return_offsets_mapping": True}),
    ],
)
def test_a_text_without_triggers_is_answered_by_theirs(tokenizers, text, options):
    plain, ours, _ = tokenizers
    got, want = ours(text, **options), plain(text, **options)
    assert got.keys() == want.keys()
    for key in want:
        assert (torch.equal if torch.is_tensor(want[key]) else lambda one, other: one == other)(got[key], want[key])


@pytest.mark.parametrize(
    "options", [{"return_tensors": "pt"}, {"return_overflowing_tokens": True, "truncation": True, "max_length": 5}]
)
def test_where_an_embedding_has_no_place_the_trigger_is_plain_text_and_that_is_said(tokenizers, caplog, options):
    plain, ours, _ = tokenizers
    got, want = ours("a <my-toy>", **options), plain("a <my-toy>", **options)
    assert str(got["input_ids"]) == str(want["input_ids"])
    assert "stay plain text" in caplog.text


def test_it_is_a_tokenizer_of_their_kind(tokenizers):
    plain, ours, _ = tokenizers
    assert isinstance(ours, type(plain))
    assert len(ours) == len(plain)
    assert ours.get_vocab() == plain.get_vocab()
    assert ours.tokenize("a photo") == plain.tokenize("a photo")
    assert ours.decode([320, 1125]) == plain.decode([320, 1125])
    assert ours.pad({"input_ids": [[320], [320, 1125]]}) == plain.pad({"input_ids": [[320], [320, 1125]]})
    assert ours.eos_token_id == plain.eos_token_id
    ours._eventual_warn_about_too_long_sequence = lambda *_, **__: logging.warning("never")  # as a node pack does
    del ours._eventual_warn_about_too_long_sequence
    assert hasattr(copy.deepcopy(ours)("<my-toy>").input_ids[1], TRIGGER)


def test_among_tokens_an_embedding_is_compared_and_counted_like_one(tokenizers):
    _, ours, _ = tokenizers
    ids = ours("a <my-toy> <my-toy>").input_ids
    assert ids.index(49407) == 4  # with plain tensors this is an error
    assert not any(token == 267 for token in ids)
    assert ids[2] == ids[3]
    assert len({*ids}) == 4
    assert copy.deepcopy(ids)[2] is ids[2]
    assert type(ids[2].view(1, -1, 768).float() * 1.0) is torch.Tensor
