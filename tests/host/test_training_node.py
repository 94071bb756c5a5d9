"""Perfusion Train Concept as a user runs it: what it shows, how it stops and goes on, what it chooses."""

import contextlib
import json
import logging
import types
from copy import deepcopy
from functools import partialmethod
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import open_clip
import pytest
import torch
from comfyui_perfusion.nodes.host import trainee
from comfyui_perfusion.nodes.host.files import training_path
from comfyui_perfusion.nodes.host.model import apply_to_model, cross_attentions
from comfyui_perfusion.nodes.host.text import apply_to_clip
from comfyui_perfusion.nodes.host.thumbnail import decoded
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.load import PerfusionSaveConcept
from comfyui_perfusion.nodes.train import PerfusionTrainConcept, _settings
from comfyui_perfusion.perfusion_core import Training, load_concept, load_training, save_concept
from comfyui_perfusion.perfusion_core.concept_file import edit_metadata
from comfyui_perfusion.perfusion_core.training_file import digest
from PIL import Image
from safetensors.torch import save_file

from makers import assert_learns_and_paints, make_concept, train_node
from random_checkpoint import load_narrow
from test_model import sample

CANCEL = comfy.model_management.InterruptProcessingException
PHOTOS = [torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))]


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch, model_folder):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id=None))
    monkeypatch.setattr(trainee, "_SAMPLING_STEPS", 3)
    monkeypatch.setattr(Training, "evaluate", partialmethod(Training.evaluate, draws=1))  # as good as more here


@pytest.fixture
def shown(monkeypatch):
    """What the progress bar was given: (done, of how many)."""
    seen = []

    def update(bar, done, total=None, preview=None):
        seen.append((done, total))

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    return seen


def cancel_after(monkeypatch, step: int) -> None:
    def update(bar, done, *_):
        if done == step:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)


def saved(trained, name: str) -> Path:
    """The file of the last concept."""
    return Path(PerfusionSaveConcept.execute(trained.args[1], name, overwrite=False).args[0])


def state_of(concept: Path) -> Path:
    return training_path(load_concept(concept), concept)


def same(a, b) -> bool:
    return all(torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items())


@pytest.fixture
def told(monkeypatch):
    """What the page was told of the training."""
    seen = []
    monkeypatch.setattr("comfyui_perfusion.nodes.run.listener", lambda: lambda event, data: seen.append(deepcopy(data)))
    monkeypatch.setattr("comfyui_perfusion.nodes.run._TELL_EVERY", 0)
    return seen


def test_one_bar_counts_steps_and_the_page_gets_pictures(models, shown, told):
    _, _, sheet, curve, report = train_node(
        models, images=PHOTOS, steps=[4], checkpoint_every=[2], previews=["a photo of {}\n<my-toy> on the beach"]
    ).args
    assert {total for _, total in shown} == {4}
    done = [done for done, _ in shown]
    assert done == sorted(done)
    assert done[-1] == 4
    assert [(data["done"], len(data["rows"])) for data in told] == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3)]
    assert [row["step"] for row in told[-1]["rows"]] == [0, 2, 4]
    temp = Path(folder_paths.get_temp_directory())
    pictures = [Image.open(temp / image["filename"]).size for row in told[-1]["rows"] for image in row["images"]]
    assert pictures == [(192, 192)] * 6  # 64 pixels wide, and large enough to judge
    assert told[0]["left"] is None and told[-1]["left"] == 0 and all(data["left"] > 0 for data in told[1:-1])
    cell = 256 + 6
    height, width = sheet.shape[1] - 4 * cell, sheet.shape[2] - 2 * cell  # photos, steps 0, 2 and 4
    assert 0 < height < cell and 0 < width < cell  # what is left is labels
    assert curve.shape == (1, 400, 720, 3)
    assert "4 steps on 2 photos at 64x64" in report
    assert "lowest loss" in report
    assert [line.split()[0] for line in report.splitlines()[-3:]] == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("superclass", "words"),
    [("Teddy", "locked to 'teddy'."), ("teddy bear", "'bear', the last token of 'teddy bear'.")],
)
def test_the_report_names_the_locked_word_and_warns_of_mirrored_photos(models, superclass, words):
    *_, report = train_node(models, superclass=[superclass], flip=[True]).args
    assert words in report
    assert "train again with flip off" in report


def test_the_best_concept_is_the_one_with_the_lowest_loss(models):
    best, last, _, _, report = train_node(
        models, images=PHOTOS, steps=[6], checkpoint_every=[1], learning_rate_values=[0.9]
    ).args
    losses = {int(step): float(loss) for step, loss in map(str.split, report.splitlines()[-7:])}
    del losses[0]
    lowest = min(losses, key=losses.get)
    assert best[0].concept.metadata["steps"] == str(lowest)
    assert last[0].concept.metadata["steps"] == "6"
    assert f"Best: step {lowest}" in report
    assert same(best[0].concept, last[0].concept) == (lowest == 6)


def test_previews_and_checkpoints_do_not_change_what_is_learned(models, model_folder):
    plain = saved(train_node(models, images=PHOTOS, steps=[3], checkpoint_every=[50]), "a")
    busy = saved(train_node(models, images=PHOTOS, steps=[3], checkpoint_every=[1], previews=["a {}"]), "a")
    assert same(load_concept(plain), load_concept(busy))


def test_a_model_with_other_concepts_is_trained_on_as_without_them(models):
    model, clip, _ = models("sd1")
    uses = [ConceptUse(make_concept(model, clip, "<my-cup>", "cup"))]
    patched = {"model": [apply_to_model(model, uses)], "clip": [apply_to_clip(clip, uses)]}
    inputs = {"images": PHOTOS, "previews": ["a {}"]}
    plain, other = (train_node(models, **inputs, **change).args[1][0].concept for change in ({}, patched))
    assert same(plain, other)


def test_the_first_sample_is_the_thumbnail(models, model_folder):
    samples = {"images": PHOTOS, "steps": [1], "previews": ["a {}\n{} in the snow"]}
    best, last = (use.concept.metadata for (use,) in train_node(models, **samples).args[:2])
    assert decoded(best)[8:12] == decoded(last)[8:12] == b"WEBP"
    assert decoded(train_node(models, images=PHOTOS, steps=[1]).args[0][0].concept.metadata) is None


def test_the_same_seed_gives_the_same_file(models):
    first, second = (saved(train_node(models, images=PHOTOS), name) for name in ("one/toy", "two/toy"))
    assert first.read_bytes() == second.read_bytes()
    assert state_of(first).read_bytes() == state_of(second).read_bytes()


def test_by_the_cosine_schedule_a_concept_moves_less(models):
    constant, cosine = (
        train_node(models, images=PHOTOS, steps=[5], learning_rate_schedule=[schedule]).args[1][0].concept
        for schedule in ("constant", "cosine")
    )
    assert json.loads(cosine.metadata["training"])["learning_rate_schedule"] == "cosine"
    assert all(delta.norm() < constant.value_deltas[layer].norm() for layer, delta in cosine.value_deltas.items())


def test_key_freedom_is_learned_with_and_in_the_file(models):
    locked, freer = (train_node(models, images=PHOTOS, key_freedom=[freedom]) for freedom in (0.0, 0.5))
    files = load_concept(saved(locked, "locked")), load_concept(saved(freer, "freer"))
    assert not same(*files)
    assert [file.key_freedom for file in files] == [0, 0.5]


def test_a_cancelled_training_goes_on_as_if_it_had_never_stopped(models, model_folder, monkeypatch):
    inputs = {"images": PHOTOS, "steps": [5], "checkpoint_every": [2]}
    whole = saved(train_node(models, **inputs), "whole/toy")
    with monkeypatch.context() as patch:
        cancel_after(patch, 3)
        with pytest.raises(CANCEL):
            train_node(models, **inputs)
    unfinished = model_folder / "my-toy-unfinished.safetensors"
    assert load_concept(unfinished).metadata["steps"] == "3"
    before = unfinished.read_bytes()
    resumed = train_node(models, continue_from=[unfinished.name], **inputs)
    assert "continued from step 3" in resumed.args[4]
    assert saved(resumed, "resumed/toy").read_bytes() == whole.read_bytes()
    assert state_of(model_folder / "resumed/toy.safetensors").read_bytes() == state_of(whole).read_bytes()
    assert unfinished.read_bytes() == before  # what was there before is never replaced
    assert sorted(path.name for path in model_folder.glob("*.safetensors")) == [unfinished.name]


