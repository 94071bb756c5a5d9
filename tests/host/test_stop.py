"""Stop and keep, Continue, and another checkpoint of a training that ended, as the panel asks for them."""

import types
from functools import partialmethod
from pathlib import Path

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfyui_perfusion.nodes import train
from comfyui_perfusion.nodes.host import routes, trainee, trainings
from comfyui_perfusion.nodes.load import PerfusionSaveConcept
from comfyui_perfusion.nodes.train import PerfusionTrainConcept
from comfyui_perfusion.perfusion_core import Training, load_concept
from PIL import Image

from makers import train_node

CANCEL = comfy.model_management.InterruptProcessingException
PHOTOS = [torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))]
INPUTS = {"images": PHOTOS, "steps": [6], "checkpoint_every": [2], "previews": ["a {}"]}
NO_SAMPLES = {**INPUTS, "previews": [""]}


@pytest.fixture(autouse=True)
def _in_node_4(monkeypatch, model_folder):
    monkeypatch.setattr(PerfusionTrainConcept, "hidden", types.SimpleNamespace(unique_id="4"))
    monkeypatch.setattr(trainee, "_SAMPLING_STEPS", 3)
    monkeypatch.setattr(Training, "evaluate", partialmethod(Training.evaluate, draws=1))  # as good as more here
    monkeypatch.setattr(train, "loss_curve", lambda *_: Image.new("RGB", (1, 1)))  # nothing here looks at it


@pytest.fixture
def steps_made(monkeypatch):
    """The steps that are made from now on."""
    made, step = [], Training.step

    def counted(training):
        made.append(len(training.losses) + 1)
        return step(training)

    monkeypatch.setattr(Training, "step", counted)
    return made


def at_step(monkeypatch, number: int, act) -> None:
    def update(bar, done, *_):
        if done == number:
            act()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)


def ask(method, **asked):
    """What a route answers, or its status where it refuses."""
    route = {"stop": routes.stop_training, "continue": routes.continue_training, "choose": routes.choose_checkpoint}
    return route[method](asked)


def stopped_after(models, monkeypatch, number: int, **changes):
    with monkeypatch.context() as patch:
        at_step(patch, number, lambda: ask("stop", node="4"))
        return train_node(models, **{**INPUTS, **changes})


def told(output) -> dict:
    (data,) = output.ui["perfusion_training"]
    return data


def fingerprint() -> str:
    return PerfusionTrainConcept.fingerprint_inputs()


def same(a, b) -> bool:
    return all(torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items())


def test_a_stopped_training_gives_what_it_has(models, monkeypatch, model_folder):
    stopped = stopped_after(models, monkeypatch, 3)
    short = train_node(models, **{**INPUTS, "steps": [3]})
    assert same(stopped.args[1][0].concept, short.args[1][0].concept)
    assert "It was stopped; 6 steps were planned." in stopped.args[4]
    assert [row["step"] for row in told(stopped)["rows"]] == [0, 2, 3]
    assert (told(stopped)["done"], told(stopped)["total"], told(stopped)["ended"]) == (3, 6, True)
    assert list(model_folder.glob("*unfinished*")) == []


@pytest.mark.parametrize(("number", "steps"), [(0, [0, 1]), (2, [0, 2])])
def test_it_is_stopped_after_a_step_at_least(models, monkeypatch, number, steps):
    stopped = stopped_after(models, monkeypatch, number)
    assert [row["step"] for row in told(stopped)["rows"]] == steps
    assert stopped.args[1][0].concept.metadata["steps"] == str(steps[-1])


def test_a_stopped_training_is_not_taken_up_by_itself(models, monkeypatch, steps_made):
    before = fingerprint()
    stopped = stopped_after(models, monkeypatch, 3)
    assert fingerprint() == before  # so that the host keeps what came of it
    del steps_made[:]
    again = train_node(models, remembered=True, **INPUTS)  # and when the host has forgotten it
    assert steps_made == []
    assert same(again.args[0][0].concept, stopped.args[0][0].concept)


