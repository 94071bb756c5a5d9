"""Triggers in prompts, and the encoding that keys see under global key lock.

What survives the host's CLIP.clone() is its tokenizer and the patcher's object patches, so these two carry concepts.
The tokenizer puts the trigger's embedding, a tensor, where the trigger stands; weights, long prompts, ``embedding:``
and every text node then work as they do for textual inversion.
"""

from __future__ import annotations

import copy
import heapq
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...perfusion_core import Concept
from ...perfusion_core.concept import OFFSET, plain_words
from .adapter import Receiver, loaded_receiver
from .encoder import CLIPS, attribute, clip_skip, differences, encoders_of, end_of_words, in_words
from .key_lock import ENCODING, KEYS
from .locked import with_keys
from .offsets import adding_offsets
from .progress import listener
from .superclass import LockedWord, locked_word
from .tokenizer import (
    TRIGGER,
    TriggerToken,
    ids_within,
    is_by_host,
    knowing,
    placing,
    plain_tokenizer,
    rows_ahead,
)
from .uses import KEY, ConceptUse, combine, concept_set

START = "start"  # the label of the token that CLIP's texts begin with
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": "end", "</s>": "end"}
_BEFORE = ("Ġ", "▁")  # a word, in Qwen's and T5's vocabularies; CLIP's have "</w>" behind it
_BEYOND_CLIP = (
    {"qwen3_06b", "t5xxl"},  # Anima's
    {"t5xxl"},  # Cosmos-Predict2's, LTX-Video's and PixArt's
    {"umt5xxl"},  # Wan's
)
_MOST_SIMILAR = 3  # words that are told for each concept


def apply_to_clip(clip, uses: Sequence[ConceptUse]):
    """A clone of the CLIP that knows these concepts' triggers. Raises ValueError for concepts of other encoders."""
    if clip is None:
        raise ValueError("There is no text encoder: this checkpoint has none. Load one with Load CLIP.")
    for use in uses:
        _check_fits(use.concept, clip)
    clip = clip.clone()
    uses = combine(clip.patcher.get_attachment(KEY) or (), uses)
    clip.patcher.set_attachments(KEY, uses)
    words = {use.concept.trigger.lower(): superclass_tokens(clip, use.concept.superclass) for use in uses}
    locks = {use.concept.trigger.lower(): use.key_lock for use in uses}
    current = clip.patcher.get_model_object("encode_token_weights")
    plain = getattr(current, "perfusion_plain", current)
    encode = adding_offsets(plain, offset_encoder(clip), [use.concept for use in uses])
    model, said = getattr(plain, "__self__", None), set()
    watch = _UnlockedReading(locks)
    readings = {
        use.concept.trigger: reading(clip, use.concept.superclass, use.concept.token_embeddings) for use in uses
    }
    clip.tokenizer = tokenizer = with_triggers(clip.tokenizer, readings, on_read=watch.warn)

    def encode_token_weights(tokens):
        """As the host's, with what keys see as a third item, which the host copies into the conditioning."""
        with watch.off():
            cond, pooled, *more = encode(tokens)
            keys = _key_encoding(encode, tokens, cond, locks, words)
        tell = listener()
        if tell and is_of_layers(tokens, cond, uses) and (similar := similar_words(tokenizer, tokens, cond, uses)):
            tell("perfusion.words", similar)
        if model is not None:
            _tell_differences(model, tokens, uses, said)
        if keys is None:
            return (cond, pooled, *more)
        cond = with_keys(cond, keys)  # hooks with a schedule and some node packs drop the third item
        return cond, pooled, {**(more[0] if more else {}), ENCODING: cond, KEYS: keys}

    encode_token_weights.perfusion_plain = plain
    clip.patcher.add_object_patch("encode_token_weights", encode_token_weights)
    return clip


def _tell_differences(model, tokens, uses: Sequence[ConceptUse], said: set[str]) -> None:
    """Tells the page, and the log once, where concepts of this text were trained with another text encoder."""
    present = set(_triggers_in(tokens))
    found = [(use, differences(use, model)) for use in uses if use.concept.trigger.lower() in present]
    if (tell := listener()) and (of_files := {use.file: what for use, what in found if use.file}):
        tell("perfusion.encoder", of_files)
    for words in {in_words(use.concept.trigger, what) for use, what in found if what} - said:
        logging.warning("Perfusion: %s", words)
        said.add(words)


