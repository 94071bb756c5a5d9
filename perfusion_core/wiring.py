"""The edit on any torch model: its key and value projections, found by name, are edited while a ``Wiring`` is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .edit import ConceptSet, EditedEncoding


def cross_attention_layers(model: nn.Module, suffix: str = ".attn2") -> dict[str, tuple[str, str]]:
    """{layer: (name of its to_k, name of its to_v)} for every module of ``model`` whose name ends with ``suffix``.

    The default fits the UNets of Stable Diffusion, in ComfyUI and in diffusers.
    """
    return {
        name: (f"{name}.to_k", f"{name}.to_v")
        for name, module in model.named_modules()
        if f".{name}".endswith(suffix) and hasattr(module, "to_k") and hasattr(module, "to_v")
    }


class Wiring:
    """While entered, the named projections of ``model`` see the edit of ``concepts``; on exit the model is as before.

    layers maps the name of a layer, as concepts know it, to the module names of its key and value projections. They may
    be one, which gives keys and, behind them, values:

        with Wiring(unet, cross_attention_layers(unet), ConceptSet([teddy])):
            prediction = unet(latent, timestep, encoding)

    ``prepare(encoding)`` computes what all layers share once, ahead of a forward that hands this very tensor to them;
    without it every layer edits what arrives. Raises AttributeError for a projection that the model does not have.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, tuple[str, str]], concepts: ConceptSet | None = None):
        self.concepts = concepts
        self.projections = {
            layer: (model.get_submodule(to_k), model.get_submodule(to_v)) for layer, (to_k, to_v) in layers.items()
        }
        self._edited: EditedEncoding | None = None
        self._before: list[tuple[nn.Module, Callable[..., Tensor] | None]] = []  # what each module's own forward was

    def prepare(self, encoding: Tensor, key_encoding: Tensor | None = None, words: Tensor | None = None) -> None:
        """Edits ``encoding`` (batch, tokens, d) once for all layers; ``key_encoding``: what keys see instead of it;
        ``words``: (batch, tokens), False where a token is padding."""
        if self.concepts is not None:
            self._edited = EditedEncoding(self.concepts, encoding, key_encoding, words)

    @property
    def widths(self) -> dict[str, int]:
        """{layer: d_out, of one token's value}."""
        return {
            layer: to_v.get_parameter("weight").shape[0] // (2 if to_k is to_v else 1)
            for layer, (to_k, to_v) in self.projections.items()
        }

    @property
    def is_open(self) -> bool:
        """Whether the projections are edited just now."""
        return bool(self._before)

    def __enter__(self) -> Wiring:
        if self.is_open:
            raise RuntimeError("This wiring is already open; opened twice it would edit twice.")
        for layer, (to_k, to_v) in self.projections.items():
            if to_k is to_v:
                self._wire(to_k, layer, EditedEncoding.key_and_value)
            else:
                self._wire(to_k, layer, EditedEncoding.key)
                self._wire(to_v, layer, EditedEncoding.value)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            module, forward = self._before.pop()
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward
        self._edited = None

    def _wire(self, module: nn.Module, layer: str, edit: Callable[..., Tensor]) -> None:
        plain: Callable[[Tensor], Tensor] = module.forward

        def forward(x: Tensor) -> Tensor:
            if self.concepts is None:
                return plain(x)
            edited = self._edited
            if edited is None or not edited.is_of(x) or edited.concepts is not self.concepts:
                edited = EditedEncoding(self.concepts, x)
            return edit(edited, layer, x, plain)

        self._before.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward
