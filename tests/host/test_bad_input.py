"""What users see when something is wrong, and what is left of their work and their models afterwards."""

import dataclasses
import os
import types

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfyui_perfusion.nodes.covariance import PerfusionCovariance
from comfyui_perfusion.nodes.host.model import cross_attentions
from comfyui_perfusion.nodes.host.trainable import trainable_through
from comfyui_perfusion.nodes.host.trainee import Subject, open_trainee
from comfyui_perfusion.nodes.load import PerfusionLoader
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import Concept, load_concept, save_concept
from comfyui_perfusion.perfusion_core.captions import TEMPLATES
from safetensors.torch import load_file, save_file

from makers import random_covariance, train_node

CANCEL = comfy.model_management.InterruptProcessingException


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch, model_folder):
    for node in (PerfusionTrainConcept, PerfusionCovariance):
        monkeypatch.setattr(node, "hidden", types.SimpleNamespace(unique_id=None))


def concept_for(model, width: int = 768, embeddings=(("l", 768),)) -> Concept:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(width, generator=generator)
    return Concept(
        name="toy",
        trigger="<my-toy>",
        superclass="teddy",
        base_model={768: "sd1", 1024: "sd2", 2048: "sdxl"}[width],
        token_embeddings={name: torch.randn(wide, generator=generator) for name, wide in embeddings},
        target_input=target,
        target_dual=target / width,
        superclass_input=torch.randn(width, generator=generator),
        value_deltas={layer: torch.randn(m.to_v.out_features) for layer, m in cross_attentions(model).items()},
    )


def load(model, clip, name: str = "toy.safetensors"):
    return PerfusionLoader.execute(model, clip, name, beta=0.6, temperature=0.15, key_lock=0.0, strength=1.0)


def change_tensors(path, **changes):
    """Writes the concept file again with other tensors; None takes one out."""
    tensors = {**load_file(path), **changes}
    metadata = {"format": "perfusion-concept", "format_version": "1", "name": "toy", "trigger": "<my-toy>",
                "superclass": "teddy", "base_model": "sd1"}  # fmt: skip
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata)


DAMAGE = {
    "missing": (lambda path: path.unlink(), "Put the file there"),
    "empty": (lambda path: path.write_bytes(b""), "Copy or download it again"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "Copy or download it again"),
    "a pickle": (lambda path: torch.save({"a": torch.ones(1)}, path), "Copy or download it again"),
    "a LoRA": (lambda path: save_file({"lora_up.weight": torch.ones(2, 2)}, path), "Load it with the node made for it"),
    "newer": (
        lambda path: save_file({"a": torch.ones(1)}, path, {"format": "perfusion-concept", "format_version": "3"}),
        "Update ComfyUI-Perfusion",
    ),
    "NaN": (lambda path: change_tensors(path, target_dual=torch.full((768,), torch.nan)), "anew"),
    "no dual": (lambda path: change_tensors(path, target_dual=None), "anew"),
    "a matrix": (lambda path: change_tensors(path, superclass_input=torch.ones(2, 768)), "anew"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unusable_concept_file_is_named_with_what_to_do(models, model_folder, damage):
    model, clip, _ = models("sd1")
    path = model_folder / "toy.safetensors"
    save_concept(concept_for(model), path)
    spoil, advice = DAMAGE[damage]
    spoil(path)
    with pytest.raises(ValueError, match=rf"toy\.safetensors.*{advice}"):
        load(model, clip)


def test_a_concept_whose_tensors_were_only_rewritten_still_loads(models, model_folder):
    """So that the damage above is what is refused."""
    model, clip, _ = models("sd1")
    save_concept(concept_for(model), model_folder / "toy.safetensors")
    change_tensors(model_folder / "toy.safetensors")
    assert load(model, clip).args[0].model is model.model


def other_layers(concept: Concept, change) -> Concept:
    deltas = dict(concept.value_deltas)
    change(deltas, min(deltas))
    return concept.replace(value_deltas=deltas)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: concept_for(model, 1024, [("h", 1024)]), "'toy' was trained for sd2 .*is sd1 .*Load a sd2"),
        (lambda model: concept_for(model, 2048, [("l", 768), ("g", 1280)]), "'toy' was trained for sdxl"),
        (
            lambda model: other_layers(concept_for(model), lambda deltas, layer: deltas.pop(layer)),
            "lacks 1 of the model's .* layers, such as input_blocks",
        ),
        (
            lambda model: other_layers(concept_for(model), lambda deltas, _: deltas.update({"x.attn2": torch.ones(8)})),
            "1 layers more than the model, such as x.attn2",
        ),
        (
            lambda model: other_layers(concept_for(model), lambda deltas, name: deltas.update({name: torch.ones(8)})),
            "value output for input_blocks.* has 8 numbers, the layer has 64",
        ),
        (
            lambda model: (c := concept_for(model)).replace(
                key_outputs={layer: torch.ones(len(delta) + 1) for layer, delta in c.value_deltas.items()}
            ),
            "key output for input_blocks.* has 65 numbers, the layer has 64",
        ),
        (lambda model: concept_for(model, 768, [("h", 768)]), r"encoders h \(768 wide\).*this CLIP has l \(768 wide\)"),
        (lambda model: concept_for(model, 768, [("l", 700)]), r"encoders l \(700 wide\).*Connect the CLIP of a sd1"),
    ],
    ids=[
        "sd2",
        "sdxl",
        "lacks a layer",
        "more layers",
        "other width",
        "other keys",
        "other encoder",
        "other embedding",
    ],
)
def test_a_concept_that_does_not_fit_says_why(models, model_folder, make, message):
    model, clip, _ = models("sd1")
    save_concept(make(model), model_folder / "toy.safetensors")
    with pytest.raises(ValueError, match=message):
        load(model, clip)