class _UnlockedReading:
    """Warns, once, when an encoder reads a locked trigger beside ``encode_token_weights``, where locks are made."""

    def __init__(self, locks: Mapping[str, float]):
        self._locks, self._expected = locks, threading.local()

    @contextmanager
    def off(self) -> Iterator[None]:
        self._expected.reading = True
        try:
            yield
        finally:
            self._expected.reading = False

    def warn(self, trigger: str) -> None:
        if self._locks.get(trigger) and not getattr(self._expected, "reading", False):
            logging.warning("Perfusion: a node encodes %s in a way of its own; its key lock is local.", trigger)
            self._locks = {}


def tokenizers(clip) -> dict[str, Any]:
    """{name: Hugging Face's tokenizer, without triggers} of a CLIP. Raises ValueError for one of unknown encoders."""
    names = clip.tokenizer.tokenize_with_weights("").keys()
    if not names <= set(CLIPS) and names not in _BEYOND_CLIP and not is_by_host(names):
        raise ValueError(
            "Perfusion knows the text encoders of SD1.x, SD2.x, SDXL, Anima, Cosmos-Predict2, Wan, LTX-Video, PixArt, "
            "Qwen-Image, Z-Image, Lumina 2, Flux, Flux 2 Klein and SD3; this one has "
            f"{', '.join(sorted(names))}."
        )
    return {name: plain_tokenizer(getattr(clip.tokenizer, attribute(clip.tokenizer, name))) for name in names}


def encoders(clip) -> dict[str, torch.nn.Module]:
    """{name: encoder} of a CLIP, whose tokenizers may be more. Raises ValueError for unknown ones."""
    tokenizers(clip)
    return encoders_of(clip.cond_stage_model)


def offset_encoder(clip) -> str:
    """The encoder whose output has offsets added. Raises ValueError for a CLIP that lacks it."""
    found, tokens = encoders(clip), clip.tokenizer.tokenize_with_weights("")
    name = placing(tokens) if is_by_host(tokens) else next(iter(found))
    if name not in found:
        raise ValueError(
            "This CLIP was loaded without T5, by whose encoding concepts are told. Load t5xxl with the others."
        )
    return name


def offset_width(clip) -> int:
    """Of what the text encoder gives for one token."""
    if not is_by_host(clip.tokenizer.tokenize_with_weights("")):
        return sum(table.shape[1] for table in embedding_tables(clip).values())
    encoder = encoders(clip)[offset_encoder(clip)]
    layers = len(encoder.layer) if isinstance(encoder.layer, list) else 1  # side by side
    return layers * encoder.transformer.get_input_embeddings().weight.shape[1]


def is_adapted(tokens) -> bool:
    """Whether tokens are Anima's: its adapter, a part of the diffusion model, turns Qwen's encoding into T5's."""
    return tokens.keys() >= {"qwen3_06b", "t5xxl"}


def is_of_layers(tokens, encoding: Tensor, uses: Sequence[ConceptUse]) -> bool:
    """Whether layers receive the text encoder's own encoding, as far as concepts tell: not where the diffusion model
    makes another of it."""
    return not is_adapted(tokens) and all(use.concept.dim == encoding.shape[-1] for use in uses)


def skipped(clip) -> int:
    """The clip skip of a CLIP, as people count it."""
    return clip_skip(next(iter(encoders(clip).values())), clip.layer_idx)


def embedding_tables(clip) -> dict[str, Tensor]:
    """{encoder: (vocabulary, d_encoder)}, the input embeddings of all tokens."""
    return {name: encoder.transformer.get_input_embeddings().weight for name, encoder in encoders(clip).items()}


def concept_uses(clip) -> tuple[ConceptUse, ...]:
    """The concepts that a CLIP knows. Raises ValueError when it knows none."""
    if uses := clip.patcher.get_attachment(KEY):
        return uses
    raise ValueError("This CLIP knows no concept. Connect the CLIP output of Perfusion Loader or Perfusion Apply.")


