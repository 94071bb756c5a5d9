"""Training lowers the loss, by the right gradients, the same way every time, and never harms the model or itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from perfusion_core import (
    Concept,
    ConceptSet,
    EncodedPrompts,
    Training,
    TrainingSettings,
    draw_timesteps,
    edit,
    load_concept,
    load_training,
    save_concept,
    save_training,
    train_concept,
)
from perfusion_core.concept import plain_words

from .makers import same_bits
from .tiny import DIM, TEMPLATE_AT, TinyTrainee

QUICK = TrainingSettings(steps=4, batch_size=4, accumulation=2)
SUBJECT = ("<thing>", "thing", "tiny")


def start(trainee: TinyTrainee, settings: TrainingSettings = QUICK) -> Training:
    return Training(trainee, trainee.covariance_inverse(), *SUBJECT, settings)


def train(trainee: TinyTrainee, settings: TrainingSettings = QUICK, on_step=None) -> Concept:
    return train_concept(trainee, trainee.covariance_inverse(), *SUBJECT, settings, on_step)


def assert_same_concept(a: Concept, b: Concept) -> None:
    assert a.tensors().keys() == b.tensors().keys()
    assert [name for name, tensor in a.tensors().items() if not same_bits(tensor, b.tensors()[name])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_on_a_fixed_set_falls(dtype: torch.dtype) -> None:
    trainee = TinyTrainee(dtype)
    evaluations = []

    def watch(training: Training) -> None:
        if len(training.losses) in (1, 40):
            evaluations.append(training.evaluate())

    train(trainee, dataclasses.replace(QUICK, steps=40), watch)
    first, last = evaluations
    assert last < 0.8 * first


def test_what_was_trained_can_be_saved_and_used(tmp_path: Path) -> None:
    concept = train(TinyTrainee())
    assert concept.problem() is None
    assert (concept.trigger, concept.superclass, concept.base_model) == SUBJECT
    assert not any(tensor.requires_grad for tensor in concept.tensors().values())
    save_concept(concept, tmp_path / "thing.safetensors")
    loaded = load_concept(tmp_path / "thing.safetensors")
    assert ConceptSet([loaded]).gates(loaded.target_input[None, None]).item() > 0.5


def test_a_concept_does_not_change_while_training_goes_on() -> None:
    trainee = TinyTrainee()
    training = start(trainee)
    with trainee.wiring:
        training.step()
        kept = training.concept()
        before = {name: tensor.clone() for name, tensor in kept.tensors().items()}
        training.step()
    assert all(same_bits(tensor, before[name]) for name, tensor in kept.tensors().items())
    assert not torch.equal(training.concept().token_embeddings["l"], kept.token_embeddings["l"])


def test_the_same_seed_gives_the_same_concept_bit_for_bit() -> None:
    """Whatever else draws random numbers, and however often the training is looked at."""
    first = train(TinyTrainee())

    def disturb(training: Training) -> None:
        torch.randn(7)
        training.evaluate()
        training.concept()

    torch.manual_seed(99)
    assert_same_concept(train(TinyTrainee(), on_step=disturb), first)


def test_another_seed_gives_another_concept() -> None:
    other = train(TinyTrainee(), dataclasses.replace(QUICK, seed=1))
    assert not torch.equal(other.token_embeddings["l"], train(TinyTrainee()).token_embeddings["l"])


def test_preparing_changes_nothing() -> None:
    plain, prepared = train(TinyTrainee(prepare=False)), train(TinyTrainee(prepare=True))
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(tensor, prepared.tensors()[name], rtol=1e-4, atol=1e-6)


def test_the_base_model_is_bit_identical_afterwards() -> None:
    trainee = TinyTrainee()
    before = {name: tensor.clone() for name, tensor in trainee.net.state_dict().items()}
    vocabulary = trainee.vocabulary.clone()
    attributes = [dict(module.__dict__) for module in trainee.net.modules()]
    train(trainee)
    assert all(same_bits(tensor, before[name]) for name, tensor in trainee.net.state_dict().items())
    assert all(parameter.grad is None for parameter in trainee.net.parameters())
    assert same_bits(trainee.vocabulary, vocabulary)
    assert [module.__dict__ for module in trainee.net.modules()] == attributes


def test_an_error_in_the_middle_leaves_the_base_model_unwired() -> None:
    trainee = TinyTrainee()

    def interrupt(training: Training) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainee, on_step=interrupt)
    assert all("forward" not in module.__dict__ for module in trainee.net.modules())


@pytest.mark.parametrize("key_freedom", [0, 0.5])
@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("prepare", [False, True])
def test_gradients_equal_finite_differences_of_the_loss(
    prepare: bool, straight_through: bool, key_freedom: float
) -> None:
    """i* is held fixed, a running mean that gradients do not pass, or moves along with the trigger's encoding."""
    trainee = TinyTrainee(prepare=prepare)
    settings = TrainingSettings(batch_size=4, accumulation=1, target_gradient=straight_through, key_freedom=key_freedom)
    training = start(trainee, settings)
    with trainee.wiring:
        for _ in range(3):
            training.step()
        before = training.concept()
        training.step()
    call = trainee.calls[-1]
    at = {"embedding": before.token_embeddings["l"].double()}
    at |= {layer: delta.double() for layer, delta in before.value_deltas.items()}

    def loss(moved: dict[str, Tensor]) -> float:
        deltas = {layer: moved[layer] for layer in before.value_deltas}
        replayed = trainee.replay(
            call, moved["embedding"], deltas, QUICK.beta, QUICK.temperature, moving=straight_through
        )
        return replayed.item()

    found = {"embedding": training.token_embeddings["l"].grad}
    found |= {layer: delta.grad for layer, delta in training.value_deltas.items()}
    with trainee.wiring, torch.no_grad():
        assert loss(at) == pytest.approx(training.losses[-1], rel=1e-9)
        for name, gradient in found.items():
            assert gradient.abs().max() > 1e-6, name
            for place in range(len(gradient)):
                step = torch.zeros_like(at[name])
                step[place] = 1e-6
                slope = (loss(at | {name: at[name] + step}) - loss(at | {name: at[name] - step})) / 2e-6
                assert gradient[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-6), (name, place)


