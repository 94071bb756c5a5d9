"""Sentences as a training gives them to a model's layers, with what the trigger learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import comfy.model_management
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...perfusion_core import EncodedPrompts
from ...perfusion_core.concept import OFFSET
from . import text
from .adapter import Receiver
from .encoder import unpadded
from .families import Family
from .tokenizer import TRIGGER, placing, rows_ahead

_PLACE = "<perfusion-trigger>"  # stands for the trigger, whatever it is, while sentences are tokenized


class ReadAnew:
    """Encoded at every step, through which the trigger's token embeddings learn.

    Sentences hold {} in the trigger's place, or no trigger; more than the first may come. received: see ``adapter``;
    device: where layers get them. Raises ValueError for a sentence whose trigger is out of reach.
    """

    def __init__(
        self, clip, superclass: str, sentences: Sequence[str], received: Receiver | None, device: torch.device
    ):
        self._clip, self._superclass, self._received, self._device = clip, superclass, received, device
        self._words = text.superclass_tokens(clip, superclass)
        self._tokens: dict[str, _Tokens] = {}
        self._tokenize(sentences)

    def _tokenize(self, sentences: Sequence[str]) -> None:
        if missing := [sentence for sentence in sentences if sentence not in self._tokens]:
            embeddings = {name: table[0] for name, table in text.embedding_tables(self._clip).items()}
            self._tokens |= zip(missing, _tokenized(self._clip, missing, self._superclass, embeddings), strict=True)

    def start(self) -> dict[str, Tensor]:
        """{encoder: (d_encoder,)}, the superclass word's own token embeddings."""
        tables = text.embedding_tables(self._clip)
        return {name: table[self._words[name]].detach().float().clone() for name, table in tables.items()}

    def encode(self, sentences: Sequence[str], learned: Mapping[str, Tensor]) -> EncodedPrompts:
        """With ``learned`` where triggers stand; a tokenizer without an encoder has superclass words there."""
        self._tokenize(sentences)
        rows = [self._tokens[sentence] for sentence in sentences]
        longest = {name: max(row.words[name] for row in rows) for name in rows[0].words}
        tokens = {
            name: [
                [learned[name] if name in learned and hasattr(token, TRIGGER) else token for token in row.tokens[name]]
                for row in rows
            ]
            for name in rows[0].tokens
        }
        tokens = {name: [row[: longest[name]] for row in own] for name, own in tokens.items()}
        encodings, pooled = text.encode_rows(self._clip, tokens, self._received)
        missing = max(row.length for row in rows) - encodings.shape[1]
        encodings = pad(encodings, (0, 0, 0, max(missing, 0)))  # an adapter may have made more
        pooled = None if pooled is None else pooled.to(self._device)
        return EncodedPrompts(encodings.to(self._device), _positions(rows), pooled)