@pytest.mark.parametrize("number", [2, 3])
def test_continue_goes_on_to_the_same_bits(models, monkeypatch, steps_made, number):
    inputs = {**INPUTS, "images": [PHOTOS[0][:1]], "steps": [4], "checkpoint_every": [1]}
    whole = train_node(models, **inputs)
    stopped = stopped_after(models, monkeypatch, number, **inputs)
    before = fingerprint()
    ask("continue", training=told(stopped)["training"])
    assert fingerprint() != before
    del steps_made[:]
    resumed = train_node(models, remembered=True, **inputs)
    assert steps_made == list(range(number + 1, 5))
    assert same(resumed.args[1][0].concept, whole.args[1][0].concept)
    assert resumed.args[4] == whole.args[4]
    assert torch.equal(resumed.args[2], whole.args[2])  # the contact sheet has all rows


def test_after_a_cancel_the_next_run_goes_on_and_takes_the_unfinished_file_away(
    models, monkeypatch, model_folder, steps_made
):
    whole = train_node(models, **NO_SAMPLES)
    with monkeypatch.context() as patch, pytest.raises(CANCEL):
        at_step(patch, 3, comfy.model_management.interrupt_current_processing)
        train_node(models, **NO_SAMPLES)
    assert [path.name for path in model_folder.glob("*.safetensors")] == ["my-toy-unfinished.safetensors"]
    del steps_made[:]
    resumed = train_node(models, remembered=True, **NO_SAMPLES)
    assert steps_made == [4, 5, 6]
    assert same(resumed.args[1][0].concept, whole.args[1][0].concept)
    assert list(model_folder.glob("*.safetensors")) == []


def test_more_steps_go_on_and_fewer_begin_anew(models, steps_made):
    train_node(models, **{**NO_SAMPLES, "steps": [4]})
    del steps_made[:]
    longer = train_node(models, remembered=True, **NO_SAMPLES)
    assert steps_made == [5, 6]
    whole = train_node(models, **NO_SAMPLES)
    assert same(longer.args[1][0].concept, whole.args[1][0].concept)
    del steps_made[:]
    assert (
        train_node(models, remembered=True, **{**NO_SAMPLES, "steps": [2]}).args[1][0].concept.metadata["steps"] == "2"
    )
    assert steps_made == [1, 2]


def test_by_the_cosine_schedule_more_steps_begin_anew(models, steps_made):
    """Its rates depend on their number."""
    inputs = {**NO_SAMPLES, "learning_rate_schedule": ["cosine"]}
    train_node(models, **{**inputs, "steps": [2]})
    del steps_made[:]
    train_node(models, remembered=True, **{**inputs, "steps": [3]})
    assert steps_made == [1, 2, 3]


def test_with_other_inputs_it_is_trained_anew(models, steps_made):
    inputs = {**NO_SAMPLES, "steps": [1]}
    train_node(models, **inputs)
    for change in (
        {"seed": [1]}, {"images": [PHOTOS[0][:2]]}, {"superclass": ["bear"]}, {"trigger": ["<other>"]},
        {"captions": ["a {} on a shelf", "{} in the snow", "a {}"]}, {"learning_rate_values": [0.01]},
        {"masks": [PHOTOS[0][..., 0]]}, {"previews": ["{} in the snow"]}, {"unmasked_weight": [0.5]},
    ):  # fmt: skip
        del steps_made[:]
        train_node(models, remembered=True, **inputs)
        train_node(models, remembered=True, **{**inputs, **change})
        assert steps_made == [1], change  # of the second alone


@pytest.mark.parametrize("part", ["model", "vae"])
def test_with_another_model_or_vae_it_is_trained_anew(models, steps_made, part):
    inputs = {**NO_SAMPLES, "steps": [1]}
    train_node(models, **inputs)
    del steps_made[:]
    network = models("sd1")[0].model.diffusion_model if part == "model" else models("sd1")[2].first_stage_model
    weight = next(iter(network.parameters()))
    was = weight.clone()
    try:
        weight.add_(0.01)
        train_node(models, remembered=True, **inputs)
    finally:
        weight.copy_(was)
    assert steps_made == [1]


def test_a_chosen_checkpoint_is_given_without_training(models, monkeypatch, steps_made):
    whole = train_node(models, **INPUTS)
    before = fingerprint()
    best = whole.args[0][0].concept.metadata["steps"]
    other = 2 if best != "2" else 4
    ask("choose", training=told(whole)["training"], step=str(other))
    assert fingerprint() != before
    del steps_made[:]
    chosen = train_node(models, remembered=True, **INPUTS)
    assert steps_made == []
    assert chosen.args[0][0].concept.metadata["steps"] == str(other)
    assert chosen.args[0][0].training["losses"].numel() == other  # to train on from just there
    assert same(chosen.args[1][0].concept, whole.args[1][0].concept)
    assert f"Chosen by you: step {other}." in chosen.args[4]
    assert (told(chosen)["chosen"], told(chosen)["used"]) == (other, other)