def test_the_gradient_through_the_target_is_another_one() -> None:
    with_it, without = (
        train(TinyTrainee(), dataclasses.replace(QUICK, target_gradient=through)) for through in (True, False)
    )
    assert not torch.equal(with_it.token_embeddings["l"], without.token_embeddings["l"])


def test_the_gradient_through_the_target_leaves_the_loss_as_it_is() -> None:
    first, losses = start(TinyTrainee()), []
    with first.trainee.wiring:
        first.step()
    for through in (True, False):
        training = start(TinyTrainee(), dataclasses.replace(QUICK, target_gradient=through))
        training.load_state_dict(first.state_dict())
        with training.trainee.wiring:
            losses.append(training.step())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
@pytest.mark.parametrize("prepare", [False, True])
def test_the_gradient_through_the_target_survives_checkpointing(prepare: bool, checkpointing: str) -> None:
    plain, other = TinyTrainee(), TinyTrainee(prepare=prepare)
    other.net.checkpointing = checkpointing
    settings = dataclasses.replace(QUICK, target_gradient=True)
    expected, found = train(plain, settings).tensors(), train(other, settings).tensors()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_step_takes_the_mean_over_its_micro_batches() -> None:
    trainee = TinyTrainee()
    training = start(trainee, TrainingSettings(batch_size=2, accumulation=3))
    deltas = {layer: delta.double().requires_grad_() for layer, delta in training.concept().value_deltas.items()}
    embedding = training.concept().token_embeddings["l"].double()
    with trainee.wiring:
        loss = training.step()
        calls = list(trainee.calls)
        losses = [trainee.replay(call, embedding, deltas, QUICK.beta, QUICK.temperature) for call in calls]
    assert len(calls) == 3
    mean = sum(losses) / 3
    assert loss == pytest.approx(mean.item())
    for layer, gradient in zip(deltas, torch.autograd.grad(mean, list(deltas.values())), strict=True):
        torch.testing.assert_close(training.value_deltas[layer].grad.double(), gradient, rtol=1e-4, atol=1e-6)


