"""What stays the same over the steps of a sampling run and is kept for it: finished keys and values.

A forward whose model, concepts and key locks are those of an earlier one, and whose encoding holds the same numbers,
takes that one's K and V: from the second step on a text costs no projection. Encodings are compared since the host puts
them together anew for every forward, and other nodes may change them on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

LIMIT = 128 * 2**20  # bytes of keys and values in one run; what is beyond is computed at every step
_MANY_TEXTS = 8  # batches of prompts in one run, as areas and guiders make them


class Run:
    """One sampling run of a patched MODEL in one thread."""

    def __init__(self) -> None:
        self.free = LIMIT
        self._texts: list[KeysAndValues] = []
        self._projections: dict[nn.Module, dict[str, Callable[[Tensor], Tensor]]] = {}

    def projections(self, model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
        """{module path: what projects} of a BaseModel, to be found once: to follow a path takes longer than an edit."""
        return self._projections.setdefault(model, {})

    def keys_and_values(self, context: Tensor, made_of: Hashable, of_same_life: object) -> KeysAndValues | None:
        """Those of an encoding (batch, tokens, d) together with all else that they are made of.

        of_same_life: holds the objects whose ids are in ``made_of``. None where there are too many texts already, or no
        room is left.
        """
        made_of = made_of, context.shape, context.dtype, context.device
        for text in self._texts:
            if text.made_of == made_of and torch.equal(text.context, context):
                return text
        if len(self._texts) == _MANY_TEXTS or self.free <= 0:
            return None
        self._texts.append(KeysAndValues(self, context, made_of, of_same_life))
        return self._texts[-1]

    def end(self) -> None:
        """Lets go of everything, also where an error still holds the run."""
        self._texts.clear()
        self._projections.clear()


class KeysAndValues:
    """What the layers made of one encoding, by the paths of their projections."""

    def __init__(self, run: Run, context: Tensor, made_of: Hashable, of_same_life: object):
        self.context, self.made_of, self._of_same_life = context, made_of, of_same_life
        self.received: Tensor | None = None  # of the context, where a projection stands between it and the layers
        self._run = run
        self._outputs: dict[str, tuple[Tensor, int]] = {}

    def get(self, path: str) -> Tensor | None:
        output, version = self._outputs.get(path, (None, 0))
        return output if output is not None and output._version == version else None  # another node has written into it

    def put(self, path: str, output: Tensor) -> None:
        if output.requires_grad:
            return
        if path not in self._outputs:
            if output.nbytes > self._run.free:
                return
            self._run.free -= output.nbytes
        with torch.inference_mode(False):  # inference tensors do not count how often they are written into
            copy = output.clone()
        self._outputs[path] = copy, copy._version
