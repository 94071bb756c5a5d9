"""What the edit costs on ComfyUI's own SD1.5 UNet and CLIP-L, with random weights: ratios of times measured in turn.

CPU time counts the work alone; the time on the clock also what other programs on the machine do meanwhile.

    bash scripts/env.sh python benchmarks/cost.py [--only training] [--size 256] [--batch 4] [--rounds 7]

forward: one UNet forward of cond + uncond with 1 and 4 concepts, against the same without.
training: one micro-batch, as the nodes train it, from token embeddings to gradients, against the same forward and
backward without the edit, and against the straightforward loop (``Straightforward``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "host"))
import conftest  # noqa: F401, starts the host

# isort: split
from comfyui_perfusion.perfusion_core import Concept, EncodedPrompts, Training, TrainingSettings
from comfyui_perfusion.perfusion_core.captions import TEMPLATES

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False, "num_heads": 8,
    "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 768, "use_linear_in_transformer": False,
    "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "dtype": torch.float32,
    "adm_in_channels": None,
}  # fmt: skip
TOKENS, WIDTH = 77, 768

Times = tuple[float, float]  # seconds on the clock, seconds of CPU time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["forward", "training"])
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--batch", type=int, default=4, help="pictures in a micro-batch")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = sd15()
    if options.only != "training":
        latent = options.size // 8
        with torch.inference_mode():
            runs = {"forward": forward(model, latent)}
            for count in (1, 4):
                runs[f"forward with {count} concept(s)"] = forward(edited(model, count), latent)
            compare(runs, [(name, "forward") for name in list(runs)[1:]], options.rounds)
    if options.only != "forward":
        with training_steps(model, clip_l(), options.size, options.batch) as steps:
            no_edit, ours, *others = steps
            compare(steps, [(ours, no_edit), *((other, ours) for other in others)], options.rounds)


def compare(runs: dict[str, Callable[[], Times]], pairs: list[tuple[str, str]], rounds: int) -> None:
    """Times all in turn, A B C A B C ..., after one uncounted round, and prints ratios within rounds."""
    for run in runs.values():
        run()
    times = [{name: run() for name, run in runs.items()} for _ in range(rounds)]
    for name in runs:
        wall, cpu = (statistics.median(one[name][clock] for one in times) for clock in (0, 1))
        print(f"{name}: {wall:.2f} s, CPU {cpu:.2f} s")
    for name, base in pairs:
        wall, cpu = (spread([one[name][clock] / one[base][clock] for one in times]) for clock in (0, 1))
        print(f"{name} / {base}: {wall}, CPU {cpu}")


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def timed(run: Callable[[], object]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def forward(patcher, latent: int) -> Callable[[], Times]:
    import comfy.model_management

    x, sigma, context = torch.randn(2, 4, latent, latent), torch.full((2,), 3.0), torch.randn(2, TOKENS, WIDTH)
    options = {"wrappers": patcher.wrappers}

    def run() -> Times:
        comfy.model_management.load_models_gpu([patcher])
        return timed(lambda: patcher.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options))

    return run


@contextmanager
def training_steps(model, clip, size: int, batch: int) -> Iterator[dict[str, Callable[[], Times]]]:
    """Micro-batches of the same photos, templates, noises and timesteps."""
    from comfyui_perfusion.nodes.host.trainable import checkpointed
    from comfyui_perfusion.nodes.host.trainee import Subject, open_trainee

    subject = Subject(torch.zeros(batch, size, size, 3), None, [TEMPLATES] * batch, "teddy")
    with open_trainee(model, clip, RandomVAE(), subject) as trainee:
        given = trainee, torch.eye(WIDTH), "<my-toy>", "teddy", "sd1", TrainingSettings(batch_size=batch)
        ours, loop = Training(*given), Straightforward(*given)
        yield {
            "training without the edit": step(Frozen(*given)),
            "training": step(ours),
            "gradient_checkpointing": step(ours, partial(checkpointed, model.model, clip.cond_stage_model)),
            "straightforward loop": step(loop, loop.hooks),
            "straightforward loop, UNet checkpointed": step(loop, loop.hooks, partial(checkpointed, model.model)),
        }


def step(training: Training, *around: Callable[[], AbstractContextManager]) -> Callable[[], Times]:
    def run() -> Times:
        training._generator.manual_seed(0)
        with ExitStack() as stack:
            for context in around:
                stack.enter_context(context())
            return timed(lambda: training._micro_batch().backward())

    return run


class Frozen(Training):
    """The embedding is trained through the text encoder and the UNet as they are, without an edit."""

    def _concept_set(self, target: Tensor) -> None:
        return None


class Straightforward(Frozen):
    """The same training written down in the simplest way, as earlier open versions have it.

    Every to_k and every to_v, 32 in all, computes for itself C^-1 i*, energy, similarities, gates and W i*, and from
    them its output W e − sim / E W i* + g o. For keys o is W s, for values it is what is trained. The text encoder runs
    once per picture, also where two have the same template.

    All else is as in ours: C^-1 is given, i* follows once per micro-batch, the network's input asks for no gradient.
    Earlier versions also checkpoint the blocks of the UNet, which is timed apart.
    """

    def __init__(self, *given):
        super().__init__(*given)
        outputs = {
            module: F.linear(self.superclass_input, module.weight)
            for pair in self.trainee.wiring.projections.values()
            for module in pair
        }
        trained = {to_v for _, to_v in self.trainee.wiring.projections.values()}
        self.outputs = {module: nn.Parameter(o) if module in trained else o for module, o in outputs.items()}

    def _encode(self, templates: list[int]) -> tuple[EncodedPrompts, Tensor]:
        prompts = self.trainee.encode(templates, self.token_embeddings)
        return prompts, prompts.encodings[torch.arange(len(templates)), prompts.trigger_positions].mean(0)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.outputs:
                stack.enter_context(module.register_forward_hook(self._edit))
            yield

    def _edit(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        dual = self._inverse @ self.target_input
        energy = self.target_input @ dual
        similarity = (inputs[0] @ dual)[..., None] / energy
        gate = torch.sigmoid((similarity - self.settings.beta) / self.settings.temperature)
        target_output = F.linear(self.target_input, module.weight)
        return output - similarity * target_output + gate * self.outputs[module]


class RandomVAE:
    def encode(self, photos: Tensor) -> Tensor:
        _, height, width, _ = photos.shape
        return torch.randn(1, 4, height // 8, width // 8)


def sd15():
    """The MODEL of SD1.5's whole architecture with random weights."""
    import comfy.model_patcher
    from comfy import supported_models

    from random_checkpoint import initialise

    model = supported_models.SD15(SD15).get_model({}, device=torch.device("cpu"))
    initialise(model.diffusion_model, torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def clip_l():
    """The CLIP of SD1.5, likewise."""
    import comfy.sd
    from comfy import supported_models

    from random_checkpoint import initialise

    clip = comfy.sd.CLIP(supported_models.SD15(SD15).clip_target(), model_options={"dtype": torch.float32})
    initialise(clip.cond_stage_model, torch.Generator().manual_seed(0))
    return clip


def edited(model, count: int):
    from comfyui_perfusion.nodes.host.model import apply_to_model
    from comfyui_perfusion.nodes.host.uses import ConceptUse

    return apply_to_model(model, [ConceptUse(concept) for concept in random_concepts(model, count)])


def random_concepts(model, count: int) -> list:
    from comfyui_perfusion.nodes.host.model import cross_attentions

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