def test_the_scale_of_the_loss_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = train(TinyTrainee(torch.float32))
    monkeypatch.setattr("perfusion_core.training._LOSS_SCALE", 1.0)
    assert_same_concept(train(TinyTrainee(torch.float32)), scaled)


@pytest.mark.parametrize("zero_padded", [False, True])
def test_prompts_are_padded_with_zeros_where_the_trainee_says_so(zero_padded: bool) -> None:
    trainee = TinyTrainee()
    if zero_padded:
        trainee.zero_padded = True
    train(trainee)
    assert {call.concepts.zero_padded for call in trainee.calls} == {zero_padded}


def test_deltas_and_embedding_have_their_own_learning_rates() -> None:
    """The first step of Adam without weight decay is the learning rate itself."""
    trainee = TinyTrainee()
    training = start(trainee)
    before = training.concept()
    with trainee.wiring:
        training.step()
    after = training.concept()
    moved = [(after.token_embeddings["l"] - before.token_embeddings["l"], 0.006)]
    moved += [(delta - before.value_deltas[layer], 0.03) for layer, delta in after.value_deltas.items()]
    for change, rate in moved:
        torch.testing.assert_close(change.abs(), torch.full_like(change, rate), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("schedule", "least", "most"), [("constant", 0.3, 3), ("cosine", 0.001, 0.1)])
def test_by_the_cosine_schedule_the_last_steps_are_small(schedule: str, least: float, most: float) -> None:
    """Steps of Adam are of the learning rate's order."""
    settings = dataclasses.replace(QUICK, steps=10, learning_rate_schedule=schedule)
    assert settings.share_of_rates(0) == 1
    assert settings.share_of_rates(10) == settings.share_of_rates(11) == (schedule == "constant")
    before: list[Concept] = []
    after = train(TinyTrainee(), settings, lambda training: before.append(training.concept()))
    moved = [(after.token_embeddings["l"] - before[-2].token_embeddings["l"], 0.006)]
    moved += [(delta - before[-2].value_deltas[layer], 0.03) for layer, delta in after.value_deltas.items()]
    for change, rate in moved:
        assert least < change.abs().max() / rate < most


