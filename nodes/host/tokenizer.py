"""Triggers in what a Hugging Face tokenizer reads.

The tokenizer in front is theirs, a copy of a subclass, so that it answers whatever theirs does: a text without triggers
goes through untouched, and in one with triggers these become embeddings or tokens, wherever truncation, padding and
lists of texts put them.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._C import _disabled_torch_function_impl

TRIGGER = "perfusion_trigger"  # attribute of what stands among the tokens: whose embedding it is
_SPACE, _GAP = "Ġ", "▁"  # before a word, in Qwen's and T5's vocabularies
_READING = ("__call__", "encode", "encode_plus", "batch_encode_plus")  # methods that take texts, as far as there are
OnRead = Callable[[str], None] | None  # called with a trigger, in lower case, when an encoder reads its embedding
_NUMBERS_ONLY = ("return_tensors", "return_overflowing_tokens", "is_split_into_words")  # embeddings have no place there


class TriggerEmbedding(Tensor):
    """A trigger's embedding among tokens, which is compared and counted like one."""

    on_read: OnRead
    __torch_function__ = _disabled_torch_function_impl  # what is computed from it is a plain tensor

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Tensor.__hash__

    def view(self, *shape) -> Tensor:
        """This is how the host's encoders begin to read an embedding."""
        if self.on_read is not None:
            self.on_read(getattr(self, TRIGGER))
        return super().view(*shape)

    def __deepcopy__(self, memo: dict) -> TriggerEmbedding:
        return self


class TriggerToken(int):
    """A token that stands for a trigger, as tensors can."""


def knowing(plain, embeddings: Mapping[str, Tensor | Sequence[int]], on_read: OnRead = None):
    """The tokenizer ``plain``, in whose ids {trigger: embedding, or tokens} stand for themselves.

    Of tokens those that are a TriggerToken are marked as the trigger's.
    """
    theirs = type(plain)
    methods = {name: _reading(theirs, name) for name in _READING if hasattr(theirs, name)}
    tokenizer = object.__new__(type(theirs.__name__, (theirs,), methods))
    tokenizer.__dict__.update(
        plain.__dict__, perfusion_plain=plain, perfusion_triggers=_Triggers(plain, embeddings, on_read)
    )
    return tokenizer


def plain_tokenizer(part):
    """The Hugging Face tokenizer of one of the host's tokenizers, without triggers."""
    return getattr(part.tokenizer, "perfusion_plain", part.tokenizer)


def pieces(plain, words: str) -> list[str]:
    """The tokens of words within a text, as the vocabulary writes them: with a space before them, or CLIP's behind."""
    return plain.convert_ids_to_tokens(ids_within(plain, words))


def ids_within(plain, words: str) -> list[int]:
    """The tokens of words within a text: Qwen's have the space before them in the first."""
    return plain(f" {words}", add_special_tokens=False)["input_ids"]


def whole_word(words: str) -> re.Pattern:
    """Finds a trigger, or words, as prompts do: in any case, but letters at their ends not within a longer word.

    What it is searched in is of Unicode's form NFC.
    """
    words = unicodedata.normalize("NFC", words)
    return re.compile(r"(?!\B\w)" + r"\s+".join(map(re.escape, words.split())) + r"(?<!\w\B)", re.IGNORECASE)


class _Triggers:
    """Finds triggers in texts and puts their tokens into ids. Start tokens, words of their own, keep their places."""

    def __init__(self, plain, embeddings: Mapping[str, Tensor | Sequence[int]], on_read: OnRead):
        self._mark = _mark(plain)
        self._mark_id = plain.convert_tokens_to_ids(self._mark)
        self._starts = plain.bos_token == self._mark
        gap = plain.convert_tokens_to_ids(_GAP)
        self._gap = None if gap == plain.unk_token_id else gap
        longest_first = sorted(embeddings, key=len, reverse=True)
        self._tokens = [_marked(trigger, embeddings[trigger], on_read) for trigger in longest_first]
        space = " ?" if pieces(plain, "a")[0].startswith(_SPACE) else ""  # which then is a part of the word
        patterns = [re.escape(self._mark), *(f"{space}({whole_word(trigger).pattern})" for trigger in longest_first)]
        self._pattern = re.compile("|".join(patterns), re.IGNORECASE)

    def placed(self, text: str) -> tuple[str, list[tuple[Any, bool]]]:
        """The text with marks for triggers, and of each mark the token to put there, None for the text's own, and
        whether the text goes on without a space."""
        text, tokens = unicodedata.normalize("NFC", text), []

        def place(match: re.Match) -> str:
            own = self._tokens[match.lastindex - 1] if match.lastindex else [None]
            tokens.extend((token, not text[match.end() : match.end() + 1].isspace()) for token in own)
            return self._mark * len(own)

        return self._pattern.sub(place, text), tokens

    def put(self, ids: list, tokens: Sequence[tuple[Any, bool]], special: bool) -> None:
        """Puts the tokens where their marks are in ids; where ``special`` tokens are, CLIP's first is such a mark."""
        places = [at for at, token in enumerate(ids) if token == self._mark_id][special and self._starts :]
        for at, (token, joined) in reversed([*zip(places, tokens, strict=False)]):  # what is missing was cut off
            if token is not None:
                ids[at] = token
                if joined and ids[at + 1 : at + 2] == [self._gap]:  # T5 begins a word after a mark, as after a space
                    del ids[at + 1]


def _mark(plain) -> str:
    """What no text means by itself and the tokenizer keeps whole: CLIP's start, or what else T5 and Qwen have."""
    others = {plain.eos_token, plain.unk_token, plain.pad_token}
    return plain.bos_token or next(token for token in plain.all_special_tokens if token not in others)


def _marked(trigger: str, given: Tensor | Sequence[int], on_read: OnRead) -> list:
    if isinstance(given, Tensor):
        tokens = [given.detach().clone().as_subclass(TriggerEmbedding)]
        tokens[0].on_read = on_read
    else:
        tokens = [TriggerToken(token) if isinstance(token, TriggerToken) else token for token in given]
    for token in tokens:
        if type(token) is not int:
            setattr(token, TRIGGER, trigger.lower())
    return tokens


def _reading(theirs: type, name: str) -> Callable:
    """The method of this name that reads one text or a list of them, with triggers."""
    read = getattr(theirs, name)

    def method(self, text=None, *args, **kwargs):
        one = isinstance(text, str)
        if not one and not (isinstance(text, (list, tuple)) and all(isinstance(item, str) for item in text)):
            return read(self, text, *args, **kwargs)
        placed = [self.perfusion_triggers.placed(item) for item in ([text] if one else text)]
        if not any(token is not None for _, tokens in placed for token, _ in tokens):
            return read(self, text, *args, **kwargs)
        if asked := [option for option in _NUMBERS_ONLY if kwargs.get(option)]:
            logging.warning("Perfusion: a node reads a prompt with %s, in which triggers stay plain text.", asked[0])
            return read(self, text, *args, **kwargs)
        texts = [item for item, _ in placed]
        result = read(self, texts[0] if one else texts, *args, **kwargs)
        ids = result if isinstance(result, list) else result["input_ids"]
        for row, (_, tokens) in zip([ids] if one else ids, placed, strict=True):
            self.perfusion_triggers.put(row, tokens, kwargs.get("add_special_tokens", True))
        return result

    return method