def test_the_best_checkpoint_survives_a_pause(models, model_folder, monkeypatch):
    monkeypatch.setattr(Training, "evaluate", lambda training: abs(len(training.losses) - 2) + 1.0)  # best after two
    inputs = {"images": PHOTOS, "checkpoint_every": [1]}
    whole = train_node(models, steps=[5], **inputs).args[0][0].concept
    assert whole.metadata["steps"] == "2"
    saved(train_node(models, steps=[4], **inputs), "toy")
    resumed = train_node(models, steps=[5], continue_from=["toy.safetensors"], **inputs).args[0][0].concept
    assert same(resumed, whole)
    assert resumed.metadata == whole.metadata


def test_a_finished_training_can_be_made_longer(models, model_folder):
    short = saved(train_node(models, images=PHOTOS, steps=[1]), "toy")
    longer = train_node(models, images=PHOTOS, steps=[3], continue_from=[short.name])
    whole = train_node(models, images=PHOTOS, steps=[3])
    assert same(longer.args[1][0].concept, whole.args[1][0].concept)


def test_a_concept_with_another_trigger_is_trained_on_exactly(models, model_folder, caplog):
    path = saved(train_node(models, images=PHOTOS, steps=[1]), "toy")
    edit_metadata(path, {"trigger": "<my-bear>"})
    with caplog.at_level(logging.WARNING):
        longer = train_node(models, images=PHOTOS, steps=[3], trigger=["<my-bear>"], continue_from=["toy.safetensors"])
    assert not caplog.text
    assert same(longer.args[1][0].concept, train_node(models, images=PHOTOS, steps=[3]).args[1][0].concept)


def test_without_its_training_state_a_concept_is_trained_on_with_a_fresh_optimizer(models, model_folder, caplog):
    trained = train_node(models, images=PHOTOS, steps=[2])
    path = Path(PerfusionSaveConcept.execute(trained.args[1], "toy", overwrite=False, keep_training=False).args[0])
    assert not state_of(path).exists()
    with caplog.at_level(logging.WARNING):
        longer = train_node(models, images=PHOTOS, steps=[1], continue_from=["toy.safetensors"])
    assert "fresh optimizer" in caplog.text
    was, now = load_concept(path), longer.args[1][0].concept
    moved = max((now.value_deltas[layer] - delta).abs().max() for layer, delta in was.value_deltas.items())
    assert 0.02 < moved < 0.04  # one step of Adam from there


def test_a_training_state_of_another_concept_is_not_used(models, model_folder, caplog):
    path = saved(train_node(models, images=PHOTOS, steps=[2]), "toy")
    state = state_of(path)
    save_concept(train_node(models, images=PHOTOS, seed=[1]).args[1][0].concept, path)
    state.rename(state_of(path))
    train_node(models, images=PHOTOS, steps=[1], continue_from=["toy.safetensors"])
    assert "belongs to another concept" in caplog.text


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_whenever_saving_is_cut_short_the_concept_there_has_its_own_state(models, model_folder, monkeypatch, cut_at):
    """As by a kill, or a disk that is full."""
    first, second = (train_node(models, images=PHOTOS, seed=[seed]) for seed in (0, 1))
    path = saved(first, "toy")
    changes = []

    def replace(source, target, plain=Path.replace):
        changes.append(target)
        if len(changes) == cut_at:
            raise OSError("cut short")
        return plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with contextlib.suppress(RuntimeError):
            PerfusionSaveConcept.execute(second.args[1], "toy", overwrite=True)
    there = load_concept(path)
    assert digest(there) == digest((first, first, second)[cut_at - 1].args[1][0].concept)
    assert load_training(state_of(path), there)["losses"].numel() == 2
    assert len(list(state_of(path).parent.iterdir())) == (2 if cut_at == 2 else 1)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"trigger": ["<other>"]}, r"toy\.safetensors is <my-toy>, a teddy"),
        ({"superclass": ["bear"]}, r"Write that trigger and superclass"),
        ({"steps": [2]}, "trained for 2 steps already. Set steps higher"),
        ({"key_freedom": [0.5]}, "Set key_freedom to 0"),
        ({"continue_from": ["../../gone.safetensors"]}, "There is no concept"),
    ],
)
def test_a_training_that_cannot_be_continued_says_why(models, model_folder, inputs, message):
    saved(train_node(models), "toy")
    with pytest.raises(ValueError, match=message):
        train_node(models, **{"continue_from": ["toy.safetensors"], "steps": [9], **inputs})