class ReadOnce:
    """Encoded once and for all, with the superclass word in the trigger's place. What learns is an offset, which is
    added to the text encoder's output at that word's last token.

    All sentences have to be known. The CLIP is loaded and its encoders prepared; it is not needed afterwards.
    """

    def __init__(self, clip, superclass: str, sentences: Sequence[str]):
        self._rows: dict[str, tuple[_Tokens, Tensor, Tensor | None]] = {}
        for sentence, row in zip(sentences, _tokenized(clip, sentences, superclass, {}), strict=True):
            comfy.model_management.throw_exception_if_processing_interrupted()
            tokens = {name: [own[: row.words[name]]] for name, own in row.tokens.items()}
            with torch.no_grad():
                encoding, pooled = text.encode_rows(clip, tokens)
            row = row.behind(rows_ahead(tokens, encoding.shape[1]))
            self._rows[sentence] = row, encoding.cpu(), pooled if pooled is None else pooled.cpu()

    def open(self, received: Receiver | None, family: Family, device: torch.device) -> None:
        """For models of a family on a device; received: what their layers make of an encoding (see ``adapter``)."""
        self._received, self._family, self._device = received, family, device

    def start(self) -> dict[str, Tensor]:
        """{OFFSET: zeros}."""
        _, encoding, _ = next(iter(self._rows.values()))
        return {OFFSET: torch.zeros(encoding.shape[-1], device=self._device)}

    def encode(self, sentences: Sequence[str], learned: Mapping[str, Tensor]) -> EncodedPrompts:
        rows = [self._rows[sentence] for sentence in sentences]
        shifted = [self._shifted(tokens, encoding, learned[OFFSET]) for tokens, encoding, _ in rows]
        longest = max(encoding.shape[1] for encoding, _ in shifted)
        encodings, words = (
            torch.cat([pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])
            for parts in zip(*shifted, strict=True)
        )
        positions = _positions([tokens for tokens, _, _ in rows])
        tells_words = self._family.in_forward or not self._family.knows_padding
        pooled = None if rows[0][2] is None else torch.cat([pooled.clone() for _, _, pooled in rows]).to(self._device)
        return EncodedPrompts(encodings, positions, pooled, words[..., 0] if tells_words else None)

    def _shifted(self, tokens: _Tokens, encoding: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """What layers receive of one sentence, (1, tokens, d), and where its words are, (1, tokens, 1)."""
        encoding = encoding.to(self._device, copy=True)  # a copy is no inference tensor
        if tokens.place is not None:
            there = torch.arange(encoding.shape[1], device=self._device) == tokens.place
            encoding = encoding + there[:, None] * offset
        if self._family.zero_padded and self._family.knows_padding:
            encoding = pad(encoding, (0, 0, 0, tokens.length - encoding.shape[1]))
        words = encoding.any(-1, keepdim=True)
        if self._received is not None:
            adapted = text.is_adapted(tokens.tokens)
            ids = {"t5xxl_ids": torch.tensor([tokens.tokens["t5xxl"]], dtype=torch.int)} if adapted else {}
            encoding = self._received(encoding, ids)
        return encoding, words


@dataclass(frozen=True)
class _Tokens:
    tokens: Mapping[str, list]  # per tokenizer
    words: Mapping[str, int]  # how many of these have to be encoded: with the end, without padding that becomes zeros
    position: int | None  # of the trigger, in what layers receive
    place: int | None  # of the trigger, in the text encoder's output

    def behind(self, ahead: int) -> _Tokens:
        """The same in an encoding that has so many rows ahead of those of its tokens."""
        if self.position is None:
            return self
        return replace(self, position=self.position + ahead, place=self.place + ahead)

    @property
    def length(self) -> int:
        """Of what the text encoder's tokenizer made, with padding."""
        return len(next(iter(self.tokens.values())))


def _positions(rows: Sequence[_Tokens]) -> Tensor:
    return torch.tensor([row.position or 0 for row in rows])


def _tokenized(clip, sentences: Sequence[str], superclass: str, embeddings: Mapping[str, Tensor]) -> list[_Tokens]:
    """With embeddings, or by tokenizers without one superclass words, in the trigger's place. Raises ValueError where
    that is out of reach."""
    tokenizer = text.with_triggers(clip.tokenizer, {_PLACE: text.reading(clip, superclass, embeddings)})
    first, found = text.offset_encoder(clip), []
    for sentence in sentences:
        weighted = tokenizer.tokenize_with_weights(sentence.replace("{}", _PLACE))
        sections = {name: sections[0] for name, sections in weighted.items()}
        positions, places = (text.trigger_positions(sections[name]) for name in (placing(sections), first))
        if len(positions) != sentence.count("{}"):
            raise ValueError(
                f"The text encoder takes 75 tokens and does not see the trigger in {sentence!r}. Shorten it."
            )
        tokens = {name: [token[0] for token in section] for name, section in sections.items()}
        words = {name: len(unpadded(clip.tokenizer, name, own)) for name, own in tokens.items()}
        found.append(_Tokens(tokens, words, *(next(iter(at), None) for at in (positions, places))))
    return found
