"""What other programs read and write: concept files of perfusion-pytorch, covariances as bare matrices, rank-1 LoRA.

Files from outside are data: whatever would have to be run to be read is refused.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor

from .concept import BASE_MODELS, Concept
from .concept_file import check_header
from .covariance import Covariance

MAX_BYTES = 256 * 2**20  # far above any; a file this large is something else
_SAME = 0.01  # share of its length by which i* may differ between layers


def load_perfusion_pytorch(
    path: str | os.PathLike[str], layers: Mapping[str, int], words: Sequence[tuple[str, str]]
) -> list[Concept]:
    """Reads what lucidrains' perfusion-pytorch saved: {"embed_params": (concepts, d_encoder), "C_inv": (d, d),
    "key_value_params": [[i* (concepts, d), outputs (concepts, d_out)] of every projection, keys before values]}.

    layers: {layer: d_out} in the model's order. words: (trigger, superclass) of every concept, which such files lack.
    Outputs are whole there, not beyond W_V s; hence s is 0 here. Raises ValueError for anything unusable.
    """
    path = Path(path)
    held = _read(path)
    if not isinstance(held, dict) or not {"embed_params", "key_value_params", "C_inv"} <= held.keys():
        raise ValueError(f"{path.name} is not a concept file of perfusion-pytorch. Choose one that its save() wrote.")
    embeddings, pairs, inverse = _foreign_parts(path.name, held)
    count, dim = len(embeddings), len(inverse)
    base_model = BASE_MODELS.get(dim, f"width-{dim}")
    if base_model == "sdxl":
        raise ValueError(f"{path.name} is for SDXL, but holds an embedding for only one of its two text encoders.")
    if count != len(words):
        raise ValueError(
            f"{path.name} holds {count} concepts: give {count} triggers and superclasses, separated by commas."
        )
    targets, keys, values = _by_layer(path.name, pairs, layers)
    encoder = "h" if base_model == "sd2" else "l"
    concepts = []
    for number, (trigger, superclass) in enumerate(words):
        concept = Concept(
            name=path.stem if count == 1 else f"{path.stem}-{number + 1}",
            trigger=trigger,
            superclass=superclass,
            base_model=base_model,
            token_embeddings={encoder: embeddings[number]},
            target_input=targets[number],
            target_dual=inverse @ targets[number],
            superclass_input=torch.zeros(dim),
            value_deltas={layer: outputs[number] for layer, outputs in values.items()},
            key_outputs={layer: outputs[number] for layer, outputs in keys.items()},
            metadata={"notes": "Imported from perfusion-pytorch."},
        )
        if problem := concept.problem():
            raise ValueError(f"{path.name} cannot be imported: {problem}.")
        concepts.append(concept)
    return concepts


def load_covariance(path: str | os.PathLike[str], inverse: bool = False) -> Covariance:
    """The one square matrix in a .npy, .safetensors or torch file as C, or as C^-1 if ``inverse`` or named "C_inv".

    C may be of any scale. Raises ValueError for anything unusable.
    """
    path = Path(path)
    held = _read(path)
    named = held if isinstance(held, dict) else {"": held}
    square = {
        name: tensor
        for name, tensor in named.items()
        if _is_dense(tensor) and tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
    }
    if len(square) != 1:
        raise ValueError(
            f"{path.name} holds {len(square)} square matrices, expected one: the covariance of text encodings, (d, d)."
        )
    ((name, matrix),) = square.items()
    return Covariance.from_matrix(matrix, inverse or name == "C_inv", path.name)


def rank_one_update(
    concept: Concept, project: Callable[[str, str, Tensor], Tensor]
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """{(layer, "to_k" or "to_v"): (up (d_out, 1), down (1, d))} of W' = W + up down, the edit without its gate:

        up = o* − W i*,  down = a^T / (a · i*)

    where o* = W_K s, or the key output, and W_V s + δ, so that W' i* = o* and e gets the share e · a / (a · i*) of it.
    With a key freedom f, the key's o* is W_K (f i* + (1 − f) s).
    ``project(layer, projection, x)`` gives W x, (d) -> (d_out).
    """
    dual, target = concept.target_dual.double(), concept.target_input.double()
    down = (dual / (dual @ target)).float()[None]
    moved = concept.superclass_input - concept.target_input
    updates = {}
    for layer, delta in concept.value_deltas.items():
        updates[layer, "to_v"] = project(layer, "to_v", moved) + delta
        if concept.key_outputs is None:
            updates[layer, "to_k"] = (1 - concept.key_freedom) * project(layer, "to_k", moved)
        else:
            updates[layer, "to_k"] = concept.key_outputs[layer] - project(layer, "to_k", concept.target_input)
    return {place: (up[:, None], down.clone()) for place, up in updates.items()}


def _foreign_parts(name: str, held: Mapping[str, Any]) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Embeddings (concepts, d_encoder), [(i* (concepts, d), outputs (concepts, d_out))] and C^-1 (d, d), checked."""
    embeddings, pairs, inverse = held["embed_params"], held["key_value_params"], held["C_inv"]
    if embeddings is None:
        raise ValueError(f"{name} holds no embedding of its trigger: it was saved without the EmbeddingWrapper.")
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{name} is damaged: its key_value_params are no list of pairs. Get the file anew.")
    tensors = {"embed_params": embeddings, "C_inv": inverse}
    tensors |= {f"key_value_params[{i}][{j}]": pair[j] for i, pair in enumerate(pairs) for j in (0, 1)}
    for label, tensor in tensors.items():
        if not _is_dense(tensor) or tensor.ndim != 2 or not tensor.is_floating_point() or not tensor.numel():
            found = f"{tensor.dtype} {tuple(tensor.shape)}" if _is_dense(tensor) else type(tensor).__name__
            raise ValueError(f"{name} cannot be imported: its {label} is {found}, expected a matrix of numbers.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} cannot be imported: its {label} holds NaN or infinity.")
    count, dim = len(embeddings), len(inverse)
    if inverse.shape != (dim, dim):
        raise ValueError(f"{name} cannot be imported: its C_inv has shape {tuple(inverse.shape)}, expected a square.")
    for i, (target, output) in enumerate(pairs):
        if target.shape != (count, dim) or len(output) != count:
            raise ValueError(
                f"{name} cannot be imported: its key_value_params[{i}] have the shapes {tuple(target.shape)} and "
                f"{tuple(output.shape)}, expected ({count}, {dim}) and ({count}, d_out): one output of each layer for "
                f"each of the file's {count} trigger embeddings."
            )
    return embeddings.float(), [(target.float(), output.float()) for target, output in pairs], inverse.float()