def test_a_concept_with_keys_of_its_own_is_not_continued(models, model_folder):
    concept = make_concept(*models("sd1")[:2])
    save_concept(concept.replace(key_outputs=concept.value_deltas), model_folder / "imported.safetensors")
    with pytest.raises(ValueError, match=r"imported\.safetensors was imported.* continue_from"):
        train_node(models, continue_from=["imported.safetensors"], steps=[9])


def test_a_linked_continue_from_does_not_train_anew_on_every_run():
    """The host does not know the name yet when it asks."""
    assert PerfusionTrainConcept.fingerprint_inputs(continue_from=[None]) == PerfusionTrainConcept.fingerprint_inputs()


def test_gradient_checkpointing_learns_the_same(models):
    plain, other = (
        train_node(models, images=PHOTOS, batch_size=[2], gradient_checkpointing=[choice]).args[1][0].concept
        for choice in ("off", "on")
    )
    assert same(plain, other)


@pytest.mark.parametrize(
    ("choice", "large", "low_memory", "expected"),
    [
        ("auto", True, False, True),
        ("auto", False, False, False),
        ("off", True, False, False),
        ("on", False, False, True),
        ("off", False, True, True),
    ],
)
def test_gradient_checkpointing_is_chosen_by_the_size_of_the_model(choice, large, low_memory, expected):
    options = {"gradient_checkpointing": choice, "low_memory": low_memory}
    assert _settings(options, large)[1] == expected


def test_low_memory_takes_one_photo_at_a_time_and_as_many_as_before(models):
    concept = train_node(models, images=PHOTOS, batch_size=[3], accumulation=[2], low_memory=[True]).args[1][0].concept
    settings = json.loads(concept.metadata["training"])
    assert (settings["batch_size"], settings["accumulation"]) == (1, 6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_arithmetic_in_half_precision_learns_nearly_the_same(models, precision):
    plain = train_node(models, images=PHOTOS).args[1][0].concept
    other = train_node(models, images=PHOTOS, precision=[precision]).args[1][0].concept
    assert not same(plain, other)
    deltas = [torch.cat(list(concept.value_deltas.values())) for concept in (plain, other)]
    assert torch.nn.functional.cosine_similarity(*deltas, dim=0) > 0.9
    assert all(tensor.dtype == torch.float32 for tensor in other.tensors().values())


def test_a_vae_that_crowds_the_others_out_changes_nothing(models, monkeypatch):
    """While pictures are decoded the host may unload every other model that it knows of."""
    inputs = {"images": PHOTOS, "steps": [3], "checkpoint_every": [1], "previews": ["a {}"]}
    plain = train_node(models, **inputs)
    vae = models("sd1")[2]
    decode = vae.decode

    def crowding(latents):
        comfy.model_management.unload_all_models()
        return decode(latents)

    monkeypatch.setattr(vae, "decode", crowding)
    crowded = train_node(models, **inputs)
    assert same(plain.args[1][0].concept, crowded.args[1][0].concept)
    assert torch.equal(plain.args[2], crowded.args[2])


def test_after_a_training_the_models_are_known_to_the_host_again(models):
    train_node(models, previews=["a {}"])
    model, clip, _ = models("sd1")
    known = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert sum(patcher is model for patcher in known) == 1
    assert sum(patcher is clip.patcher for patcher in known) == 1


def test_captions_take_the_place_of_templates_for_their_photo(models):
    captioned = {"captions": ["a toy robot on a shelf with <my-toy>", "{} in the snow"]}
    plain, other = (train_node(models, images=PHOTOS, **more).args[1][0].concept for more in ({}, captioned))
    assert not torch.equal(plain.superclass_input, other.superclass_input)
    typed = train_node(models, images=PHOTOS, captions=["\n".join(captioned["captions"])]).args[1][0].concept
    assert same(typed, other)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"captions": ["a robot"]}, "caption of photo 1 does not say where <my-toy> is"),
        ({"captions": ["a {}", "a {}", "a {}"]}, "3 captions for 1 photos"),
        ({"captions": ["a " * 90 + "{}"]}, "75 tokens and does not see the trigger"),
        ({"previews": ["a robot"]}, "once in every line of previews"),
        ({"previews": ["a {} beside a {}"]}, "once in every line of previews"),
        ({"scorer": ["../../model.safetensors"]}, "There is no model"),
    ],
)
def test_words_without_the_trigger_and_unknown_scorers_are_refused(models, inputs, message):
    with pytest.raises(ValueError, match=message):
        train_node(models, **{"previews": ["a {}"], **inputs})