def without_text() -> types.SimpleNamespace:
    """A MODEL around a network of no known family."""
    network = torch.nn.Module()
    network.diffusion_model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    return types.SimpleNamespace(model=network, clone=lambda: pytest.fail("it was used"))


def test_a_model_of_no_known_family_is_refused(models, model_folder):
    model, clip, _ = models("sd1")
    save_concept(concept_for(model), model_folder / "toy.safetensors")
    with pytest.raises(ValueError, match=r"LTX-Video, .* This one is Module"):
        load(without_text(), clip)
    with pytest.raises(ValueError, match=r"LTX-Video, .* This one is Module"):
        train_node(models, model=[without_text()])


def test_other_text_encoders_are_refused(models, model_folder):
    model, _, _ = models("sd1")
    save_concept(concept_for(model), model_folder / "toy.safetensors")
    tokenizer = types.SimpleNamespace(tokenize_with_weights=lambda _: {"llama": [[]]})
    clip = types.SimpleNamespace(tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"SD1.x, .*LTX-Video, PixArt, .*Flux 2 Klein and SD3; this one has llama"):
        load(model, clip)
    with pytest.raises(ValueError, match="this one has llama"):
        train_node(models, clip=[clip])


@pytest.mark.parametrize("missing", ["clip", "vae"])
def test_a_checkpoint_without_text_encoder_or_vae_is_explained(models, model_folder, missing):
    """The host's loader hands on None for what a file does not hold."""
    model, _, _ = models("sd1")
    if missing == "clip":
        save_concept(concept_for(model), model_folder / "toy.safetensors")
        with pytest.raises((ValueError, RuntimeError), match="CLIP"):
            load(model, None)
    with pytest.raises((ValueError, RuntimeError), match=missing.upper()):
        train_node(models, **{missing: [None]})


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails when work begins: whatever is wrong with the inputs is said before anybody waits."""

    def work(*_, **__):
        pytest.fail("work began before the inputs were checked")

    monkeypatch.setattr("comfyui_perfusion.nodes.train.cached_covariance", work)
    monkeypatch.setattr("comfyui_perfusion.nodes.train.open_trainee", work)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("trigger", ["", "  ", "my toy", "(toy)", "[toy]", "<toy:1>", "toy,", 'toy"', "to\\y", "{toy}"])
def test_a_trigger_that_prompts_cannot_hold_is_refused_at_once(models, trigger):
    with pytest.raises(ValueError, match=r"trigger .*use one such as <my-teddy>"):
        train_node(models, trigger=[trigger])


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("trigger", ["cat", "Cat", " cat ", "teddy", "a", "photo"])
def test_a_trigger_that_is_a_known_word_is_refused_at_once(models, trigger):
    with pytest.raises(ValueError, match=rf"'{trigger.strip()}' is a word .* such as <{trigger.strip()}>"):
        train_node(models, trigger=[trigger])


def test_a_trigger_that_the_training_sentences_hold_is_learned_in_its_own_place(models):
    grey = [torch.full((1, 64, 64, 3), 0.5)]
    ((use,), *_) = train_node(models, trigger=["close-up"], images=grey).args
    assert use.concept.trigger == "close-up"
    ((other,), *_) = train_node(models, trigger=["<my-toy>"], images=grey).args
    assert torch.equal(use.concept.target_input, other.concept.target_input)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"superclass": [""]}, "The superclass is empty"),
        ({"superclass": [" \n"]}, "The superclass is empty"),
        ({"covariance": [random_covariance(1024)]}, "covariance is 1024 wide, this model's text encoding 768"),
        ({"images": []}, "There are no photos"),
        ({"masks": [torch.ones(2, 64, 64)]}, "2 masks for 1 photos"),
        ({"masks": [torch.zeros(1, 64, 64)]}, "mask of photo 1 is empty"),
    ],
    ids=["no superclass", "blank superclass", "covariance", "no photos", "too many masks", "empty masks"],
)
def test_inputs_that_do_not_belong_together_are_refused_at_once(models, inputs, message):
    with pytest.raises(ValueError, match=message):
        train_node(models, **inputs)


def test_an_inpainting_model_is_refused(models, monkeypatch):
    model, _, _ = models("sd1")
    monkeypatch.setattr(model.model, "concat_keys", ("mask", "masked_image"))
    with pytest.raises(ValueError, match=r"inpainting.*Train on the base checkpoint"):
        train_node(models)


def test_a_model_of_more_channels_than_latents_have_is_refused(models, monkeypatch):
    """As those are that edit, upscale or make videos."""
    model, _, _ = models("sd1")
    monkeypatch.setitem(model.model.model_config.unet_config, "in_channels", 8)
    with pytest.raises(ValueError, match=r"takes 8 channels, not 4.*Train on the base checkpoint"):
        train_node(models)


class Quantised(torch.Tensor):
    pass


def test_quantised_weights_are_refused_and_left_as_they_were():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    weight = torch.nn.Parameter(torch.ones(2, 2).as_subclass(Quantised), requires_grad=False)
    network[1].weight = weight
    before = list(network.parameters())
    with pytest.raises(TypeError, match=r"quantised model .*Quantised.*fp16, bf16 or fp32"), trainable_through(network):
        pytest.fail("it was opened")
    assert all(one is other for one, other in zip(before, network.parameters(), strict=True))
    assert network[1].weight is weight


@pytest.fixture
def untouched(models):
    """Checks that model and text encoder end with the same parameter objects, bits and forwards."""
    model, clip, _ = models("sd1")
    networks = (model.model, clip.cond_stage_model)

    def tensors():
        return {
            (i, name): tensor
            for i, network in enumerate(networks)
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        }

    before = tensors()
    copies = {name: tensor.clone() for name, tensor in before.items()}
    yield
    after = tensors()
    assert after.keys() == before.keys()
    assert [name for name, tensor in after.items() if tensor is not before[name]] == []
    # the host leaves weights that no checkpoint holds uninitialised, some are NaN
    assert [name for name, t in after.items() if not torch.allclose(t, copies[name], 0, 0, equal_nan=True)] == []
    for module in (module for network in networks for module in network.modules()):
        assert getattr(module.forward, "__func__", None) is type(module).forward
    assert torch.is_inference_mode_enabled()


def after_step(monkeypatch, number: int, act) -> None:
    """Calls act once the node has shown this step as done."""

    def update(_, value, *__):
        if value == number:
            act()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)


def kept(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("steps", [4, 2], ids=["in the middle", "in the last evaluation"])
def test_a_cancelled_training_keeps_what_was_learned(models, model_folder, monkeypatch, steps):
    after_step(monkeypatch, 2, comfy.model_management.interrupt_current_processing)
    with pytest.raises(CANCEL):
        train_node(models, steps=[steps])
    assert kept(model_folder)[1:] == ["my-toy-unfinished.safetensors"]  # the first is the state of its training
    concept = load_concept(model_folder / "my-toy-unfinished.safetensors")
    assert all(delta.abs().max() > 0 for delta in concept.value_deltas.values())
    assert load(*models("sd1")[:2], "my-toy-unfinished.safetensors").args[0].model is models("sd1")[0].model
    assert not comfy.model_management.processing_interrupted()


@pytest.mark.usefixtures("untouched")
def test_a_training_cancelled_before_its_first_step_leaves_no_file(models, model_folder):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(CANCEL):
        train_node(models)
    assert kept(model_folder) == []


@pytest.mark.parametrize("trigger", ["<what?>", "<../toy>", "<covariance/x>"])
def test_what_was_learned_is_kept_whatever_the_trigger(models, model_folder, monkeypatch, trigger):
    after_step(monkeypatch, 1, comfy.model_management.interrupt_current_processing)
    with pytest.raises(CANCEL):
        train_node(models, trigger=[trigger])
    (path,) = model_folder.glob("*.safetensors")
    assert load_concept(path).trigger == trigger


def test_a_full_disk_does_not_hide_the_cancel(models, model_folder, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    after_step(monkeypatch, 1, comfy.model_management.interrupt_current_processing)
    with pytest.raises(CANCEL):
        train_node(models)
    assert kept(model_folder) == []
    assert "No space left" in caplog.text


@pytest.mark.usefixtures("untouched")
def test_an_error_while_training_keeps_what_was_learned(models, model_folder, monkeypatch):
    def out_of_memory():
        raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    after_step(monkeypatch, 2, out_of_memory)
    with pytest.raises(RuntimeError, match=r"at 64x64 pixels with 1 photos.*low_memory.*my-toy-unfinished"):
        train_node(models, steps=[3])
    assert kept(model_folder)[1:] == ["my-toy-unfinished.safetensors"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("value", [torch.nan, 1e30])
def test_latents_that_are_no_numbers_end_the_training_with_advice(models, model_folder, monkeypatch, value):
    vae = models("sd1")[2]
    monkeypatch.setattr(vae, "encode", lambda _: torch.full((1, 4, 8, 8), value))
    with pytest.raises((FloatingPointError, ValueError), match=r"fp32 or bf16|VAE"):
        train_node(models)
    assert kept(model_folder) == []


@pytest.mark.usefixtures("untouched")
def test_a_training_that_diverges_keeps_what_was_learned_before(models, model_folder, monkeypatch):
    model, _, _ = models("sd1")
    module = next(iter(cross_attentions(model).values())).to_q
    handles = []

    def spoil():
        handles.append(module.register_forward_hook(lambda *_: torch.full_like(_[2], torch.nan)))

    after_step(monkeypatch, 2, spoil)
    try:
        with pytest.raises(FloatingPointError, match=r"step 3 .*lower the learning rates"):
            train_node(models, steps=[4])
    finally:
        for handle in handles:
            handle.remove()
    concept = load_concept(model_folder / "my-toy-unfinished.safetensors")
    assert concept.problem() is None


@pytest.mark.usefixtures("untouched")
def test_models_are_as_before_after_any_error_inside_the_training(models):
    subject = Subject(torch.rand(1, 64, 64, 3), None, [TEMPLATES], "teddy", flip=True)
    with pytest.raises(ZeroDivisionError), open_trainee(*models("sd1"), subject, checkpointing=True) as it:
        module = next(iter(it.wiring.projections.values()))[0]
        assert "forward" in module.__dict__
        assert not any(parameter.is_inference() for parameter in models("sd1")[0].model.parameters())
        raise ZeroDivisionError
    nameless = dataclasses.replace(subject, superclass="")
    with pytest.raises(ValueError, match="superclass"), open_trainee(*models("sd1"), nameless):
        pytest.fail("it was opened")