def test_training_starts_at_the_superclass() -> None:
    trainee = TinyTrainee()
    concept = start(trainee).concept()
    prompts = trainee.encode(range(3), trainee.superclass_embeddings())
    mean = sum(prompts.encodings[row, at] for row, at in enumerate(prompts.trigger_positions.tolist())) / 3
    torch.testing.assert_close(concept.superclass_input, mean.float())
    assert same_bits(concept.target_input, concept.superclass_input)
    assert same_bits(concept.token_embeddings["l"], trainee.superclass_embeddings()["l"].float())
    assert all(torch.count_nonzero(delta) == 0 for delta in concept.value_deltas.values())


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_running_mean_counts_photos_not_batches(batch_size: int) -> None:
    """So that one photo at a time, for want of memory, learns alike."""
    followed = []
    for size in (4, batch_size):
        training = start(TinyTrainee(), TrainingSettings(batch_size=size, accumulation=1, decay=0.8))
        training._photos_seen = 400
        for _ in range(16 // size):
            training._follow(torch.ones(12))
        followed.append(training.target_input)
    torch.testing.assert_close(*followed)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
def test_the_target_is_the_running_mean_of_the_triggers_encoding(decay: float) -> None:
    trainee = TinyTrainee()
    training = start(trainee, dataclasses.replace(QUICK, decay=decay))
    mean = training.concept().superclass_input.double()
    with trainee.wiring:
        for _ in range(4):
            training.step()
    for number, call in enumerate(trainee.calls, start=1):
        weight = min(decay, number / (10 + number))  # quick at first
        distinct = dict(zip(call.positions.tolist(), call.trigger_encodings, strict=True))  # each template counts once
        mean = weight * mean + (1 - weight) * sum(distinct.values()) / len(distinct)
    concept = training.concept()
    torch.testing.assert_close(concept.target_input.double(), mean, rtol=1e-5, atol=1e-6)
    dual = trainee.covariance_inverse() @ mean
    torch.testing.assert_close(concept.target_dual.double(), dual, rtol=1e-4, atol=1e-4)
    assert training.target_input.requires_grad is False


def test_every_template_and_photo_takes_its_turn() -> None:
    trainee = TinyTrainee()
    train(trainee)
    assert {int(photo) for call in trainee.calls for photo in call.photos} == {0, 1, 2}
    assert {int(at) for call in trainee.calls for at in call.positions} == {1, 2, 3}


def test_photos_keep_to_the_templates_that_go_with_them() -> None:
    trainee = TinyTrainee()
    trainee.templates = [[2], [0, 1], [1]]
    train(trainee, dataclasses.replace(QUICK, steps=10))
    seen = {
        (int(photo), TEMPLATE_AT[int(at)])
        for call in trainee.calls
        for photo, at in zip(call.photos, call.positions, strict=True)
    }
    assert seen == {(0, 2), (1, 0), (1, 1), (2, 1)}


@pytest.mark.parametrize("change", [{}, {"target_gradient": True}, {"learning_rate_schedule": "cosine"}])
def test_a_training_that_was_left_and_taken_up_again_gives_the_same_bits(
    change: dict[str, Any], tmp_path: Path
) -> None:
    settings = dataclasses.replace(QUICK, steps=6, **change)
    whole, first = start(TinyTrainee(), settings), start(TinyTrainee(), settings)
    with whole.trainee.wiring, first.trainee.wiring:
        for _ in range(6):
            whole.step()
        for _ in range(2):
            first.step()
    save_concept(first.concept(), tmp_path / "half.safetensors")
    save_training(first.state_dict(), first.concept(), tmp_path / "half.training")
    saved = load_concept(tmp_path / "half.safetensors")

    second = start(TinyTrainee(), settings)
    second.load_state_dict(load_training(tmp_path / "half.training", saved))
    assert_same_concept(second.concept(), first.concept())
    with second.trainee.wiring:
        for _ in range(4):
            second.step()
    assert_same_concept(second.concept(), whole.concept())
    assert second.losses == whole.losses


def test_a_training_goes_on_from_a_concept_alone() -> None:
    first = train(TinyTrainee())
    second = start(TinyTrainee())
    second.load_state_dict(first.tensors())
    assert_same_concept(second.concept(), first)
    with second.trainee.wiring:
        second.step()
    moved = second.concept().target_input - first.target_input
    assert 0 < moved.norm() < 0.1 * first.target_input.norm()  # i* does not start over


def test_a_state_before_the_first_step_can_be_loaded() -> None:
    fresh, other = start(TinyTrainee()), start(TinyTrainee())
    other.load_state_dict(fresh.state_dict())
    with fresh.trainee.wiring, other.trainee.wiring:
        assert fresh.step() == other.step()


def test_a_training_shares_no_memory_with_the_state_it_goes_on_from() -> None:
    first, second = start(TinyTrainee()), start(TinyTrainee())
    with first.trainee.wiring:
        first.step()
    state = first.state_dict()
    second.load_state_dict(state)
    for tensor in state.values():
        tensor.zero_()
    now = second.state_dict()
    assert all(same_bits(tensor, now[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("spoil", ["missing", "shape", "NaN", "cut", "noise", "no random state", "half of Adam"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(spoil: str) -> None:
    trainee = TinyTrainee()
    training = start(trainee)
    with trainee.wiring:
        training.step()
    state, before = training.state_dict(), training.state_dict()
    if spoil == "missing":
        del state["token_embedding.l"]
    elif spoil == "shape":
        state["target_input"] = torch.zeros(5)
    elif spoil == "NaN":
        state["adam.token_embedding.l.exp_avg"][0] = float("nan")
    elif spoil == "cut":
        state["random_state"] = state["random_state"][:10]
    elif spoil == "noise":
        state["random_state"] = state["random_state"].flip(0)
    elif spoil == "no random state":
        del state["random_state"]
    else:
        del state["adam.token_embedding.l.step"]
    with pytest.raises(ValueError, match="Cannot go on from this"):
        training.load_state_dict(state)
    now = training.state_dict()
    assert now.keys() == before.keys()
    assert all(same_bits(tensor, before[name]) for name, tensor in now.items())


class Cancelled(TinyTrainee):
    """Is interrupted in its call number ``at``."""

    at = 0

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        if len(self.calls) + 1 == self.at:
            self.at = 0
            torch.rand(3, generator=generator)
            raise KeyboardInterrupt
        return super().loss(photos, prompts, generator)


@pytest.mark.parametrize("at", [5, 6])
def test_an_interrupted_step_is_as_if_it_had_not_begun(at: int) -> None:
    trainee = Cancelled()
    trainee.at = at
    training = start(trainee)
    with trainee.wiring:
        training.step()
        training.step()
        with pytest.raises(KeyboardInterrupt):
            training.step()
        training.step()
        training.step()
    assert_same_concept(training.concept(), train(TinyTrainee()))


class OnDevice(TinyTrainee):
    """Its tensors have no contents: whoever would read one, which on a GPU means to wait for it, gets an error."""

    def __init__(self) -> None:
        super().__init__(torch.float32)
        self.net.to("meta")
        for name in ("vocabulary", "places", "mixing", "latents"):
            setattr(self, name, getattr(self, name).to("meta"))

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        self.wiring.prepare(prompts.encodings)
        return self.net(self.latents[:1].expand(len(photos), -1, -1, -1), prompts.encodings).square().mean()


class NoWaitingCopies(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        result, options = operation(*arguments, **(options or {})), options or {}
        if operation is torch.ops.aten._to_copy.default and result.device != arguments[0].device:
            assert options.get("non_blocking"), "this copy waits for the device"
        return result


@pytest.mark.parametrize("target_gradient", [False, True])
def test_a_micro_batch_never_waits_for_its_device(target_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "_full_precision", lambda device: nullcontext())  # autocast knows no such device
    trainee = OnDevice()
    settings = dataclasses.replace(QUICK, target_gradient=target_gradient)
    training = Training(trainee, torch.eye(DIM), *SUBJECT, settings)
    with trainee.wiring, NoWaitingCopies():
        training._micro_batch().backward()


def test_on_step_is_called_after_each_step() -> None:
    seen = []
    train(TinyTrainee(), on_step=lambda training: seen.append(len(training.losses)))
    assert seen == [1, 2, 3, 4]


class Poisoned(TinyTrainee):
    """Goes wrong in its call number ``at``, in the manner of ``poison``."""

    def __init__(self, poison: Callable[[Tensor, EncodedPrompts], Tensor], at: int):
        super().__init__()
        self.poison, self.at = poison, at

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        loss = super().loss(photos, prompts, generator)
        return self.poison(loss, prompts) if len(self.calls) == self.at else loss


POISONS: dict[str, Callable[[Tensor, EncodedPrompts], Tensor]] = {
    "NaN": lambda loss, prompts: loss * float("nan"),
    "infinity": lambda loss, prompts: loss * float("inf"),
    "minus infinity": lambda loss, prompts: loss * -float("inf"),
    "a NaN gradient of a sound loss": lambda loss, prompts: loss + (prompts.encodings * 0).sum().sqrt(),
    "an infinite gradient of a sound loss": lambda loss, prompts: (
        loss + 1e300 * (prompts.encodings - prompts.encodings.detach()).sum()
    ),
}


@pytest.mark.parametrize("at", [5, 6])
@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS.keys())
def test_numbers_that_go_wrong_stop_training_and_spare_what_was_learned(
    poison: Callable[[Tensor, EncodedPrompts], Tensor], at: int
) -> None:
    """In the third step, in its first or its second micro-batch."""
    trainee = Poisoned(poison, at)
    training = start(trainee)
    with trainee.wiring:
        training.step()
        training.step()
        good = training.concept()
        with pytest.raises(FloatingPointError, match="step 3"):
            training.step()
    assert len(training.losses) == 2
    assert_same_concept(training.concept(), good)
    assert training.concept().problem() is None


@pytest.mark.parametrize("size", [1, 3, 4])
def test_the_evaluation_is_the_mean_over_pictures(size: int) -> None:
    training = start(TinyTrainee(), dataclasses.replace(QUICK, batch_size=size))
    training.trainee.loss = lambda photos, *_: photos.double().mean()
    photos = len(training.trainee.templates)
    with training.trainee.wiring:
        assert training.evaluate() == pytest.approx((photos - 1) / 2)


def test_the_evaluation_sees_every_photo_four_times_at_its_first_template() -> None:
    trainee = TinyTrainee()
    trainee.templates = [[2], [0, 1], [1]]
    training = start(trainee)
    with trainee.wiring:
        training.evaluate()
    seen = [
        (photo, TEMPLATE_AT[at])
        for call in trainee.calls
        for photo, at in zip(call.photos.tolist(), call.positions.tolist(), strict=True)
    ]
    assert sorted(seen) == 4 * [(0, 2)] + 4 * [(1, 0)] + 4 * [(2, 1)]


TRIGGERS = [("<my-toy>", "my-toy"), ("<X-wing>", "X-wing"), ("toy", "toy"), ("<>", "<>")]


@pytest.mark.parametrize(("trigger", "name"), TRIGGERS)
def test_a_trained_concept_is_named_after_its_trigger(trigger: str, name: str) -> None:
    trainee = TinyTrainee()
    assert Training(trainee, trainee.covariance_inverse(), trigger, "thing", "tiny", QUICK).concept().name == name


def test_settings_cannot_be_changed_while_a_training_uses_them() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        start(TinyTrainee()).settings.steps = 5


def test_the_settings_are_the_papers_unless_they_are_given() -> None:
    rates = {"learning_rate_values": 0.03, "learning_rate_embedding": 0.006, "learning_rate_schedule": "constant"}
    gate = {"beta": 0.75, "temperature": 0.1}
    ours = {"key_freedom": 0.0, "target_gradient": False, "seed": 0}
    expected = {"steps": 400, "batch_size": 4, "accumulation": 4, **rates, **gate, "decay": 0.99, **ours}
    assert dataclasses.asdict(TrainingSettings()) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"accumulation": -1},
        {"learning_rate_values": 0},
        {"learning_rate_embedding": -0.1},
        {"learning_rate_values": float("nan")},
        {"learning_rate_embedding": float("inf")},
        {"learning_rate_schedule": "linear"},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"beta": float("nan")},
        {"beta": float("inf")},
        {"decay": 1},
        {"decay": -0.1},
        {"decay": float("nan")},
        {"key_freedom": -0.1},
        {"key_freedom": 1.1},
        {"key_freedom": float("nan")},
    ],
)
def test_bad_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingSettings(**wrong)


@pytest.mark.parametrize("limit", [{"key_freedom": 0}, {"key_freedom": 1}, {"decay": 0}])
def test_settings_may_be_at_their_limits(limit: dict[str, Any]) -> None:
    assert train(TinyTrainee(), dataclasses.replace(QUICK, **limit)).problem() is None


@pytest.mark.parametrize(
    ("superclass", "words"),
    [
        ("dog.", "dog"),
        ("(dog:1.2)", "dog"),
        ("[dog:0.5]", "dog"),
        ("toy (plush)", "toy plush"),
        ("\\(dog\\)", "dog"),
        ("{dog|cat}", "dog cat"),
        ("<lora:toys:1> teddy, embedding:soft", "teddy"),
        ("teddy_bear", "teddy bear"),
        ("t-shirt", "t-shirt"),
        ("'Model X'", "Model X"),
        ("Rubik's cube", "Rubik's cube"),
        ("dog's", "dog"),
        ("\u201cdog\u201d\u2026", "dog"),
        ("\u72d7\u3002", "\u72d7"),
        ("do\u200bg \U0001f436", "dog"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u0915\u0941\u0924\u094d\u0924\u093e", "\u0915\u0941\u0924\u094d\u0924\u093e"),
        ("...", ""),
        ("", ""),
    ],
)
def test_a_superclass_is_its_plain_words(superclass: str, words: str) -> None:
    assert plain_words(superclass) == words
    assert plain_words(words) == words


def test_a_training_takes_the_superclass_in_plain_words() -> None:
    trainee = TinyTrainee()
    assert Training(trainee, trainee.covariance_inverse(), "<thing>", "(thing:1.2).", "tiny").superclass == "thing"
    with pytest.raises(ValueError, match="superclass"):
        Training(trainee, trainee.covariance_inverse(), "<thing>", "...", "tiny")


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda output: 0 * output], ids=["none at all", "zeros"])
@pytest.mark.parametrize("target_gradient", [False, True])
def test_a_layer_that_gets_no_gradient_stops_training(cut: Callable[[Tensor], Tensor], target_gradient: bool) -> None:
    trainee = TinyTrainee()
    training = start(trainee, dataclasses.replace(QUICK, target_gradient=target_gradient))
    layer, (_, to_v) = next(iter(trainee.wiring.projections.items()))
    to_v.register_forward_hook(lambda module, given, output: cut(output))
    before = training.state_dict()
    with trainee.wiring, pytest.raises(RuntimeError, match=f"value_delta.{re.escape(layer)}"):
        training.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.state_dict().items())


