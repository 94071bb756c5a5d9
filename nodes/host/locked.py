"""An encoding that has what keys see beside it.

Node packs that weigh prompts in their own ways do arithmetic with encodings and hand on the result alone. What they do
to this tensor is done to its keys, too: so they become what the pack makes of the prompt with superclass words.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .uses import KEY

# Arithmetic and moves. A model's own layers are not among them: there the keys have no more to say.
_CARRIED = frozenset(
    """
    add radd iadd sub rsub isub mul rmul imul div rdiv truediv rtruediv itruediv neg abs pow sqrt lerp addcmul
    mean std var sum norm linalg_norm clamp where masked_fill cat concat concatenate stack
    getitem setitem expand expand_as reshape view repeat unsqueeze squeeze flatten permute transpose movedim narrow
    clone detach contiguous to float half bfloat16 double type cpu cuda empty_like
    """.split()
)


class LockedEncoding(Tensor):
    """An encoding (batch, tokens, d) with that which keys see in its place, of the same shape, as an attribute."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        if name.strip("_") not in _CARRIED:
            return _plainly(func, args, kwargs)
        seen_by_keys = args
        if not isinstance(args[0], cls) and isinstance(args[0], Tensor) and _in_place(name):
            seen_by_keys = (args[0].clone(), *args[1:])
        result = _plainly(func, *tree_map_only(cls, _alone, (args, kwargs)))
        keys = _plainly(func, *tree_map_only(cls, lambda encoding: getattr(encoding, KEY), (seen_by_keys, kwargs)))
        return with_keys(result, keys) if isinstance(result, Tensor) else result

    def __deepcopy__(self, memo: dict) -> LockedEncoding:
        return with_keys(deepcopy(_alone(self), memo), deepcopy(getattr(self, KEY), memo))

    def __reduce_ex__(self, protocol):
        return _alone(self).__reduce_ex__(protocol)  # files hold plain tensors


def with_keys(encoding: Tensor, keys: Tensor) -> LockedEncoding:
    encoding = encoding.as_subclass(LockedEncoding)
    setattr(encoding, KEY, keys)
    return encoding


def _alone(encoding: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return encoding.as_subclass(Tensor)


def _in_place(name: str) -> bool:
    return name.startswith("__i") if name.endswith("__") else name.endswith("_")


def _plainly(func, args, kwargs):
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)
