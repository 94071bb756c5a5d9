"""The covariance of a text encoder's encodings, made once and kept in the models folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...perfusion_core import Covariance
from ...perfusion_core.captions import captions as built_in_captions
from ..photo_folder import photo_endings
from .adapter import Receiver, adapter_digest, loaded_receiver
from .encoder import add, attribute, end_of_words, unpadded, weights_digest
from .files import covariance_path, input_path
from .listing import folders_below
from .progress import Progress
from .text import encode_rows, is_adapted, prepare_encoders, skipped, tokenizers
from .tokenizer import is_by_host, placing

CAPTIONS = 10_000  # built-in captions when the user gives no number
SHIPPED = Path(__file__).parents[1] / "covariances"  # the demo model's, by scripts/make/demo_covariance.py
TOKENS = {"all": "", "up to end": "-up-to-end", "content": "-content"}  # which positions count, and their files' ending
MAX_MIB = 64  # of a caption file
_LONGEST = 10_000  # characters of a caption; what is longer was not meant as one
_BATCH, _SORTED = 32, 2048  # captions at once
_OF_PADDING = 16  # of so many rows of padding one counts
_SENTENCE = "a photo of a small red cat and a large blue house on the beach at night"


def cached_covariance(
    clip,
    count: int,
    node_id: str | None,
    tokens: str = "all",
    bar: bool = True,
    key: str | None = None,
    captions: Sequence[str] | None = None,
    model=None,
) -> Covariance:
    """C for exactly this CLIP, read from the pack or the models folder, or made and kept there.

    It is over ``count`` built-in captions, or over the first ``count`` of ``captions``. key: the CLIP's fingerprint,
    where it is known already. tokens, bar, model and errors are those of ``measure_covariance``.
    """
    chosen = ""
    if captions is not None:
        captions = captions[:count]
        count = len(captions)
        chosen = "-" + hashlib.blake2b("\n".join(captions).encode(), digest_size=8).hexdigest()
    received = _receiver(clip, model)
    adapter = "-" + adapter_digest(model) if received else ""
    path = covariance_path(f"{key or fingerprint(clip)}{adapter}-{count}{chosen}{TOKENS[tokens]}")
    for there in (SHIPPED / path.name, path):
        try:
            if there.is_file():
                return Covariance.load(there)
        except (OSError, ValueError) as error:
            logging.warning("Perfusion: the kept covariance cannot be used and is made anew: %s", error)
    if captions is None:
        captions = list(built_in_captions(count))
    covariance = measure_covariance(clip, captions, node_id, tokens, bar, model)
    try:
        covariance.save(path)
    except OSError as error:  # works without, only slower the next time
        logging.warning("Perfusion: the covariance could not be kept: %s", error)
    return covariance


def measure_covariance(
    clip, captions: Sequence[str], node_id: str | None, tokens: str = "all", bar: bool = True, model=None
) -> Covariance:
    """C over the encodings of these captions, CLIP's 77 tokens of each. Raises ValueError when nothing counts, and the
    host's cancel.

    tokens: "all" 77 positions, those from the start "up to end", or the "content" between start and end; other encoders
    have no padding that counts. Without ``bar`` the progress is a line of text only. model: the MODEL, which the
    CLIPs of Anima, Wan, LTX-Video and PixArt need.
    """
    if not captions:
        raise ValueError("There are no captions. Write one per line, or leave the field empty for the built-in ones.")
    received = _receiver(clip, model)
    _load(clip)
    prepare_encoders(clip)
    progress, done = Progress(len(captions), node_id, bar), 0
    covariance = None
    for rows in _batches(clip, captions):
        with torch.no_grad():
            encodings, _ = encode_rows(clip, rows, received)
        if covariance is None:
            covariance = Covariance(encodings.shape[-1])
        covariance.update(encodings, _counted(clip, rows, tokens, encodings.shape[1]))
        done += len(encodings)
        progress.update(done, "Getting to know this checkpoint's text encoder (only once)")
    if not covariance.count:
        raise ValueError("The captions hold no words. Write one caption per line.")
    return covariance


def _receiver(clip, model) -> Receiver | None:
    unneeded = model is None and not is_adapted(clip.tokenizer.tokenize_with_weights(""))
    return None if unneeded else loaded_receiver(model)


def fingerprint(clip) -> str:
    """A hash of the text encoders' weights, with their LoRA, and clip skip: equal for equal encodings.

    A LoRA that the host keeps beside the weights, as where it streams them to the GPU, is known by what it makes of a
    sentence.
    """
    _load(clip)
    digest = weights_digest(clip.cond_stage_model, skipped(clip))
    if digest is None:
        raise ValueError(
            "The text encoder's weights cannot be read: a node pack keeps them in a form of its own. "
            "Load them with Load Checkpoint or Load CLIP."
        )
    patcher = clip.patcher
    if patcher.injections or (patcher.patches and patcher.is_dynamic()):
        prepare_encoders(clip)
        with torch.no_grad():
            encodings, _ = encode_rows(clip, _rows(clip, [_SENTENCE]))
        add(digest, encodings)
    return digest.hexdigest()


def _batches(clip, captions: Sequence[str]) -> Iterator[dict[str, list[list]]]:
    """As ``_rows``; from many captions those with equally many tokens come together, which can be encoded at once."""
    for start in range(0, len(captions), _SORTED):
        rows = _rows(clip, captions[start : start + _SORTED])
        count = len(next(iter(rows.values())))
        order = sorted(range(count), key=lambda place: [len(own[place]) for own in rows.values()])
        for first in range(0, count, _BATCH):
            yield {name: [own[place] for place in order[first : first + _BATCH]] for name, own in rows.items()}


def _rows(clip, captions: Sequence[str]) -> dict[str, list[list]]:
    """{tokenizer: the tokens of every caption}, of a long one only the first section, and no padding that is masked."""
    tokenized = [clip.tokenize(caption) for caption in captions]
    return {
        name: [unpadded(clip.tokenizer, name, [token[0] for token in prompt[name][0]]) for prompt in tokenized]
        for name in tokenizers(clip)
    }


def caption_files() -> list[str]:
    """The .txt files below ComfyUI's input directory, relative to it, but for the captions of photos."""
    found = []
    for folder, listing in folders_below(folder_paths.get_input_directory()).items():
        own = listing.stems({".txt"}) - listing.stems(photo_endings())
        names = [name for name in listing.names({".txt"}) if name[:-4] in own] if own else ()
        found += [name if folder == "." else f"{folder}/{name}" for name in names]
    return sorted(found)


