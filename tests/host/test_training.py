"""Training inside the host, from pictures to a concept file that gives the same picture in a new process."""

import os
import subprocess
import sys
import types
from functools import partialmethod
from pathlib import Path

import comfy.model_management
import pytest
import torch
from comfy.ldm.modules import attention
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from comfyui_perfusion.nodes.host.encoder_covariance import measure_covariance
from comfyui_perfusion.nodes.host.photos import load_photo, prepare_photos
from comfyui_perfusion.nodes.host.trainee import Subject, open_trainee
from comfyui_perfusion.nodes.load import PerfusionSaveConcept
from comfyui_perfusion.nodes.photo_folder import read_folder
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import Training, TrainingSettings, draw_timesteps, load_concept
from comfyui_perfusion.perfusion_core.captions import TEMPLATES, captions

from draw_photos import draw_photos
from makers import train_node

TEDDY = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos" / "teddy"
SETTINGS = TrainingSettings(steps=30, batch_size=2, accumulation=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """IMAGE (n, 64, 64, 3) and MASK (n, 64, 64): real photos when there are some, drawn ones otherwise."""
    folder = TEDDY
    if not folder.is_dir():
        folder = tmp_path_factory.mktemp("drawn")
        draw_photos(folder)
    images, masks, _ = zip(*map(load_photo, read_folder(folder).photos), strict=True)
    return prepare_photos(images, masks, 64)


@pytest.fixture(scope="module")
def metric(models):
    return measure_covariance(models("sd1")[1], list(captions(64)), None)


def subject_of(images, masks, **changes) -> Subject:
    return Subject(
        images, masks, **{"sentences": [TEMPLATES] * len(images), "superclass": "teddy", "flip": True, **changes}
    )


def train(models, photos, metric, settings=SETTINGS, kind="sd1", **memory):
    """(loss on a fixed set before, after, the concept)."""
    with open_trainee(*models(kind), subject_of(*photos), **memory) as trainee:
        training = Training(trainee, metric.inverse(), "<my-teddy>", "teddy", kind, settings)
        before = training.evaluate(draws=2)
        for _ in range(settings.steps):
            training.step()
        return before, training.evaluate(draws=2), training.concept()


def test_thirty_steps_lower_the_loss_and_leave_the_base_model_bit_identical(models, photos, metric):
    model, clip, _ = models("sd1")
    networks = (model.model, clip.cond_stage_model)
    objects = [(parameter, parameter.clone()) for network in networks for parameter in network.parameters()]
    before, after, concept = train(models, photos, metric)
    assert after < 0.9 * before
    assert all(delta.abs().max() > 0 for delta in concept.value_deltas.values())
    now = [parameter for network in networks for parameter in network.parameters()]
    for one, (other, saved) in zip(now, objects, strict=True):
        assert one is other
        assert torch.allclose(one, saved, rtol=0, atol=0, equal_nan=True)  # what the host leaves unset may be NaN
    for network in networks:
        assert all(getattr(m.forward, "__func__", None) is type(m).forward for m in network.modules())


def test_what_is_outside_the_masks_counts_by_the_unmasked_weight(models, photos, metric):
    images, masks = photos

    def loss(masks, **changes) -> float:
        with open_trainee(*models("sd1"), subject_of(images, masks, **changes)) as trainee:
            return Training(trainee, metric.inverse(), "<my-teddy>", "teddy", "sd1", SETTINGS).evaluate(draws=1)

    nothing, third, all_of_it = (loss(masks, unmasked_weight=weight) for weight in (0.0, 0.3, 1.0))
    assert nothing < third < all_of_it
    assert all_of_it == loss(None)


def test_only_timesteps_from_the_least_on_are_trained_on(models, photos, monkeypatch):
    images, masks = photos
    with open_trainee(*models("sd1"), subject_of(images, masks, min_timestep=600)) as trainee:
        sampling = trainee._model.model_sampling
        drawn, scaled = [], sampling.noise_scaling
        monkeypatch.setattr(sampling, "noise_scaling", lambda sigma, *rest: drawn.append(sigma) or scaled(sigma, *rest))
        prompts = trainee.encode([0, 0], trainee.superclass_embeddings())
        trainee.loss(torch.tensor([0, 1]), prompts, torch.Generator().manual_seed(1))
    lower, higher = sorted(drawn[0].flatten().tolist())  # one from each half of what is left
    assert sampling.sigmas[600] <= lower < sampling.sigmas[800] <= higher


@pytest.mark.parametrize("min_timestep", [0, 500, 999])
def test_the_least_timestep_is_a_share_of_the_schedule_whatever_its_length(models, photos, monkeypatch, min_timestep):
    model, clip, vae = models("sd1")
    (model,) = ModelSamplingDiscrete().patch(model, "lcm", zsnr=False)
    images, masks = photos
    subject = subject_of(images, masks, min_timestep=min_timestep)
    with open_trainee(model, clip, vae, subject) as trainee:
        sampling = trainee._model.model_sampling
        assert len(sampling.sigmas) == 50
        drawn, scaled = [], sampling.noise_scaling
        monkeypatch.setattr(sampling, "noise_scaling", lambda sigma, *rest: drawn.append(sigma) or scaled(sigma, *rest))
        prompts = trainee.encode([0] * 8, trainee.superclass_embeddings())
        trainee.loss(torch.arange(8) % len(images), prompts, torch.Generator().manual_seed(1))
    found = (drawn[0].flatten()[:, None] == sampling.sigmas).nonzero()[:, 1]
    assert found.min() >= 50 * min_timestep // 1000
    assert len(found.unique()) == (1 if min_timestep == 999 else 8)


def test_photos_are_scaled_by_the_latent_format_that_a_node_patched_in(models):
    model, clip, vae = models("sdxl")
    (patched,) = ModelSamplingContinuousEDM().patch(model, "edm_playground_v2.5", 120.0, 0.002)
    grey = torch.full((1, 64, 64, 3), 0.5)
    latents = vae.encode(grey)
    for chosen in (patched, model):  # in turn, as the host switches between them
        with open_trainee(chosen, clip, vae, subject_of(grey, None, flip=False)) as trainee:
            want = chosen.get_model_object("latent_format").process_in(latents)
            assert torch.equal(trainee._latents, want)
    assert not torch.equal(patched.get_model_object("latent_format").process_in(latents), want)


def _sage(q, k, v, *args, **kwargs):
    """Gives what attention gives and no way back, as an extension's kernel does."""
    with torch.no_grad():
        return attention.attention_pytorch(q, k, v, *args, **kwargs)


def _flash(q, k, v, *args, **kwargs):
    """Refuses what has a gradient, as an operator without an autograd formula does."""
    if q.requires_grad or k.requires_grad or v.requires_grad:
        raise RuntimeError("no autograd formula was registered")
    return attention.attention_pytorch(q, k, v, *args, **kwargs)


ATTENTIONS = {
    "sage": attention.wrap_attn(_sage),
    "sage, by a node pack": _sage,
    "flash": attention.wrap_attn(_flash),
    "sub-quadratic": attention.attention_sub_quad,
    "split": attention.attention_split,
    "basic": attention.attention_basic,
}


def choose_attention(monkeypatch, function) -> None:
    """As the server's command line, or a node pack, chooses it."""
    monkeypatch.setattr(attention, "optimized_attention", function)
    monkeypatch.setattr(attention, "optimized_attention_masked", function)


def train_a_step(models) -> dict[str, torch.Tensor]:
    grey = torch.full((1, 64, 64, 3), 0.5)
    with open_trainee(*models("sd1"), subject_of(grey, None, flip=False)) as trainee:
        once = TrainingSettings(steps=1, batch_size=1, accumulation=1)
        training = Training(trainee, torch.eye(768), "<my-teddy>", "teddy", "sd1", once)
        training.step()
        return training.concept().tensors()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_training_learns_alike_whatever_attention_the_host_uses(models, monkeypatch, name):
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *more: (2**20, 2**20) if more[1:] else 2**20)
    learned = []
    for function in (attention.attention_pytorch, ATTENTIONS[name]):
        choose_attention(monkeypatch, function)
        learned.append(train_a_step(models))
        assert attention.optimized_attention is attention.optimized_attention_masked is function
    want, got = learned
    for key, tensor in want.items():
        assert torch.allclose(got[key], tensor, rtol=1e-3, atol=1e-3)
        assert tensor.any()