def _is_dense(found: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor that holds each of its numbers: a torch file can have sparse ones, ones without data, and
    one number seen as billions."""
    if not isinstance(found, Tensor) or found.is_nested or found.layout != torch.strided or found.device.type != "cpu":
        return False
    return found.untyped_storage().nbytes() >= found.numel() * found.element_size()


def _by_layer(
    name: str, pairs: Sequence[tuple[Tensor, Tensor]], layers: Mapping[str, int]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """i* (concepts, d), and {layer: (concepts, d_out)} of keys and of values."""
    widths = [output.shape[1] for _, output in pairs]
    middle_last = sorted(layers, key=lambda layer: layer.startswith("middle_block"))  # as diffusers has its modules
    for order in (list(layers), middle_last):
        if widths == [layers[layer] for layer in order for _ in ("key", "value")]:
            break
    else:
        raise ValueError(
            f"{name} holds outputs for {len(pairs)} projections, {_counted(widths)}; this model has "
            f"{2 * len(layers)}, a key and a value of each layer, {_counted([*layers.values()] * 2)}. Connect a MODEL "
            "of the family that the concept was trained on."
        )
    each = torch.stack([target for target, _ in pairs])  # (projections, concepts, d)
    targets = each.mean(dim=0)
    if ((each - targets).norm(dim=-1) > _SAME * targets.norm(dim=-1)).any():
        raise ValueError(f"{name} cannot be imported: its layers hold different encodings of the trigger.")
    outputs = [output for _, output in pairs]
    return targets, dict(zip(order, outputs[::2], strict=True)), dict(zip(order, outputs[1::2], strict=True))


def _counted(widths: Sequence[int]) -> str:
    return ", ".join(f"{widths.count(width)} of width {width}" for width in sorted(set(widths))) or "none"


def _read(path: Path) -> Any:
    """What a file holds. Raises ValueError when it cannot be read, or not without running code in it."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size / 2**20:.0f} MiB")
        if path.suffix.lower() == ".safetensors":
            check_header(path)
            return {name: tensor.clone() for name, tensor in load_file(path).items()}  # or it stays mapped
        if path.suffix.lower() == ".npy":
            import numpy  # which torch can do without

            return torch.from_numpy(numpy.load(path, allow_pickle=False))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch packs nothing
                if (unpacked := sum(part.file_size for part in archive.infolist())) > size:
                    raise ValueError(f"{unpacked / 2**20:.0f} MiB, packed")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the libraries raise nearly anything
        raise ValueError(
            f"{path.name} cannot be read: it is damaged, of another kind, or holds code, which is never run. Get the "
            "file anew."
        ) from error
