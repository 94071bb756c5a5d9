"""Triggers in what a Hugging Face tokenizer reads.

The tokenizer in front is theirs, a copy of a subclass, so that it answers whatever theirs does: a text without triggers
goes through untouched, and in one with triggers these become embeddings or tokens, wherever truncation, padding and
lists of texts put them.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from comfy.text_encoders.spiece_tokenizer import SPieceTokenizer
from torch import Tensor
from torch._C import _disabled_torch_function_impl

TRIGGER = "perfusion_trigger"  # attribute of what stands among the tokens: whose embedding it is
_BY_HOST = (  # tokenizers of the text encoders that encode a prompt in a way of their own
    {"qwen25_7b"},  # Qwen-Image's
    {"qwen3_4b"},  # Z-Image's, Flux 2 Klein's
    {"qwen3_8b"},  # Flux 2 Klein's
    {"gemma2_2b"},  # Lumina 2's
    {"l", "t5xxl"},  # Flux's
    {"l", "g", "t5xxl"},  # SD3's
)
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


def is_by_host(names: Iterable[str]) -> bool:
    """Whether text encoders with these tokenizers encode in a way of their own: with instructions around a prompt,
    several layers side by side, or one encoder's rows behind another's. The host's whole text model knows how."""
    return set(names) in _BY_HOST


def placing(names: Iterable[str]) -> str:
    """The tokenizer whose tokens stand where those of the encoding do that layers receive."""
    return "t5xxl" if "t5xxl" in names else next(iter(names))


def rows_ahead(tokens: Mapping[str, Sequence[Sequence]], rows: int) -> int:
    """How many of an encoding's rows are ahead of those of its tokens, {tokenizer: sections}. Below 0 where it lacks
    the first of them, as of Qwen-Image's instructions."""
    return rows - sum(map(len, tokens[placing(tokens)])) if is_by_host(tokens) else 0


def knowing(plain, embeddings: Mapping[str, Tensor | Sequence[int]], on_read: OnRead = None):
    """The tokenizer ``plain``, in whose ids {trigger: embedding, or tokens} stand for themselves.

    Of tokens those that are a TriggerToken are marked as the trigger's.
    """
    if isinstance(plain, _Pieces):
        return plain.knowing(_Marked(embeddings, on_read))
    theirs = type(plain)
    methods = {name: _reading(theirs, name) for name in _READING if hasattr(theirs, name)}
    tokenizer = object.__new__(type(theirs.__name__, (theirs,), methods))
    tokenizer.__dict__.update(
        plain.__dict__, perfusion_plain=plain, perfusion_triggers=_Triggers(plain, embeddings, on_read)
    )
    return tokenizer


def plain_tokenizer(part):
    """The Hugging Face tokenizer of one of the host's tokenizers, without triggers, or what answers like one."""
    plain = getattr(part.tokenizer, "perfusion_plain", part.tokenizer)
    return _with_theirs(plain, _Pieces) if type(plain) is SPieceTokenizer else plain


def pieces(plain, words: str) -> list[str]:
    """The tokens of words within a text, as the vocabulary writes them: with a space before them, or CLIP's behind."""
    return plain.convert_ids_to_tokens(ids_within(plain, words))


def ids_within(plain, words: str) -> list[int]:
    """The tokens of words within a text: Qwen's have the space before them in the first."""
    space = "" if isinstance(plain, _Pieces) else " "  # which SentencePiece sees before every text
    return plain(f"{space}{words}", add_special_tokens=False)["input_ids"]


def whole_word(words: str) -> str:
    """What finds a trigger, or words, as prompts do: in any case, but letters at their ends not within a longer word.

    A regular expression, for texts of Unicode's form NFC.
    """
    words = unicodedata.normalize("NFC", words)
    return r"(?i:(?!\B\w)" + r"\s+".join(map(re.escape, words.split())) + r"(?<!\w\B))"


class _Marked:
    """Triggers, longest first, a pattern for each, and the tokens to read in its place."""

    def __init__(self, embeddings: Mapping[str, Tensor | Sequence[int]], on_read: OnRead):
        triggers = sorted(embeddings, key=len, reverse=True)
        self.patterns = [whole_word(trigger) for trigger in triggers]
        self.tokens = [_marked(trigger, embeddings[trigger], on_read) for trigger in triggers]