def test_an_attention_that_can_be_trained_through_is_left_to_the_host(models, monkeypatch):
    seen = []

    def split(*args, **kwargs):
        seen.append(True)
        return attention.attention_pytorch(*args, **kwargs)

    monkeypatch.setattr(attention, "attention_split", split)
    choose_attention(monkeypatch, split)
    train_a_step(models)
    assert seen


def test_a_layer_without_a_gradient_is_an_error_and_no_file(models, monkeypatch, model_folder):
    """Where someone has exchanged the very function that PyTorch's attention is made of."""
    real = torch.nn.functional.scaled_dot_product_attention

    def no_backward(*args, **kwargs):
        with torch.no_grad():
            return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", no_backward)
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None))
    choose_attention(monkeypatch, attention.attention_pytorch)
    with pytest.raises(RuntimeError, match=r"parts get no gradient .* value_delta\.input_blocks"):
        train_node(models)
    assert not any(model_folder.rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["sd2", "sd2v", "sdxl"])
def test_every_architecture_and_parameterisation_learns(models, photos, kind):
    metric = measure_covariance(models(kind)[1], list(captions(64)), None)
    one = tuple(part[:1] for part in photos)
    before, after, concept = train(models, one, metric, TrainingSettings(steps=5, batch_size=1, accumulation=1), kind)
    assert after < before
    assert concept.problem() is None


