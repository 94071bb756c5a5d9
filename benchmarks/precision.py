"""How far values are from float64 in each precision, with and without the edit:

    bash scripts/env.sh python benchmarks/precision.py

Two concepts on one layer of SD1.5's width; encodings and weights in the precision, the host's own linear layers. The
error is the largest of V, as a share of the largest number there: of the plain projection, and of the edited one on
words that a concept changes. K comes of the same edited input.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests"), str(REPO / "tests/host")]

import conftest

conftest.start_host()

import comfy.ops
import torch
from comfy import quant_ops
from core import reference
from core.makers import FIRST, make_case
from torch import Tensor, nn

from perfusion_core import ConceptSet, EditedEncoding

DIM, D_OUT = 768, 320


def main() -> None:
    case = make_case(count=2, alike=0.5, dim=DIM, batch=1, tokens=6, dtype=torch.float32)
    random = torch.Generator().manual_seed(0)
    deltas = [torch.randn(D_OUT, generator=random) for _ in case.concepts]
    concepts = [one.replace(value_deltas={FIRST: delta}) for one, delta in zip(case.concepts, deltas, strict=True)]
    weight = torch.randn(D_OUT, DIM, generator=random) / DIM**0.5
    exact = weight.double()
    targets, superclasses = ([vector.double() for vector in each] for each in (case.targets, superclass_of(concepts)))
    outputs = [exact @ s + delta.double() for s, delta in zip(superclasses, deltas, strict=True)]
    settings = [0.6, 0.6], [0.15, 0.15]
    wanted = torch.stack(
        [reference.several_concepts(exact, e, case.covariance, targets, outputs, *settings) for e in encoding_of(case)]
    )
    plain = encoding_of(case) @ exact.T
    edit = ConceptSet(concepts, *settings)
    print(f"{'':34}{'plain':>10}{'edited':>10}")
    for name, (dtype, linear) in layers(weight).items():
        encoding = case.encoding.to(dtype)
        got = EditedEncoding(edit, encoding).value(FIRST, encoding, linear)
        print(f"{name:34}{error(linear(encoding)[0], plain):10.1e}{error(got[0], wanted):10.1e}")


def layers(weight: Tensor) -> dict[str, tuple[torch.dtype, nn.Module]]:
    found = {}
    for stored in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        dtype = torch.bfloat16 if stored.itemsize == 1 else stored
        linear = comfy.ops.manual_cast.Linear(DIM, D_OUT, bias=False)
        linear.weight = nn.Parameter(weight.to(stored), requires_grad=False)
        found[f"{stored}".removeprefix("torch.")] = dtype, linear
    for layout in sorted(quant_ops.QUANT_ALGOS):
        linear = comfy.ops.mixed_precision_ops(compute_dtype=torch.bfloat16).Linear(DIM, D_OUT, bias=False)
        kind = quant_ops.QUANT_ALGOS[layout]["comfy_tensor_layout"]
        try:
            quantised = quant_ops.QuantizedTensor.from_float(weight.bfloat16(), kind)
            linear.weight = nn.Parameter(quantised, requires_grad=False)
            linear(torch.ones(1, 1, DIM, dtype=torch.bfloat16))
        except Exception as problem:
            print(f"quantised, {layout}: not on this device ({type(problem).__name__}: {str(problem)[:60]})")
            continue
        found[f"quantised, {layout}"] = torch.bfloat16, linear
    return found


def superclass_of(concepts) -> list[Tensor]:
    return [concept.superclass_input for concept in concepts]


def encoding_of(case) -> Tensor:
    return case.encoding[0].double()


def error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).abs().max() / wanted.abs().max()).item()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