def test_an_embedding_that_gets_no_gradient_stops_training() -> None:
    trainee = TinyTrainee()
    encode = trainee.encode
    trainee.encode = lambda templates, embeddings: encode(templates, {"l": embeddings["l"].detach()})
    training = start(trainee)
    with trainee.wiring, pytest.raises(RuntimeError, match=r"token_embedding\.l"):
        training.step()


def test_what_has_learned_may_get_a_gradient_of_zero() -> None:
    """As a gate that is shut gives it; only what would never learn stops the training."""
    trainee = TinyTrainee()
    training = start(trainee)
    _, to_v = next(iter(trainee.wiring.projections.values()))
    with trainee.wiring:
        training.step()
        to_v.register_forward_hook(lambda module, given, output: 0 * output)
        training.step()
    assert len(training.losses) == 2


def test_a_model_that_lets_nothing_through_stops_training() -> None:
    trainee = TinyTrainee()
    training = start(trainee)
    for module in (module for pair in trainee.wiring.projections.values() for module in pair):
        module.register_forward_hook(lambda module, given, output: output.detach())
    with trainee.wiring, pytest.raises(RuntimeError, match=r"token_embedding|value_delta"):
        training.step()


@pytest.mark.parametrize("start", [-1, 50, 51])
def test_timesteps_that_are_none_are_refused(start: int) -> None:
    with pytest.raises(ValueError, match="below 50"):
        draw_timesteps(4, 50, torch.Generator(), start)


