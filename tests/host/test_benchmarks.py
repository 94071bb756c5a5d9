"""What the benchmarks measure is what they say: the same work done in two ways, and memory as it is."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comfyui_perfusion.nodes.host.trainee import Subject, open_trainee
from comfyui_perfusion.perfusion_core import Training, TrainingSettings

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import memory
from memory import Live, micro_batch, on_meta
from speed.training import WIDTH, Frozen, RandomVAE, Straightforward

from random_checkpoint import SHALLOW_TEXT


def test_the_straightforward_loop_computes_the_same_loss_and_gradients(models):
    model, clip, _ = models("sd1")
    subject, vae = (
        Subject(torch.rand(2, 64, 64, 3), None, [["a photo of a {}", "a {}"]] * 2, "teddy"),
        RandomVAE(channels=32),
    )
    with open_trainee(model, clip, vae, subject) as trainee:
        settings = TrainingSettings(batch_size=2, target_gradient=False)  # the loop has no i* to learn through
        given = trainee, torch.eye(WIDTH), "<my-toy>", "teddy", "sd1", settings
        ours, loop, frozen = Training(*given), Straightforward(vae, subject.photos, *given), Frozen(*given)
        generator = torch.Generator().manual_seed(0)
        for layer, (_, to_v) in trainee.wiring.projections.items():
            ours.value_deltas[layer].data.normal_(generator=generator)
            loop.outputs[to_v].data += ours.value_deltas[layer].data
        losses = []
        for training in (ours, loop, frozen):
            with loop.hooks() if training is loop else nullcontext():
                loss = training._micro_batch()
                loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        assert losses[2] != pytest.approx(losses[0], rel=1e-2)
        for layer, (_, to_v) in trainee.wiring.projections.items():
            torch.testing.assert_close(loop.outputs[to_v].grad, ours.value_deltas[layer].grad, rtol=1e-2, atol=1e-6)
        for name, embedding in ours.token_embeddings.items():
            torch.testing.assert_close(loop.token_embeddings[name].grad, embedding.grad, rtol=1e-2, atol=1e-6)


@torch.inference_mode(False)
def test_two_layers_keep_what_one_counts_by_hand():
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).requires_grad_(False)
    x = torch.randn(5, 8, requires_grad=True)
    with torch.enable_grad(), Live(network) as live:
        y = network(x).sum()
        assert live.now == 4 * (5 * 16 + 1)  # what ReLU gave, and y
        assert live.peak == 4 * (5 * 16 + 5 * 16)  # while ReLU was at work
        y.backward()
        del y
        assert live.now == 4 * 5 * 8  # the gradient of x


@pytest.fixture(scope="module")
def contentless(wide_models):
    """The small SD1.5 made of meta tensors."""
    return on_meta(wide_models("sd1")[0].model.model_config, SHALLOW_TEXT)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tensors_without_contents_need_what_real_ones_do(wide_models, contentless, monkeypatch, checkpointing):
    computed = micro_batch(*contentless, 128, 2, checkpointing)
    monkeypatch.setattr(memory, "fused_attention", F.scaled_dot_product_attention)
    measured = micro_batch(*wide_models("sd1")[:2], 128, 2, checkpointing)
    assert computed.weights == measured.weights
    for part in ("text", "kept", "peak"):
        assert getattr(computed, part) == pytest.approx(getattr(measured, part), rel=0.001)


def test_what_is_kept_is_what_autograd_saves(contentless):
    model, clip = contentless
    weights = {
        id(p.untyped_storage()) for network in (model.model, clip.cond_stage_model) for p in network.parameters()
    }
    saved = {}

    def save(tensor):
        saved[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        need = micro_batch(model, clip, 128, 2, checkpointing=False)
    size = sum(storage.nbytes() for key, storage in saved.items() if key not in weights)
    assert need.kept == pytest.approx(size, rel=0.01)


def test_what_is_kept_grows_with_the_pixels_and_not_with_their_pairs(contentless):
    small, large = (micro_batch(*contentless, size, 1, checkpointing=False) for size in (256, 512))
    assert large.kept - large.text < 4.1 * (small.kept - small.text)
