"""What stands between a text encoder and a model's layers, as a part of the diffusion model: Anima's adapter, or a
projection."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from .encoder import add
from .families import family_of

Receiver = Callable[[Tensor, Mapping[str, Any]], Tensor]


def network_dtype(base_model: torch.nn.Module) -> torch.dtype:
    """In which the network of one of the host's BaseModels computes, and gets its encodings."""
    return getattr(base_model, "manual_cast_dtype", None) or base_model.get_dtype()


def receiver(model) -> Receiver | None:
    """received(encoding, conditioning): what the MODEL's layers receive of an encoding (batch, tokens, d) and what else
    is in its conditioning's dict, in fp32. The MODEL has to be loaded. None where it is the encoding itself."""
    return partial(_received, model) if family_of(model).adapter else None


def loaded_receiver(model) -> Receiver | None:
    """The same, of a MODEL that is loaded first where that is needed. Raises ValueError when there is none."""
    if model is None:
        raise ValueError("This model reads the prompt, too, before its layers do. Connect the model as well.")
    received = receiver(model)
    if received is not None:
        comfy.model_management.load_models_gpu([model])
    return received


def adapter_digest(model) -> str:
    """A hash of the adapter's weights; empty where there is none. The MODEL has to be loaded."""
    if not (place := family_of(model).adapter):
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for key, tensor in sorted(model.model.diffusion_model.get_submodule(place).state_dict().items()):
        digest.update(key.encode())
        add(digest, tensor)
    return digest.hexdigest()


def _received(model, encoding: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    encoding = encoding.to(model.load_device, network_dtype(model.model))
    return family_of(model).received(model.model.diffusion_model, encoding, conditioning).float()