def superclass_tokens(clip, superclass: str) -> dict[str, int]:
    """{tokenizer: the token that is locked}: the last of the superclass's, as in "teddy bear" the bear."""
    return {name: locked_word(plain, superclass).token for name, plain in tokenizers(clip).items()}


def locked(clip, superclass: str) -> LockedWord:
    """What keys are locked to, in the CLIP's first encoder, or in that whose words are told from others. Raises
    ValueError for a superclass without a word."""
    found = tokenizers(clip)
    return locked_word(found[placing(found) if is_by_host(found) else next(iter(found))], superclass)


def word_count(clip, text: str) -> int:
    """How many tokens ``text`` has in the CLIP's first encoder."""
    return len(ids_within(next(iter(tokenizers(clip).values())), text.strip()))


def reading(clip, superclass: str, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor | list[int]]:
    """{tokenizer: what it reads for a trigger}: the embedding of its encoder, or where there is no encoder behind it,
    as behind Anima's T5, the superclass's last word."""
    return {
        name: embeddings[name] if name in embeddings else _last_word(plain, superclass)
        for name, plain in tokenizers(clip).items()
    }


def _last_word(plain, superclass: str) -> list[int]:
    """Its tokens, of which the last is the trigger's."""
    *first, last = ids_within(plain, plain_words(superclass).split()[-1])
    return [*first, TriggerToken(last)]


def prepare_encoders(clip) -> None:
    """Sets the CLIP's encoders up as the host does before it encodes a prompt."""
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})


def encode_rows(clip, rows: Mapping[str, list[list]], received: Receiver | None = None) -> tuple[Tensor, Tensor | None]:
    """Encodes {tokenizer: rows of tokens} to (rows, tokens, d), in zeros where rows are shorter, and pooled
    (rows, d_pooled). received: what the layers make of it first (see ``adapter``).

    Differentiable in tokens that are tensors. The CLIP is loaded and its encoders prepared.
    """
    alike: dict[tuple, list[int]] = {}  # rows of one length: nothing may be added to others, which would be encoded
    for place, row in enumerate(zip(*rows.values(), strict=True)):
        alike.setdefault(tuple(map(len, row)), []).append(place)
    parts = [
        _encode_alike(clip, {name: [own[place] for place in places] for name, own in rows.items()}, received)
        for places in alike.values()
    ]
    longest = max(encodings.shape[1] for encodings, _ in parts)
    encodings = torch.cat([pad(encodings, (0, 0, 0, longest - encodings.shape[1])) for encodings, _ in parts])
    pooled = None if parts[0][1] is None else torch.cat([pooled for _, pooled in parts])
    order = torch.tensor([place for places in alike.values() for place in places]).argsort()
    return encodings[order], pooled if pooled is None else pooled[order]


def _encode_alike(clip, rows: Mapping[str, list[list]], received: Receiver | None) -> tuple[Tensor, Tensor | None]:
    if is_by_host(rows):
        return _encode_by_host(clip, rows)
    outputs = [encoder(rows[name])[:2] for name, encoder in encoders(clip).items()]
    encodings = torch.cat([encoding for encoding, _ in outputs], dim=-1)
    if received is not None:
        ids = {"t5xxl_ids": torch.tensor(rows["t5xxl"], dtype=torch.int)} if is_adapted(rows) else {}
        encodings = received(encodings, ids)
    return encodings, outputs[-1][1]


def _encode_by_host(clip, rows: Mapping[str, list[list]]) -> tuple[Tensor, Tensor | None]:
    """One after the other: the host takes several for sections of one text."""
    outputs = []
    for row in zip(*rows.values(), strict=True):
        weighted = {name: [[(token, 1.0) for token in own]] for name, own in zip(rows, row, strict=True)}
        outputs.append(clip.cond_stage_model.encode_token_weights(weighted)[:2])
    encodings, pooled = zip(*outputs, strict=True)
    return torch.cat(encodings), None if pooled[0] is None else torch.cat(pooled)


def encoding_of_layers(clip, tokens, model=None) -> Tensor:
    """What layers receive of tokens, (1, tokens, d). Raises ValueError where that takes a MODEL and there is none."""
    conditioning = clip.encode_from_tokens(tokens, return_dict=True)
    encoding = conditioning["cond"]
    if model is None and is_of_layers(tokens, encoding, clip.patcher.get_attachment(KEY) or ()):
        return encoding
    received = loaded_receiver(model)
    return encoding if received is None else received(encoding, conditioning)