class _Pieces:
    """By Hugging Face's names, what is asked here of the host's SentencePiece tokenizers, such as umT5's."""

    tokenizer: Any

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list]:
        ids = self.tokenizer.encode(text, add_bos=False, add_eos=False)
        return {"input_ids": self._whole(ids) if add_special_tokens else ids}

    def _whole(self, ids: list) -> list:
        """With the marks of a text's ends that there are."""
        start, end = [self.tokenizer.bos_id()] * self.add_bos, [self.eos_token_id] * self.add_eos
        return [*start, *ids, *end]

    @property
    def eos_token_id(self) -> int:
        return self.tokenizer.eos_id()

    @property
    def all_special_ids(self) -> list[int]:
        return [self.tokenizer.pad_id(), self.tokenizer.bos_id(), self.eos_token_id, self.tokenizer.unk_id()]

    def convert_ids_to_tokens(self, ids):
        return self.tokenizer.id_to_piece(ids)

    def knowing(self, marked: _Marked) -> _PiecesWithTriggers:
        tokenizer = _with_theirs(self, _PiecesWithTriggers)
        tokenizer.perfusion_plain, tokenizer.perfusion_triggers = self, marked
        return tokenizer


class _PiecesWithTriggers(_Pieces):
    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list]:
        """What is between triggers is read by itself: no piece goes beyond a space, and triggers begin a word."""
        plain, text, ids, start = text, unicodedata.normalize("NFC", text), [], 0
        pattern = "|".join(f"({pattern})" for pattern in self.perfusion_triggers.patterns)
        matches = list(re.finditer(pattern, text, re.IGNORECASE))
        if not matches and add_special_tokens:
            return SPieceTokenizer.__call__(self, plain)
        for match in matches:
            ids += self._between(text[start : match.start()], start)
            ids += self.perfusion_triggers.tokens[match.lastindex - 1]
            start = match.end()
        ids += self._between(text[start:], start)
        return {"input_ids": self._whole(ids) if add_special_tokens else ids}

    def _between(self, text: str, start: int) -> list[int]:
        """The tokens of what begins at ``start``; behind a trigger without a space it begins no word."""
        ids = super().__call__(text.strip(), add_special_tokens=False)["input_ids"]
        if not ids or not start or text[0].isspace():
            return ids
        piece = self.tokenizer.id_to_piece(ids[0]).removeprefix(_GAP)
        if not piece:
            return ids[1:]
        within = self.tokenizer.piece_to_id(piece)
        return ids if within == self.tokenizer.unk_id() else [within, *ids[1:]]


def _with_theirs(plain, ours: type):
    """A copy of one of the host's tokenizers that answers as a class of ours has it."""
    tokenizer = object.__new__(type(type(plain).__name__, (ours, type(plain)), {}))
    tokenizer.__dict__.update(plain.__dict__)
    return tokenizer


class _Triggers:
    """Finds triggers in texts and puts their tokens into ids. Start tokens, words of their own, keep their places."""

    def __init__(self, plain, embeddings: Mapping[str, Tensor | Sequence[int]], on_read: OnRead):
        self._mark = _mark(plain)
        self._mark_id = plain.convert_tokens_to_ids(self._mark)
        self._starts = plain.bos_token == self._mark
        gap = plain.convert_tokens_to_ids(_GAP)
        self._gap = None if gap == plain.unk_token_id else gap
        marked = _Marked(embeddings, on_read)
        self._tokens = marked.tokens
        space = " ?" if pieces(plain, "a")[0].startswith(_SPACE) else ""  # which then is a part of the word
        patterns = [re.escape(self._mark), *(f"{space}({pattern})" for pattern in marked.patterns)]
        self._pattern = "(?i)" + "|".join(patterns)

    def placed(self, text: str) -> tuple[str, list[tuple[Any, bool]]]:
        """The text with marks for triggers, and of each mark the token to put there, None for the text's own, and
        whether the text goes on without a space."""
        text, tokens = unicodedata.normalize("NFC", text), []

        def place(match: re.Match) -> str:
            own = self._tokens[match.lastindex - 1] if match.lastindex else [None]
            tokens.extend((token, not text[match.end() : match.end() + 1].isspace()) for token in own)
            return self._mark * len(own)

        return re.sub(self._pattern, place, text), tokens

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
