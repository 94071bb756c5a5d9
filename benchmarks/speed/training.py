"""One micro-batch of a training, as the nodes train it, beside the network alone and the straightforward loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from comfyui_perfusion.nodes.host.trainable import checkpointed
from comfyui_perfusion.nodes.host.trainee import Subject, open_trainee
from comfyui_perfusion.perfusion_core import EncodedPrompts, Training, TrainingSettings
from comfyui_perfusion.perfusion_core.captions import TEMPLATES
from torch import Tensor, nn

from .clock import Times, timed
from .models import photo_encoder

WIDTH = 768
NETWORK, OURS, LOOP = "the network alone", "training", "straightforward loop"


@contextmanager
def training_steps(
    model, clip, vae: RandomVAE, size: int, batch: int, compiler: str | None = None
) -> Iterator[dict[str, Callable[[], Times]]]:
    """Micro-batches of the same photos, templates, noises and timesteps. compiler: a backend of torch.compile."""
    subject = Subject(torch.rand(batch, size, size, 3), None, [TEMPLATES] * batch, "teddy")
    with open_trainee(model, clip, vae, subject) as trainee:
        given = trainee, torch.eye(WIDTH), "<my-toy>", "teddy", "sd1", TrainingSettings(batch_size=batch)
        ours, loop = Training(*given), Straightforward(vae, subject.photos, *given)
        network = model.model.diffusion_model
        compiled = {f"{NETWORK}, compiled": network_alone(Frozen(*given), partial(_compiled, network, compiler))}
        yield {
            NETWORK: network_alone(Frozen(*given)),
            f"{NETWORK}, channels_last": network_alone(Frozen(*given), partial(_channels_last, network)),
            **(compiled if compiler else {}),
            "training without the edit": step(Frozen(*given)),
            OURS: step(ours),
            "a whole step, per micro-batch": whole_step(ours),
            "gradient_checkpointing": step(ours, partial(checkpointed, model.model, clip.cond_stage_model)),
            LOOP: step(loop, loop.hooks),
            f"{LOOP}, UNet checkpointed": step(loop, loop.hooks, partial(checkpointed, model.model)),
        }


def step(training: Training, *around: Callable[[], AbstractContextManager]) -> Callable[[], Times]:
    def run() -> Times:
        training._generator.manual_seed(0)
        with ExitStack() as stack:
            for context in around:
                stack.enter_context(context())
            return timed(lambda: training._micro_batch().backward())

    return run


def network_alone(
    training: Training, around: Callable[[], AbstractContextManager] = nullcontext
) -> Callable[[], Times]:
    """Forward and backward of the diffusion model, of a text that is encoded beforehand and asks for the gradient."""
    training._generator.manual_seed(0)
    with torch.no_grad():
        prompts, _ = training._encode([0] * training.settings.batch_size)
    prompts.encodings.requires_grad_()
    photos, generator = torch.arange(training.settings.batch_size), torch.Generator().manual_seed(0)
    training.trainee.wiring.concepts = None

    def run() -> Times:
        training.trainee.wiring.concepts = None
        with around():
            return timed(lambda: training.trainee.loss(photos, prompts, generator).backward())

    return run


@contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    network.to(memory_format=torch.channels_last)
    yield
    network.to(memory_format=torch.contiguous_format)


@contextmanager
def _compiled(network: nn.Module, backend: str) -> Iterator[None]:
    network.compile(backend=backend)
    yield
    network._compiled_call_impl = None


def whole_step(training: Training) -> Callable[[], Times]:
    def run() -> Times:
        wall, cpu = timed(training.step)
        return wall / training.settings.accumulation, cpu / training.settings.accumulation

    return run


class Frozen(Training):
    """The embedding is trained through the text encoder and the UNet as they are, without an edit."""

    def _concept_set(self, target: Tensor) -> None:
        return None


class Straightforward(Frozen):
    """The same training written down in the simplest way, as earlier open versions have it.

    Every to_k and every to_v, 32 in all, computes for itself C^-1 i*, energy, similarities, gates and W i*, and from
    them its output W e − sim / E W i* + g o. For keys o is W s, for values it is what is trained. The text encoder runs
    once per picture, also where two have the same template. The VAE encodes the photos every time, as in the loops of
    latent-diffusion, on which ChenDarYen's version stands, and in those of diffusers' examples.

    All else is as in ours: C^-1 is given, i* follows once per micro-batch, the network's input asks for no gradient.
    ChenDarYen's version also checkpoints the blocks of the UNet, which is timed apart.
    """

    def __init__(self, vae: RandomVAE, photos: Tensor, *given):
        super().__init__(*given)
        self.vae, self.photos = vae, photos  # as many as a micro-batch has
        outputs = {
            module: F.linear(self.superclass_input, module.weight)
            for pair in self.trainee.wiring.projections.values()
            for module in pair
        }
        trained = {to_v for _, to_v in self.trainee.wiring.projections.values()}
        self.outputs = {module: nn.Parameter(o) if module in trained else o for module, o in outputs.items()}

    def _micro_batch(self) -> Tensor:
        trainee = self.trainee
        trainee._latents = trainee._model.process_latent_in(self.vae.encode(self.photos)).to(trainee._latents)
        return super()._micro_batch()

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
    """As much of SD1.5's as encoding photos takes."""

    def __init__(self, **kind: Any):
        self.encoder = photo_encoder(**kind)

    @torch.no_grad()
    def encode(self, photos: Tensor) -> Tensor:
        moments = self.encoder(2 * photos.movedim(-1, 1).to(next(self.encoder.parameters())) - 1)
        return moments.chunk(2, dim=1)[0].float()