@pytest.mark.parametrize(
    ("trigger", "superclass", "reason"),
    [("", "teddy", "trigger is empty"), ("my teddy", "teddy", "contains a space"), ("<teddy>", " ", "superclass")],
)
def test_words_that_cannot_be_trained_are_refused(trigger: str, superclass: str, reason: str) -> None:
    trainee = TinyTrainee()
    with pytest.raises(ValueError, match=reason):
        Training(trainee, trainee.covariance_inverse(), trigger, superclass, "tiny")


def test_a_covariance_of_another_width_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="12"):
        Training(TinyTrainee(), torch.eye(11), *SUBJECT)


def test_evaluating_never_measures_the_unedited_model() -> None:
    trainee = TinyTrainee()
    training = start(trainee)
    with trainee.wiring:
        training.step()
        inside = training.evaluate()
    try:
        outside = training.evaluate()
    except RuntimeError:
        return
    assert outside == inside


@pytest.mark.parametrize("start", [0, 500])
def test_timesteps_are_drawn_evenly_and_each_in_its_own_part_of_the_range(start: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([draw_timesteps(4, 1000, generator, start) for _ in range(2000)])
    part = (1000 - start) // 4
    assert torch.equal(
        (batches - start).div(part, rounding_mode="floor").sort(1).values, torch.arange(4).expand(2000, 4)
    )
    first = batches[:, 0].float()  # any place of the batch gets any timestep
    assert (first.min() - start, 999 - first.max()) < (5, 5)
    assert abs(first.mean() - (start + 999) / 2) < 0.02 * (1000 - start)