def in_superclass_words(clip):
    """A clone of the CLIP without its concepts, which reads every trigger as all of its concept's superclass words."""
    uses = concept_uses(clip)
    clip = apply_to_clip(clip, [use.replace(strength=0.0) for use in uses])
    words = {
        use.concept.trigger: {
            name: list(map(TriggerToken, ids_within(plain, plain_words(use.concept.superclass))))
            for name, plain in tokenizers(clip).items()
        }
        for use in uses
    }
    clip.tokenizer = with_triggers(clip.tokenizer, words)
    return clip


def with_triggers(tokenizer, embeddings: Mapping[str, Mapping[str, Tensor | Sequence[int]]], **options):
    """A copy of the host's tokenizer in which {trigger: {tokenizer: (d_encoder,)}} stand for themselves.

    In place of an embedding there may be tokens, which are then read where the trigger stands. options: of ``knowing``.
    """
    tokenizer = copy.copy(tokenizer)
    for name in tokenizer.tokenize_with_weights(""):
        place = attribute(tokenizer, name)
        part = copy.copy(getattr(tokenizer, place))
        plain = plain_tokenizer(part)
        own = {trigger: by_encoder[name] for trigger, by_encoder in embeddings.items()}
        part.tokenizer = knowing(plain, own, **options) if own else plain
        setattr(tokenizer, place, part)
    return tokenizer


def trigger_positions(tokens: Sequence[tuple]) -> list[int]:
    """Where in one section of weighted tokens a trigger stands."""
    return [i for i, token in enumerate(tokens) if hasattr(token[0], TRIGGER)]


def trigger_places(tokens, rows: int = 0) -> dict[str, list[int]]:
    """{trigger, in lower case: positions in the encoding} of the tokens that a CLIP made of a text.

    rows: of the encoding, which may have others than those of its tokens (see ``rows_ahead``).
    """
    places: dict[str, list[int]] = {}
    sections, ahead = tokens[placing(tokens)], rows_ahead(tokens, rows) if rows else 0
    for position, (token, *_) in enumerate((token for section in sections for token in section), ahead):
        if hasattr(token, TRIGGER):
            places.setdefault(getattr(token, TRIGGER), []).append(position)
    return places


def token_labels(clip, tokens, rows: int = 0) -> list[tuple[int, str]]:
    """(position in the encoding, its word or part of a word) of the tokens that the CLIP made of a text, no padding.

    A trigger's is the trigger, an embedding's "embedding". rows: see ``trigger_places``.
    """
    name = placing(tokens)
    plain, labels = tokenizers(clip)[name], []
    position = rows_ahead(tokens, rows) if rows else 0
    for section in tokens[name]:
        ended, within = False, len(section)
        if is_by_host(tokens):  # among these, ends stand within
            within = end_of_words(clip.tokenizer, name, [token for token, *_ in section])
        for place, (token, *_) in enumerate(section):
            if not ended and place < within and position >= 0:
                label = getattr(token, TRIGGER, "embedding")
                if isinstance(token, int) and not hasattr(token, TRIGGER):
                    label = plain.convert_ids_to_tokens(token)
                    label = label.removesuffix("</w>").lstrip("".join(_BEFORE)) or label
                    ended = token == plain.eos_token_id and not is_by_host(tokens)
                labels.append((position, _SPECIAL.get(label, label)))
            position += 1
    return labels


