"""Mutations that know how a file is built, so that more than its first check is reached."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

Bytes = Callable[[bytes, int], bytes]  # the fuzzer's own mutation, to a length at most

_TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I8": 1, "U8": 1, "BOOL": 1}
_TYPES |= {"C64": 8, "F4": 1, "F8_E8M0": 1, "U16": 2, "F128": 16, "": 1}
_SIZES = [0, 1, 2, 6, 7, 8, 9, 12, 64, 2**16, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, 0.5, None, "8", True]
_TEXTS = [
    "", " ", "1", "2", "perfusion-concept", "perfusion-covariance", "perfusion-training", "<my-toy>", "a b", "\0",
    "\u200b", "nan", "inf", "-1", "1e999", "0.5", "\U0001f9f8", "e\u0301", "x" * 300, "9" * 5000, "../x", "offset",
]  # fmt: skip
_DEEP = 2000


def safetensors(content: bytes, longest: int, seed: int, mutate: Bytes) -> bytes:
    """Mostly with offsets and length made right again."""
    chance = random.Random(seed)
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8:start]), content[start:]
        assert isinstance(header, dict) and chance.random() < 0.9
    except (ValueError, RecursionError, AssertionError):
        return mutate(content, longest)
    for _ in range(chance.randint(1, 3)):
        _change_header(header, chance)
    if chance.random() < 0.3:
        data = mutate(data, max(1, len(data)))
    if chance.random() < 0.8:
        data = _laid_out(header, data, chance)
    try:
        text = json.dumps(header, ensure_ascii=chance.random() < 0.5).encode()
    except UnicodeEncodeError:
        return mutate(content, longest)
    if chance.random() < 0.02:
        text = text[:-1] + b',"deep":' + b"[" * _DEEP + b"]" * _DEEP + b"}"
    if chance.random() < 0.05:
        text = mutate(text, len(text) + 8)
    length = len(text) if chance.random() < 0.97 else chance.choice([0, 2**62, len(text) + 1, len(text) - 1])
    return (length.to_bytes(8, "little") + text + data)[:longest]


def request(content: bytes, longest: int, seed: int, mutate: Bytes) -> bytes:
    """Changes one line's JSON, or lines as a whole."""
    chance = random.Random(seed)
    lines = content.split(b"\n")
    number = chance.randrange(len(lines))
    start = lines[number].find(b"{")
    draw = chance.random()
    if draw < 0.2 and len(lines) > 1:
        lines.insert(chance.randrange(len(lines)), lines[number])
    elif draw < 0.4 or start < 0:
        lines[number] = mutate(lines[number], len(lines[number]) + 20).replace(b"\n", b"")
    else:
        try:
            body = json.loads(lines[number][start:])
            body[chance.choice([*body, "file", "name", "step"])] = _value(chance)
            lines[number] = lines[number][:start] + json.dumps(body).encode()
        except (ValueError, TypeError, RecursionError):
            return mutate(content, longest)
    return b"\n".join(lines)[:longest]


def _change_header(header: dict[str, Any], chance: random.Random) -> None:
    metadata = header.setdefault("__metadata__", {})
    names = [name for name in header if name != "__metadata__"]
    if not names or chance.random() < 0.4:
        if isinstance(metadata, dict):
            key = chance.choice([*metadata, "format", "count", "ridge", "concept", "trigger", "x"])
            metadata[key] = chance.choice(_TEXTS) if chance.random() < 0.95 else _value(chance)
            if chance.random() < 0.1:
                del metadata[key]
        return
    name = chance.choice(names)
    entry = header[name]
    draw = chance.randrange(6)
    if draw == 0:
        del header[name]
    elif draw == 1:
        header[
            chance.choice([*names, "value_delta.", "key_output.x", "token_embedding.offset", "sum", ".", "a.b.c"])
        ] = entry
    elif not isinstance(entry, dict):
        header[name] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    elif draw == 2:
        entry["dtype"] = chance.choice([*_TYPES])
    elif draw == 3:
        entry["shape"] = [chance.choice(_SIZES) for _ in range(chance.choice([0, 1, 1, 1, 2, 2, 3, 60]))]
    elif draw == 4:
        entry["data_offsets"] = [chance.choice(_SIZES), chance.choice(_SIZES)]
    else:
        header[name] = _value(chance)


def _laid_out(header: dict[str, Any], data: bytes, chance: random.Random) -> bytes:
    """Offsets one after the other, of the sizes that the shapes want, while that is little; and as much data."""
    end = 0
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        shape = entry.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**12 for size in shape):
            continue
        size = math.prod(shape) * _TYPES.get(str(entry.get("dtype")), 4)
        if size < 2**14:
            entry["data_offsets"] = [end, end + size]
            end += size
    missing = end - len(data)
    return data[:end] + bytes(chance.choice([0, 0x3C, 0x7C, 0xFF]) for _ in range(missing))


def _value(chance: random.Random) -> Any:
    return chance.choice([*_TEXTS, *_SIZES, {}, [], [[]], {"a": {}}, 1e400, "{undo}", "toys/toy.safetensors"])