def caption_file_path(name: str) -> Path:
    """A caption file below the input directory. Raises ValueError when it is not there."""
    path = input_path(name)
    if path is None or not _is_text(path):
        raise ValueError(f"There is no caption file {name!r} (.txt) in ComfyUI's input directory.")
    return path


def read_captions(name: str) -> list[str]:
    """The captions of a file below the input directory, one per line. Raises ValueError for a file of other things."""
    path = caption_file_path(name)
    try:
        if (size := path.stat().st_size) > MAX_MIB * 2**20:
            raise ValueError(f"{name} has {size / 2**20:.0f} MiB, more than {MAX_MIB}. Keep a part of its captions.")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read ({error}). Save it as text in UTF-8, one caption per line.") from error
    captions = caption_lines(text)
    if not captions:
        raise ValueError(f"{name} holds no captions. Write one per line.")
    if "\0" in text or max(map(len, captions)) > _LONGEST:
        raise ValueError(
            f"{name} holds null bytes or lines of more than {_LONGEST} characters. Save it as text in UTF-8, one "
            "caption per line."
        )
    return captions


def caption_lines(text: str) -> list[str]:
    """One caption per line, without blank lines."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _counted(clip, rows: Mapping[str, list[list]], tokens: str, length: int) -> Tensor | None:
    """Which of ``length`` positions count of {tokenizer: rows of tokens}, (rows, tokens): those that do for all. None
    for all of them."""
    if is_by_host(rows):
        return _counted_by_host(clip, rows, tokens, length)
    if tokens == "all":
        return None
    masks = []
    position = torch.arange(length)
    for name in [placing(rows)] if "t5xxl" in rows else rows:
        part = getattr(clip.tokenizer, attribute(clip.tokenizer, name))
        # the first one, because SD1's padding is end tokens too; a token may be an embedding, hence no index()
        ends = torch.tensor(
            [[[isinstance(t, int) and t == part.end_token for t in row].index(True)] for row in rows[name]]
        )
        after_start = position >= part.tokens_start
        masks.append(position <= ends if tokens == "up to end" else after_start & (position < ends))
    return torch.stack(masks).all(dim=0)


def _counted_by_host(clip, rows: Mapping[str, list[list]], tokens: str, length: int) -> Tensor:
    """Of padding, which can be twenty times the words and which layers do see, a few."""
    name = placing(rows)
    place = torch.arange(length) - (length - max(map(len, rows[name])))  # among the tokens
    counted = []
    for row in rows[name]:
        end = end_of_words(clip.tokenizer, name, row)
        few = (place % _OF_PADDING == 0) & (place < len(row))
        counted.append((place >= 0) & ((place < end) | few if tokens == "all" else place < end))
    return torch.stack(counted)


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == ".txt" and path.is_file()


def _load(clip) -> None:
    comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)
