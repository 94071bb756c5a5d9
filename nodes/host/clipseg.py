"""Soft masks from words: CLIPSeg models in models/clipseg, in the layout of Hugging Face. Nothing is downloaded."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from PIL import Image
from torch import Tensor

from .files import register_folder
from .progress import Progress

FOLDER = "clipseg"
CLIPSEG = "clipseg-rd64-refined"
_FILES = {
    "config.json": "config.json",
    "model.safetensors": "pytorch_model.bin",
    "preprocessor_config.json": "processor_config.json",
    "vocab.json": "tokenizer.json",
    "merges.txt": "tokenizer.json",
}  # a file of the repository: what also serves
_DOWNLOAD = (
    f"Put the files of the Hugging Face repository CIDAS/{CLIPSEG} into models/{FOLDER}/{CLIPSEG} and refresh (R)."
)
_FOUND = 0.1  # below this everywhere the subject is not in the photo


def register() -> None:
    register_folder(FOLDER)


def clipseg_names() -> list[str]:
    """The CLIPSeg folders that can be chosen."""
    return sorted({folder.name for folder in _folders()})


def clipseg_folder(name: str) -> Path:
    """The folder of a chosen CLIPSeg model. Raises ValueError when it or one of its files is not there."""
    folder = next((folder for folder in _folders() if folder.name == name), None)
    if folder is None:
        raise ValueError(f"There is no folder {name!r} in models/{FOLDER}. {_DOWNLOAD}")
    missing = [file for file, other in _FILES.items() if not any((folder / it).is_file() for it in (file, other))]
    if missing:
        raise ValueError(f"The folder models/{FOLDER}/{name} lacks {', '.join(missing)}. {_DOWNLOAD}")
    return folder


def find_subject(photos: Sequence[Tensor], subject: str, folder: Path, node_id: str | None) -> tuple[list[Tensor], str]:
    """Soft masks (1, height, width) in 0..1 of the subject in photos (height, width, 3 or 4), and a report.

    A mask is empty where the subject is not found, so that nobody trains on noise. Raises ValueError for photos with
    NaN, an empty or long subject, and a folder that holds no sound CLIPSeg model.
    """
    if not photos:
        raise ValueError("There are no photos. Connect pictures of your subject.")
    if not subject:
        raise ValueError("The subject is empty. Name what to look for in a few plain words, such as teddy.")
    for number, photo in enumerate(photos, 1):
        if not torch.isfinite(photo).all():
            raise ValueError(f"Photo {number} holds NaN. Look at the node that makes it.")
    model, processor = _load(folder)
    longest = model.config.text_config.max_position_embeddings
    if (length := len(processor.tokenizer(subject)["input_ids"])) > longest:
        raise ValueError(f"The subject has {length} tokens, CLIPSeg reads {longest}. Say it in a few plain words.")
    device = comfy.model_management.get_torch_device()
    needed = comfy.model_management.module_size(model) + comfy.model_management.minimum_inference_memory()
    comfy.model_management.free_memory(needed, device)
    progress, masks = Progress(len(photos), node_id), []
    try:
        model.to(device)
        for photo in photos:
            masks.append(_mask(model, processor, photo, subject))
            progress.update(len(masks), f"photo {len(masks)} of {len(photos)}")
    finally:
        model.to("meta")  # deleting it does not free its weights: it is in a circle of references
        comfy.model_management.soft_empty_cache()
    peaks = [mask.max().item() for mask in masks]
    if any(math.isnan(peak) for peak in peaks):
        raise ValueError(f"The CLIPSeg model {folder.name} gives NaN: its weights are damaged. {_DOWNLOAD}")
    report = _report(peaks, subject)
    progress.update(len(photos), report)
    return [mask if peak >= _FOUND else torch.zeros_like(mask) for mask, peak in zip(masks, peaks, strict=True)], report


def _report(peaks: Sequence[float], subject: str) -> str:
    """How sure CLIPSeg is of the subject in each photo; what is missing also goes to the log."""
    missed = [str(number) for number, peak in enumerate(peaks, 1) if peak < _FOUND]
    found = (
        f"{subject!r} found in {len(peaks) - len(missed)} of {len(peaks)} photos. "
        f"Surest spot of each: {', '.join(f'{peak:.0%}' for peak in peaks)}."
    )
    if not missed:
        return found
    warning = (
        f"Not in photo {', '.join(missed)}: the mask is empty there, and training will refuse it. "
        "Name the subject in other words, or take the photo out."
    )
    logging.warning("Perfusion: %s %s", found, warning)
    return f"{found}\n{warning}"


def _mask(model, processor, photo: Tensor, subject: str) -> Tensor:
    """(1, height, width), sigmoid of the model's logits."""
    picture = Image.fromarray((photo[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy())
    inputs = processor(text=[subject], images=[picture], return_tensors="pt").to(model.device)
    logits = model(**inputs).logits
    small = logits.sigmoid().reshape(1, 1, *logits.shape[-2:])
    return torch.nn.functional.interpolate(small, size=photo.shape[:2], mode="bilinear")[0].cpu()


def _load(folder: Path):
    """Model and processor, on the CPU in fp32."""
    # Imported where it is used: it takes seconds.
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor, CLIPTokenizer, ViTImageProcessor

    try:
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
        if kind != "clipseg":
            raise ValueError(f"its config.json is of a model of type {kind!r}")
        processor = CLIPSegProcessor(
            ViTImageProcessor.from_pretrained(folder, local_files_only=True),
            CLIPTokenizer.from_pretrained(folder, local_files_only=True),
        )
        model, loaded = CLIPSegForImageSegmentation.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=(folder / "model.safetensors").is_file(),
            attn_implementation="eager",  # the folder's files may not choose: they could name code to fetch
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if wrong := [*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])]:
            raise ValueError(f"its weights lack {min(wrong)} or have it in another size")
    except Exception as error:  # of many kinds, from readers of damaged files
        raise ValueError(f"{folder.name} is no CLIPSeg model that can be read ({error}). {_DOWNLOAD}") from error
    return model.float().train(False), processor


def _folders() -> Iterator[Path]:
    for home in map(Path, folder_paths.get_folder_paths(FOLDER)):
        if home.is_dir():
            yield from (path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))
