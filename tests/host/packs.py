"""What popular node packs do with a CLIP, in our own words, to try concepts against it."""

import contextlib
from collections.abc import Callable
from functools import partial

import torch
from comfy.sd1_clip import gen_empty_tokens
from torch import Tensor

COMMA = 267  # that "Advanced CLIP Text Encode" hides words behind
INTERPRETATIONS = ("comfy", "A1111", "compel", "comfy++", "down_weight")
NORMALIZATIONS = ("none", "mean", "length", "length+mean")


def advanced_encode(clip, text: str, normalization: str, interpretation: str) -> list:
    """CONDITIONING of an SD1 prompt as "Advanced CLIP Text Encode" weighs it: nothing but the encoding is handed on."""
    return [[weighed(clip.tokenize(text, return_word_ids=True)["l"], normalization, interpretation,
                     lambda pairs: clip.encode_from_tokens({"l": pairs})), {"pooled_output": None}]]  # fmt: skip


def advanced_encode_xl(clip, text: str, normalization: str, interpretation: str) -> list:
    """The same for SDXL, whose encoders the pack calls itself."""
    tokens, encodings = clip.tokenize(text, return_word_ids=True), []
    for name in ("l", "g"):
        encoder = getattr(clip.cond_stage_model, f"clip_{name}")
        encode = lambda pairs, encoder=encoder: encoder.encode_token_weights(pairs)[0]  # noqa: E731
        encodings.append(weighed(tokens[name], normalization, interpretation, encode))
    return [[torch.cat(encodings, dim=-1), {"pooled_output": None}]]


def weighed(sections: list, normalization: str, interpretation: str, encode: Callable[[list], Tensor]) -> Tensor:
    """sections of (token, weight, number of its word)."""
    flat = [item for section in sections for item in section]
    weights = _normalized([weight for _, weight, _ in flat], [word for *_, word in flat], normalization)
    tokens, words, length = [token for token, *_ in flat], [word for *_, word in flat], len(sections[0])

    def encoded(tokens, weights=None) -> Tensor:
        pairs = list(zip(tokens, weights or [1.0] * len(tokens), strict=True))
        return encode([pairs[at : at + length] for at in range(0, len(pairs), length)])

    def hidden(keep: Callable[[int], bool]) -> list:
        return [token if keep(at) else COMMA for at, token in enumerate(tokens)]

    def lowered(base: Tensor) -> Tensor:
        """Mixed with encodings in which the words of less weight are hidden, one level after the other."""
        levels = sorted({weight for weight in weights if weight < 1})
        others = [encoded(hidden(lambda at, level=level: weights[at] > level)) for level in levels]
        shares = torch.tensor([*levels, 1.0]).diff(prepend=torch.zeros(1)).view(-1, 1, 1)
        return (shares * torch.cat([base, *others])).sum(dim=0, keepdim=True)

    if interpretation == "comfy":
        return encoded(tokens, weights)
    base = encoded(tokens)
    column = torch.tensor(weights).view(1, -1, 1).expand(base.shape)
    if interpretation == "A1111":
        changed = base * column
        return (base.mean() / changed.mean()) * changed
    if interpretation == "compel":
        return lowered(encoded(tokens, [max(weight, 1.0) for weight in weights]))
    if interpretation == "down_weight":
        top = max(weights)
        weights = [1.0 if word == 0 else weight / top for weight, word in zip(weights, words, strict=True)]
        return lowered(base)
    result = lowered(base)
    raised = [word for word in dict.fromkeys(words) if weights[words.index(word)] > 1]
    if raised:
        without = torch.cat([encoded(hidden(lambda at, word=word: words[at] != word)) for word in raised])
        difference = base.expand(without.shape) - without
        difference *= torch.tensor([[own == word for own in words] for word in raised]).unsqueeze(-1)
        difference = difference.sum(axis=0, keepdim=True)
        result += (column - 1) * difference
    return result


def _normalized(weights: list[float], words: list[int], normalization: str) -> list[float]:
    if normalization.startswith("length"):
        spread = [(weight - 1) / max(words.count(word), 1) ** 0.5 for weight, word in zip(weights, words, strict=True)]
        weights = [1.0 if word == 0 else 1 + each for each, word in zip(spread, words, strict=True)]
    if normalization.endswith("mean"):
        own = [weight for weight, word in zip(weights, words, strict=True) if word]
        weights = [w if word == 0 else w + 1 - sum(own) / len(own) for w, word in zip(weights, words, strict=True)]
    return weights


def neg_pip(model, clip):
    """(MODEL, CLIP) after "CLIP NegPip": for every token one for keys and one for values, which may be negative."""
    model, clip = model.clone(), clip.clone()
    for name in ("clip_l", "clip_g"):
        if encoder := getattr(clip.patcher.model, name, None):
            clip.patcher.add_object_patch(f"{name}.encode_token_weights", partial(_in_turn, encoder))
    model.set_model_attn2_patch(lambda n, context, value, options: (n, context[:, 0::2], value[:, 1::2]))
    return model, clip


def _in_turn(encoder, sections: list) -> tuple[Tensor, Tensor]:
    rows = [[token for token, *_ in section] for section in sections]
    empty = gen_empty_tokens(encoder.special_tokens, len(rows[0]))
    encodings, pooled = encoder.encode([*rows, empty])[:2]
    turns = []
    for encoding, section in zip(encodings, sections, strict=False):
        weights = torch.tensor([float(weight) for _, weight, *_ in section])[:, None]
        keys = encodings[-1] + weights.abs() * (encoding - encodings[-1])
        turns.append(torch.stack([keys, torch.where(weights < 0, -keys, keys)], dim=1).flatten(0, 1))
    return torch.cat(turns)[None], pooled[:1]


def plus_plus_encode(clip, text: str, weight: float = 1.1) -> list:
    """CONDITIONING as "CLIP Text Encode++" makes it where it reads prompts as A1111 does: its own chunks of a list of
    texts, and its own weighing, in place of the tokenizer's and the encoder's methods."""
    part, encoder = clip.tokenizer.clip_l, clip.cond_stage_model.clip_l

    def tokenize_with_weights(texts: list[str], return_word_ids: bool = False) -> list:
        chunks = []
        for ids in part.tokenizer(texts, truncation=False, add_special_tokens=False)["input_ids"]:
            commas = [at for at, token in enumerate(ids) if token == part.tokenizer.get_vocab()[",</w>"]]
            assert all(ids[at] == COMMA for at in commas)
            row = [part.start_token, *ids[:75], *[part.end_token] * (76 - len(ids[:75]))]
            row.index(part.end_token)
            chunks.append(([row], [[weight] * 77]))
        return chunks

    def encode_token_weights(chunks: list) -> tuple[Tensor, Tensor]:
        parts = []
        for rows, weights in chunks:
            with contextlib.suppress(ValueError):  # which it takes for embeddings among the tokens
                torch.asarray(rows)
            encoding, pooled = encoder(rows)
            spread = encoding.std()  # the mean in the pack, which is 0 with random weights
            encoding = encoding * torch.asarray(weights)[..., None]
            parts.append(encoding * (spread / encoding.std()))
        return torch.hstack(parts), pooled

    part.tokenize_with_weights, encoder.encode_token_weights = tokenize_with_weights, encode_token_weights
    try:
        made = clip.encode_from_tokens(clip.tokenize([text]), return_pooled=True, return_dict=True)
    finally:
        del part.tokenize_with_weights, encoder.encode_token_weights
    return [[made.pop("cond"), made]]