def test_another_checkpoint_of_a_training_replaces_its_file_and_no_other(models, model_folder):
    def save(output) -> Path:
        return Path(PerfusionSaveConcept.execute(output.args[0], "toy", overwrite=False).args[0])

    whole = train_node(models, **INPUTS)
    (step,) = {2, 4, 6} - {int(whole.args[0][0].concept.metadata["steps"]), 4} - {2} or {2}
    path = save(whole)
    ask("choose", training=told(whole)["training"], step=str(step))
    assert save(train_node(models, remembered=True, **INPUTS)) == path
    assert load_concept(path).metadata["steps"] == str(step)
    assert save(train_node(models, remembered=True, seed=[1], **INPUTS)).name == "toy-2.safetensors"
    path.write_bytes(path.read_bytes())  # as if it had been edited
    assert save(train_node(models, remembered=True, **INPUTS)).name == "toy-3.safetensors"


@pytest.mark.parametrize(
    ("method", "asked", "message"),
    [
        ("stop", {"node": "4"}, "No training runs in this node any more"),
        ("continue", {"training": "gone"}, "not remembered any more"),
        ("choose", {"training": "gone", "step": "2"}, "not remembered any more"),
    ],
)
def test_what_is_not_there_any_more_is_said(method, asked, message):
    trainings.forget()
    with pytest.raises(trainings.Unknown, match=message):
        ask(method, **asked)


@pytest.mark.parametrize("step", ["0", "3", "99"])
def test_a_step_without_a_checkpoint_cannot_be_chosen(models, step):
    training = told(train_node(models, **NO_SAMPLES))["training"]
    with pytest.raises(trainings.Unknown, match="There is no checkpoint"):
        ask("choose", training=training, step=step)


def test_few_photos_and_missing_masks_are_said(models):
    masks = [torch.cat([torch.ones(1, 64, 64), torch.nn.functional.pad(torch.ones(1, 32, 32), [16] * 4)])]
    two = train_node(models, images=[PHOTOS[0][:2]], masks=masks, steps=[1])
    assert {name: told(two)["warnings"].get(name) for name in ("few_photos", "without_mask")} == {
        "few_photos": 2, "without_mask": 1,
    }  # fmt: skip
    assert "1 photos had no mask" in two.args[4]
    three = train_node(models, images=PHOTOS, masks=[masks[0][1:]] * 3, steps=[1])
    assert not {"few_photos", "without_mask"} & told(three)["warnings"].keys()


def test_a_training_that_changed_hardly_anything_is_named(models):
    rates = {"learning_rate_values": [1e-6], "learning_rate_embedding": [1e-6]}
    output = train_node(models, images=PHOTOS, steps=[2], **rates)
    assert told(output)["warnings"]["unchanged"]
    assert "Hardly anything changed" in output.args[4]
    output = train_node(models, images=PHOTOS, steps=[20], learning_rate_values=[0.2])
    assert "unchanged" not in told(output)["warnings"]


def test_only_the_last_trainings_are_remembered(models, steps_made):
    for seed in range(trainings._MANY + 1):
        train_node(models, remembered=seed > 0, steps=[1], seed=[seed])
    del steps_made[:]
    train_node(models, remembered=True, steps=[1], seed=[1])
    assert steps_made == []
    train_node(models, remembered=True, steps=[1], seed=[0])
    assert steps_made == [1]


def test_the_routes_say_what_they_cannot_do_over_http():
    from test_routes import ask as over_http

    trainings.forget()
    status, answer = over_http("POST", "stop", {"node": "4"})
    assert (status, answer["error"]) == (409, "No training runs in this node any more.")
    assert over_http("POST", "choose", {"training": "x", "step": "many"})[0] == 400
    assert over_http("POST", "choose", {"training": "x"})[0] == 400
    assert over_http("POST", "continue", {})[0] == 400
    assert over_http("GET", "stop")[0] == 405