def similar_words(tokenizer, tokens, encoding: Tensor, uses: Sequence[ConceptUse]) -> dict[str, list]:
    """{file: [(word, similarity), ...]}, the words of a text that most resemble the concepts whose triggers are in it.

    encoding: (1, tokens, d) of ``tokens``. Triggers and punctuation are left out; of a word its likest part counts.
    """
    name = placing(tokens)
    stream = [token for section in tokens[name] for token, *_ in section]
    ahead = rows_ahead(tokens, encoding.shape[1])
    stream, encoding = stream[max(-ahead, 0) :], encoding[:, max(ahead, 0) :]
    encoding = encoding[:, :: max(encoding.shape[1] // len(stream), 1)]  # NegPip has two for each
    stream = stream[: encoding.shape[1]]
    present = {getattr(token, TRIGGER, None) for token in stream}
    told = [index for index, use in enumerate(uses) if use.file and use.concept.trigger.lower() in present]
    if not told:
        return {}
    part = getattr(tokenizer, attribute(tokenizer, name))
    words, encoding = _words(plain_tokenizer(part), stream), encoding[0].cpu()
    shares, similar = concept_set(uses).coordinates(encoding.double()), {}
    for index in told:
        similarity = shares[:, index].tolist()
        likest = {word: max(similarity[i] for i in positions) for word, positions in words.items()}
        similar[uses[index].file] = heapq.nlargest(_MOST_SIMILAR, likest.items(), key=lambda item: item[1])
    return similar


def _words(plain, stream: Sequence[int | Tensor]) -> dict[str, list[int]]:
    """{word: positions of all its parts} of tokens."""
    special, parts = set(plain.all_special_ids), [[]]
    for position, token in enumerate(stream):
        if hasattr(token, TRIGGER) or not isinstance(token, int) or token in special:
            parts.append([])
            continue
        piece = plain.convert_ids_to_tokens(token)
        if piece.startswith(_BEFORE):
            parts.append([])
        parts[-1].append(position)
        if piece.endswith("</w>"):
            parts.append([])
    words: dict[str, list[int]] = {}
    for positions in parts:
        word = plain.decode([stream[position] for position in positions]).strip(" ,.;:!?")
        if any(map(str.isalnum, word)):
            words.setdefault(word, []).extend(positions)
    return words


def _key_encoding(plain, tokens, cond: Tensor, locks: Mapping[str, float], words: Mapping[str, dict]) -> Tensor | None:
    """e + λ (e_super − e), where e_super has the superclass words in the locked triggers' places; None when λ is 0.

    With different λ it is taken in steps: each λ moves the prompt on for the triggers that are locked at least so much.
    """
    present = {trigger: locks[trigger] for trigger in _triggers_in(tokens) if trigger in locks}
    levels = sorted({lock for lock in present.values() if lock > 0}, reverse=True)
    if not levels:
        return None
    keys = (1 - levels[0]) * cond if levels[0] < 1 else None
    for level, below in zip(levels, [*levels[1:], 0.0], strict=True):
        locked = {trigger: words[trigger] for trigger, lock in present.items() if lock >= level}
        encoding = plain(_with_superclasses(tokens, locked))[0]
        share = encoding if level - below == 1 else (level - below) * encoding
        keys = share if keys is None else keys + share
    return keys


def _triggers_in(tokens) -> Iterator[str]:
    """The triggers among tokens, however a node pack has nested these."""
    if isinstance(tokens, (list, tuple, dict)):
        for part in tokens.values() if isinstance(tokens, dict) else tokens:
            yield from _triggers_in(part)
    elif hasattr(tokens, TRIGGER):
        yield getattr(tokens, TRIGGER)


def _with_superclasses(tokens, words: Mapping[str, Mapping[str, int]], encoder: str = ""):
    """The same tokens with superclass words in place of these triggers."""
    if isinstance(tokens, dict):
        return {name: _with_superclasses(part, words, name) for name, part in tokens.items()}
    if isinstance(tokens, (list, tuple)):
        return type(tokens)(_with_superclasses(part, words, encoder) for part in tokens)
    return words[trigger][encoder] if (trigger := getattr(tokens, TRIGGER, None)) in words else tokens


def _check_fits(concept: Concept, clip) -> None:
    widths = {name: table.shape[1] for name, table in embedding_tables(clip).items()}
    if concept.has_offset:
        widths = {OFFSET: offset_width(clip)}
    found = {name: embedding.shape[0] for name, embedding in concept.token_embeddings.items()}
    if found != widths:
        raise ValueError(
            f"The concept {concept.name!r} was trained with the text encoders {_listed(found)}; this CLIP has "
            f"{_listed(widths)}. Connect the CLIP of a {concept.base_model} checkpoint."
        )


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({width} wide)" for name, width in sorted(widths.items()))
