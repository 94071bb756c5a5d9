"""What the edit costs on ComfyUI's own SD1.5 UNet, with random weights: ratios of times measured in turn.

    bash scripts/env.sh python benchmarks/cost.py [--size 256] [--rounds 7]

forward: one UNet forward of cond + uncond with 1 and 4 concepts, against the same without.
training step: forward and backward of one micro-batch with the edit and the text encoder, against the same without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "host"))
import conftest  # noqa: F401, starts the host

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False, "num_heads": 8,
    "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 768, "use_linear_in_transformer": False,
    "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "dtype": torch.float32,
    "adm_in_channels": None,
}  # fmt: skip
TOKENS, WIDTH = 77, 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = sd15()
    latent = options.size // 8
    with torch.inference_mode():
        plain = forward(model, latent)
        for count in (1, 4):
            report(f"forward, {count} concept(s)", forward(edited(model, count), latent), plain, options.rounds)
    step, frozen = training_steps(model, latent)
    report("training step", step, frozen, options.rounds)


def report(name: str, one: Callable[[], float], other: Callable[[], float], rounds: int) -> None:
    """Times both in turn, A B A B ..., after one uncounted round each, and prints the ratios pair by pair."""
    one(), other()
    pairs = [(one(), other()) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    base = statistics.median(b for _, b in pairs)
    print(f"{name}: {statistics.median(ratios):.3f} of {base:.2f} s ({ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def forward(patcher, latent: int) -> Callable[[], float]:
    import comfy.model_management

    x, sigma, context = torch.randn(2, 4, latent, latent), torch.full((2,), 3.0), torch.randn(2, TOKENS, WIDTH)

    def timed() -> float:
        comfy.model_management.load_models_gpu([patcher])
        start = time.perf_counter()
        patcher.model.apply_model(x, sigma, c_crossattn=context, transformer_options={"wrappers": patcher.wrappers})
        return time.perf_counter() - start

    return timed


def training_steps(model, latent: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """One micro-batch of two photos with the edit, and the same gradient through the frozen UNet without it."""
    import comfy.model_management
    from comfyui_perfusion.nodes.host.model import PREFIX, cross_attentions
    from comfyui_perfusion.nodes.host.trainable import trainable_through
    from comfyui_perfusion.perfusion_core import ConceptSet, Wiring

    comfy.model_management.load_models_gpu([model])
    network = model.model
    names = {layer: (f"{PREFIX}{layer}.to_k", f"{PREFIX}{layer}.to_v") for layer in cross_attentions(model)}
    x, sigma = torch.randn(2, 4, latent, latent), torch.full((2,), 3.0)
    concept = random_concepts(model, 1)[0]
    deltas = {layer: torch.nn.Parameter(delta.clone()) for layer, delta in concept.value_deltas.items()}
    context = torch.nn.Parameter(torch.randn(2, TOKENS, WIDTH))

    def timed(prepare: Callable[[], None]) -> float:
        with trainable_through(network):
            start = time.perf_counter()
            prepare()
            network.apply_model(x.clone(), sigma.clone(), c_crossattn=context, transformer_options={}).mean().backward()
            return time.perf_counter() - start

    def edited_step() -> float:
        with Wiring(network, names) as wiring:

            def prepare() -> None:  # as Training does it once per micro-batch
                wiring.concepts = ConceptSet([concept.replace(value_deltas=deltas)], 0.75, 0.1)
                wiring.prepare(context)

            return timed(prepare)

    return edited_step, lambda: timed(lambda: None)


def sd15():
    """The MODEL of SD1.5's whole architecture with random weights."""
    import comfy.model_patcher
    from comfy import supported_models

    from random_checkpoint import initialise

    model = supported_models.SD15(SD15).get_model({}, device=torch.device("cpu"))
    initialise(model.diffusion_model, torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def edited(model, count: int):
    from comfyui_perfusion.nodes.host.model import apply_to_model
    from comfyui_perfusion.nodes.host.uses import ConceptUse

    return apply_to_model(model, [ConceptUse(concept) for concept in random_concepts(model, count)])


def random_concepts(model, count: int) -> list:
    from comfyui_perfusion.nodes.host.model import cross_attentions
    from comfyui_perfusion.perfusion_core import Concept

    widths = {layer: module.to_v.out_features for layer, module in cross_attentions(model).items()}
    made = []
    for i in range(count):
        target = torch.randn(WIDTH)
        made.append(
            Concept(
                f"c{i}", f"<c{i}>", "thing", "sd1", {"l": torch.randn(WIDTH)}, target, target / target.square().sum(),
                torch.randn(WIDTH), {layer: torch.randn(width) for layer, width in widths.items()},
            )
        )  # fmt: skip
    return made


if __name__ == "__main__":
    main()