def make_scorer(folder: Path) -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**{name: value for name, value in config.items() if name != "preprocess_cfg"})
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")


def test_a_scorer_in_the_models_folder_decides_by_itself(models, model_folder):
    make_scorer(model_folder.parent / "open_clip" / "tiny")
    inputs = {"images": PHOTOS, "steps": [3], "checkpoint_every": [1], "previews": ["a {}\n{} in the snow"]}
    best, _, _, _, report = train_node(models, **inputs).args
    assert "highest harmonic mean of CLIP-I and CLIP-T by tiny" in report
    table = [line.split() for line in report.splitlines()[-4:]]
    assert all(len(row) == 5 for row in table)
    scores = {row[0]: float(row[4]) for row in table[1:]}
    assert scores[best[0].concept.metadata["steps"]] == max(scores.values())
    for _, _, image, text, score in table:
        image, text = float(image), float(text)
        expected = 2 * image * text / (image + text) if min(image, text) > 0 else 0
        assert float(score) == pytest.approx(expected, abs=2e-4)
    assert "lowest loss" in train_node(models, **{**inputs, "scorer": ["none"]}).args[4]


def test_out_of_memory_says_what_to_switch_on_next(models, monkeypatch):
    def full(*_, **__):
        raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    monkeypatch.setattr("comfyui_perfusion.nodes.train.open_trainee", full)
    with pytest.raises(RuntimeError, match=r"64x64 pixels with 4 photos at a time\. Switch on gradient_checkpointing"):
        train_node(models, batch_size=[4])
    with pytest.raises(RuntimeError, match="Switch on low_memory"):
        train_node(models, gradient_checkpointing=["on"])
    with pytest.raises(RuntimeError, match=r"with 1 photos.*Lower resolution, load the checkpoint in fp16"):
        train_node(models, batch_size=[4], low_memory=[True])


def test_a_vae_of_another_family_is_refused(models, monkeypatch):
    vae = models("sd1")[2]
    monkeypatch.setattr(vae, "encode", lambda _: torch.zeros(1, 16, 8, 8))
    with pytest.raises(ValueError, match=r"latents \(16, 8, 8\), not this model's"):
        train_node(models)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("sd1", torch.bfloat16),
        ("sd1", torch.float8_e4m3fn),
        ("sd2", torch.float16),
        ("sd2v", torch.float8_e4m3fn),
        ("sdxl", torch.bfloat16),
    ],
)
def test_weights_of_any_precision_learn_and_paint(kind, dtype):
    models = load_narrow(kind, dtype=dtype)
    assert next(iter(cross_attentions(models[0]).values())).to_k.weight.dtype == dtype
    assert_learns_and_paints(models, kind, sample)
