"""The edit on any torch model: its key and value projections, found by name, are edited while a ``Wiring`` is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
        self._check_closed()
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

    def _check_closed(self) -> None:
        if self.is_open:
            raise RuntimeError("This wiring is already open; opened twice it would edit twice.")

    def _wire(self, module: nn.Module, layer: str, edit: Callable[..., Tensor]) -> None:
        plain: Callable[[Tensor], Tensor] = module.forward

        def forward(x: Tensor) -> Tensor:
            if self.concepts is None:
                return plain(x)
            edited = self._edited
            if edited is None or not edited.is_of(x) or edited.concepts is not self.concepts:
                edited = EditedEncoding(self.concepts, x)
            return edit(edited, layer, x, plain)

        self._replace(module, forward)

    def _replace(self, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        self._before.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward


@dataclass(frozen=True)
class Values:
    """Where in a model of joint attention a layer's values are: among the columns that a projection gives."""

    projection: str  # the module's name
    start: int  # the first column
    width: int  # of one token's value


class ValueWiring(Wiring):
    """The same for joint attention, where text and picture are one sequence, the text's rows first: t g δ is added to
    the values of these rows, and nothing else is touched.

    The trigger is to be read as its superclass word, so that its keys are the superclass's. ``prepare`` takes what the
    text encoder gives, ahead of every forward: of that come the gates.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Values], concepts: ConceptSet | None = None):
        names = {layer: (values.projection, values.projection) for layer, values in layers.items()}
        super().__init__(model, names, concepts)
        self._layers = layers
        self._gates: Tensor | None = None

    def prepare(self, encoding: Tensor, key_encoding: Tensor | None = None, words: Tensor | None = None) -> None:
        if self.concepts is not None:
            self._gates = self.concepts.gates(encoding, words)

    @property
    def widths(self) -> dict[str, int]:
        return {layer: values.width for layer, values in self._layers.items()}

    def __enter__(self) -> ValueWiring:
        self._check_closed()
        for layer, (projection, _) in self.projections.items():
            self._wire_values(projection, layer, self._layers[layer])
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._gates = None

    def _wire_values(self, module: nn.Module, layer: str, values: Values) -> None:
        plain: Callable[[Tensor], Tensor] = module.forward

        def forward(x: Tensor) -> Tensor:
            output = plain(x)
            if self.concepts is not None and self._gates is not None:
                self.concepts.add_to_values(output, self._gates, layer, values.start, values.width)
            return output

        self._replace(module, forward)