def test_the_same_seed_gives_the_same_concept(models, photos, metric):
    short = TrainingSettings(steps=2, batch_size=1, accumulation=2, seed=3)
    first, second = (train(models, photos, metric, short)[2].tensors() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("kind", ["sd1", "sd2v", "zero terminal SNR"])
def test_the_loss_is_the_textbook_one_for_eps_and_v(models, kind):
    """|network output - eps|^2, or - v = sqrt(a) eps - sqrt(1 - a) x0, at the same noise and timestep."""
    model, clip, vae = models("sd2v" if kind == "sd2v" else "sd1")
    if kind == "zero terminal SNR":
        (model,) = ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=True)
    grey = torch.full((1, 64, 64, 3), 0.5)
    with open_trainee(model, clip, vae, subject_of(grey, None, flip=False)) as trainee:
        prompts = trainee.encode([0], trainee.superclass_embeddings())
        got = trainee.loss(torch.tensor([0]), prompts, torch.Generator().manual_seed(5))
        generator, sampling = torch.Generator().manual_seed(5), model.model.model_sampling
        if kind == "zero terminal SNR":
            assert sampling.sigmas[-1] > 1000
        timestep = draw_timesteps(1, len(sampling.sigmas), generator)
        noise = torch.randn(trainee._latents.shape, generator=generator)
        alpha = 1 / (1 + sampling.sigmas[timestep] ** 2)
        noisy = alpha.sqrt() * trainee._latents + (1 - alpha).sqrt() * noise
        output = model.model.diffusion_model(noisy, timestep.float(), context=prompts.encodings)
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * trainee._latents if kind != "sd1" else noise
        assert torch.allclose(got, ((output - target) ** 2).mean(), rtol=1e-4)


def test_the_node_saves_a_file_that_gives_the_same_picture_in_a_new_process(
    wide_models, photos, metric, model_folder, monkeypatch, tmp_path
):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None))
    monkeypatch.setattr("comfyui_perfusion.nodes.host.trainee._SAMPLING_STEPS", 3)
    monkeypatch.setattr(Training, "evaluate", partialmethod(Training.evaluate, draws=1))  # as good as more here
    model, clip, vae = wide_models("sd1")
    images, masks = (part[:2] for part in photos)
    trained = PerfusionTrainConcept.execute(
        [model], [clip], [vae], [images], trigger=["<my-teddy>"], superclass=["teddy bear"], steps=[2], seed=[0],
        resolution=[64], batch_size=[1], accumulation=[1], masks=[masks], covariance=[metric],
        previews=["a photo of {}\n{} on the beach"],
    )  # fmt: skip
    concept, last, sheet, curve, report = trained.args
    assert torch.equal(last[0].concept.target_input, concept[0].concept.target_input)
    assert curve.shape == (1, 400, 720, 3)
    assert sheet.shape[2] > 2 * 256
    assert "2 steps" in report
    assert "locked to 'bear', the last token of 'teddy bear'" in report
    saved = Path(PerfusionSaveConcept.execute(concept, "my-teddy", overwrite=False).args[0])
    assert saved.parent == model_folder
    assert saved.stat().st_size < 60 * 1024
    assert load_concept(saved).metadata["training"].startswith("{")
    comfy.model_management.unload_all_models()
    program = str(Path(__file__).with_name("sample_once.py"))
    command = [sys.executable, program, str(saved), str(tmp_path / "new.pt"), "sd1"]
    subprocess.run(command, check=True, env=os.environ, capture_output=True)
    from sample_once import sample_with

    assert torch.equal(torch.load(tmp_path / "new.pt", weights_only=True), sample_with(saved, wide_models("sd1")))
