"""The edit equals the paper's equations, at every setting and for any number of concepts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perfusion_core import ConceptSet, EditedEncoding

from . import reference
from .makers import FIRST, LAYERS, SECOND, Case, make_case, make_concept, same_bits, weight

CASES = {
    "seed": st.integers(0, 2**32 - 1),
    "dim": st.integers(8, 24),
    "batch": st.integers(1, 3),
    "tokens": st.integers(1, 6),
    "free_keys": st.booleans(),
}
one = st.builds(make_case, count=st.just(1), **CASES)
several = st.builds(make_case, count=st.integers(1, 6), alike=st.sampled_from([0.0, 0.5, 0.9, 0.97, 0.995]), **CASES)
orthogonal = st.builds(make_case, count=st.integers(1, 6), **CASES)
strengths = st.floats(0.0, 1.5)


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    """Relative to the largest number there is: single ones may cancel to nothing."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= rtol * max(1.0, expected.double().abs().max().item())


def edited_key_value(concepts: ConceptSet, encoding: Tensor, layer: str, key_encoding: Tensor | None = None):
    """K and V of ``layer`` as an attention layer would compute them."""
    w_key, w_value = weight(layer, encoding.shape[-1], 1), weight(layer, encoding.shape[-1], 2)
    edited = EditedEncoding(concepts, encoding, key_encoding)
    return (
        edited.key(layer, encoding, lambda x: x @ w_key.T),
        edited.value(layer, encoding, lambda x: x @ w_value.T),
    )


def reference_key_value(case: Case, layer: str, edit) -> tuple[Tensor, Tensor]:
    """K and V of ``layer`` from ``edit(weight, e, outputs)``, token by token."""
    w_key, w_value = weight(layer, case.dim, 1), weight(layer, case.dim, 2)
    key_outputs = [
        w_key @ concept.superclass_input if concept.key_outputs is None else concept.key_outputs[layer]
        for concept in case.concepts
    ]
    value_outputs = [w_value @ concept.superclass_input + concept.value_deltas[layer] for concept in case.concepts]
    keys = [[edit(w_key, e, key_outputs) for e in row] for row in case.encoding]
    values = [[edit(w_value, e, value_outputs) for e in row] for row in case.encoding]
    return tuple(torch.stack([torch.stack(row) for row in rows]) for rows in (keys, values))


@given(case=one, strength=strengths)
def test_one_concept_equals_the_paper(case: Case, strength: float) -> None:
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures, strength)
    for layer in LAYERS:
        expected = reference_key_value(
            case,
            layer,
            lambda w, e, outputs: reference.one_concept(
                w, e, case.covariance, case.targets[0], outputs[0], case.betas[0], case.temperatures[0], strength
            ),
        )
        for actual, wanted in zip(edited_key_value(concepts, case.encoding, layer), expected, strict=True):
            assert_close(actual, wanted)


@given(case=several, strength=strengths)
def test_several_concepts_equal_the_papers_appendix(case: Case, strength: float) -> None:
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures, strength)
    expected = reference_key_value(
        case,
        FIRST,
        lambda w, e, outputs: reference.several_concepts(
            w, e, case.covariance, case.targets, outputs, case.betas, case.temperatures, strength
        ),
    )
    for actual, wanted in zip(edited_key_value(concepts, case.encoding, FIRST), expected, strict=True):
        assert_close(actual, wanted)


@given(case=orthogonal, data=st.data())
def test_each_concept_has_its_own_strength(case: Case, data: st.DataObject) -> None:
    assert_separate(case, data, joint=True)


@given(case=several, data=st.data())
def test_concepts_that_are_not_joint_act_each_as_if_alone(case: Case, data: st.DataObject) -> None:
    assert_separate(case, data, joint=False)


def assert_separate(case: Case, data: st.DataObject, joint: bool) -> None:
    count = len(case.concepts)
    each = data.draw(st.lists(strengths, min_size=count, max_size=count))
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures, each, joint)
    expected = reference_key_value(
        case,
        FIRST,
        lambda w, e, outputs: reference.separate_concepts(
            w, e, case.covariance, case.targets, outputs, case.betas, case.temperatures, each
        ),
    )
    for actual, wanted in zip(edited_key_value(concepts, case.encoding, FIRST), expected, strict=True):
        assert_close(actual, wanted)


@given(case=several)
def test_gates_of_concepts_that_are_not_joint_equal_the_paper(case: Case) -> None:
    actual = ConceptSet(case.concepts, case.betas, case.temperatures, joint=False).gates(case.encoding)
    settings = list(zip(case.targets, case.betas, case.temperatures, strict=True))
    for place in torch.cartesian_prod(*map(torch.arange, case.encoding.shape[:2])):
        e = case.encoding[tuple(place)]
        expected = torch.tensor([reference.gate(e, case.covariance, *each) for each in settings], dtype=torch.float64)
        assert_close(actual[tuple(place)], expected)


@given(case=several)
def test_no_concept_opens_on_the_encoding_of_another(case: Case) -> None:
    gates = ConceptSet(case.concepts, case.betas, case.temperatures).gates(torch.stack(case.targets)[None])[0]
    for j, row in enumerate(gates.tolist()):
        shares = [float(j == k) for k in range(len(row))]
        expected = map(reference.opened, shares, case.betas, case.temperatures)
        assert row == pytest.approx(list(expected), abs=1e-6)


@given(case=several, data=st.data())
def test_the_order_of_the_concepts_does_not_matter(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.concepts))))
    each = [0.5 + 0.1 * number for number in range(len(order))]
    settings = case.concepts, case.betas, case.temperatures, each
    concepts = ConceptSet(*settings)
    shuffled = ConceptSet(*([setting[j] for j in order] for setting in settings))
    assert_close(shuffled.gates(case.encoding), concepts.gates(case.encoding)[..., list(order)])
    for actual, wanted in zip(
        edited_key_value(shuffled, case.encoding, SECOND),
        edited_key_value(concepts, case.encoding, SECOND),
        strict=True,
    ):
        assert_close(actual, wanted)


@given(case=several, exponent=st.integers(-6, 6))
def test_the_scale_of_the_covariance_does_not_matter(case: Case, exponent: int) -> None:
    scaled = [concept.replace(target_dual=concept.target_dual / 10.0**exponent) for concept in case.concepts]
    settings = case.betas, case.temperatures
    actual, expected = ConceptSet(scaled, *settings), ConceptSet(case.concepts, *settings)
    assert_close(actual.edit_input(case.encoding), expected.edit_input(case.encoding))
    assert_close(actual.gates(case.encoding), expected.gates(case.encoding))
    assert_close(actual.overlap(), expected.overlap())


@given(case=several)
def test_overlap_is_the_cosine_in_the_metric_of_the_covariance(case: Case) -> None:
    overlap = ConceptSet(case.concepts).overlap()
    inverse = torch.linalg.inv(case.covariance)
    for j, target in enumerate(case.targets):
        for k, other in enumerate(case.targets):
            lengths = (target @ inverse @ target).sqrt() * (other @ inverse @ other).sqrt()
            assert_close(overlap[j, k], target @ inverse @ other / lengths)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3])
def test_strength_zero_is_the_base_model_bit_for_bit(count: int, dtype: torch.dtype) -> None:
    case = make_case(count=count, free_keys=True)
    concepts = ConceptSet(case.concepts, strengths=0)
    encoding = case.encoding.to(dtype)
    encoding[0, 0, :4] = torch.tensor([0.0, -0.0, torch.finfo(dtype).tiny, torch.finfo(dtype).max])
    value = encoding[..., : LAYERS[FIRST]].clone()
    gates = concepts.gates(encoding)
    assert same_bits(concepts.edit_input(encoding), encoding)
    assert same_bits(concepts.edit_input(encoding, keys=True), encoding)
    assert same_bits(concepts.edit_value(value, gates, FIRST), value)
    assert same_bits(concepts.edit_key(value, gates, FIRST), value)


def test_a_concept_at_strength_zero_among_others_is_as_if_absent() -> None:
    case = make_case(count=3, alike=0.9)
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures, [1, 0, 0.7])
    absent = ConceptSet(case.concepts[::2], case.betas[::2], case.temperatures[::2], [1, 0.7])
    assert_close(concepts.edit_input(case.encoding), absent.edit_input(case.encoding))


LEAKS = [(0.75, 0.10, "0.06"), (0.70, 0.15, "0.9"), (0.60, 0.15, "1.8"), (0.50, 0.15, "3.4"), (0.40, 0.15, "6.5")]


@pytest.mark.parametrize(("beta", "temperature", "percent"), LEAKS)
def test_an_unrelated_token_sees_only_the_stated_leak(beta: float, temperature: float, percent: str) -> None:
    case = make_case()
    concept = case.concepts[0]
    along = concept.target_dual / concept.target_dual.norm()
    encoding = case.encoding - (case.encoding @ along)[..., None] * along  # C^-1-orthogonal to i*
    concepts = ConceptSet(case.concepts, beta, temperature)
    gates = concepts.gates(encoding)
    decimals = len(percent.partition(".")[2])
    assert {f"{100 * gate:.{decimals}f}" for gate in gates.flatten().tolist()} == {percent}
    assert_close(concepts.edit_input(encoding), encoding + gates * concept.superclass_input)


@given(case=one)
def test_the_target_itself_becomes_the_target_output(case: Case) -> None:
    """e = i* at an open gate: K = W_K s (or the concept's own key), V = W_V s + delta."""
    concept = case.concepts[0]
    concepts = ConceptSet(case.concepts, betas=-5, temperatures=0.01)
    key, value = edited_key_value(concepts, concept.target_input[None, None], FIRST)
    w_key, w_value = weight(FIRST, case.dim, 1), weight(FIRST, case.dim, 2)
    locked = w_key @ concept.superclass_input
    assert_close(key[0, 0], locked if concept.key_outputs is None else concept.key_outputs[FIRST])
    assert_close(value[0, 0], w_value @ concept.superclass_input + concept.value_deltas[FIRST])


@given(case=several, data=st.data())
def test_keys_move_as_far_as_they_are_locked_and_values_all_the_way(case: Case, data: st.DataObject) -> None:
    freedoms = [data.draw(st.sampled_from([0.0, 0.3, 1.0])) for _ in case.concepts]
    case.concepts[:] = [concept.replace(key_outputs=None) for concept in case.concepts]
    freer = [concept.replace(key_freedom=freedom) for concept, freedom in zip(case.concepts, freedoms, strict=True)]
    settings = case.betas, case.temperatures
    key, value = edited_key_value(ConceptSet(freer, *settings), case.encoding, FIRST)
    targets = torch.stack(case.targets)
    duals = torch.linalg.solve(case.covariance, targets.T)  # (dim, concepts)
    coordinates = torch.linalg.solve(targets @ duals, (case.encoding @ duals)[..., None])[..., 0]
    gates = ConceptSet(case.concepts, *settings).gates(case.encoding)
    moved = case.encoding.clone()
    for j, (concept, freedom) in enumerate(zip(case.concepts, freedoms, strict=True)):
        locked = gates[..., j, None] * concept.superclass_input - coordinates[..., j, None] * targets[j]
        moved += (1 - freedom) * locked
    assert_close(key, moved @ weight(FIRST, case.dim, 1).T, rtol=1e-8)
    assert_close(value, edited_key_value(ConceptSet(case.concepts, *settings), case.encoding, FIRST)[1])


def test_only_the_concepts_that_bring_keys_have_free_keys() -> None:
    case = make_case(count=2, free_keys=True)
    case.concepts[0] = case.concepts[0].replace(key_outputs=None)
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures)
    expected = reference_key_value(
        case,
        SECOND,
        lambda w, e, outputs: reference.several_concepts(
            w, e, case.covariance, case.targets, outputs, case.betas, case.temperatures
        ),
    )
    for actual, wanted in zip(edited_key_value(concepts, case.encoding, SECOND), expected, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("each", [(1.0, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-4, 1e-2])
def test_nearly_the_same_concept_twice_stays_small(apart: float, each: tuple[float, float], dtype: torch.dtype) -> None:
    """Two copies of a concept, or two checkpoints of one training, must not blow up: they remove i* at most once."""
    case = make_case(dim=24, tokens=6)
    concept = case.concepts[0]
    random = torch.Generator().manual_seed(1)
    moved = case.targets[0] + apart * torch.linalg.cholesky(case.covariance) @ torch.randn(
        24, generator=random, dtype=torch.float64
    )
    twin = make_concept(case.covariance, moved, concept.superclass_input, random)
    as_stored = [
        c.replace(target_input=c.target_input.float(), target_dual=c.target_dual.float()) for c in (concept, twin)
    ]
    encoding = case.encoding.to(dtype)
    closed = {"betas": 100, "temperatures": 0.1}  # leaves the projection alone
    removed = ConceptSet(as_stored, **closed, strengths=each).edit_input(encoding) - encoding
    alone = ConceptSet(as_stored[:1], **closed).edit_input(encoding) - encoding
    assert removed.abs().max().item() < 3 * alone.abs().max().item()


def test_the_same_concept_twice_removes_its_target_once() -> None:
    case = make_case()
    twice = ConceptSet(case.concepts * 2, betas=100)
    assert_close(twice.edit_input(case.encoding), ConceptSet(case.concepts, betas=100).edit_input(case.encoding))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_keeps_its_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    case = make_case(count=3, alike=0.9, dtype=torch.float32)
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures)
    encoding = case.encoding.to(dtype)
    rounding = torch.finfo(dtype).eps + 1e-5
    edited = concepts.edit_input(encoding)
    assert edited.dtype == dtype
    assert_close(edited, concepts.edit_input(encoding.double()), rounding)
    value = encoding[..., : LAYERS[FIRST]]
    gates = concepts.gates(encoding)
    assert_close(gates, concepts.gates(encoding.double()), 1e-5)
    added = concepts.edit_value(value, gates, FIRST)
    assert added.dtype == dtype
    assert_close(added, concepts.edit_value(value.double(), gates.double(), FIRST), 2 * rounding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("covariance", [1e-37, 1e-20, 1.0, 1e20, 1e36])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-7, 1.0, 1e3])
@pytest.mark.parametrize("temperature", [1e-6, 0.15])
def test_extreme_numbers_give_what_float64_gives(
    dtype: torch.dtype, covariance: float, size: float, temperature: float
) -> None:
    """The same concept twice and one like it, a C of any scale that fp32 holds, denormal and huge encodings."""
    case = make_case(count=2, alike=0.99, dtype=torch.float32)
    concepts = [*case.concepts, case.concepts[0].replace(trigger="<again>")]
    concepts = [one.replace(target_dual=(one.target_dual.double() / covariance).float()) for one in concepts]
    assert all(one.problem() is None for one in concepts)
    edit = ConceptSet(concepts, betas=0.7, temperatures=temperature, strengths=[1.0, 0.5, 2.0])
    encoding = (case.encoding * size).to(dtype)
    edited, gates = edit.edit_input(encoding), edit.gates(encoding)
    assert edited.isfinite().all()
    assert gates.isfinite().all()
    if temperature > 0.01:  # else a gate is open or shut by the last bit
        assert_close(edited, edit.edit_input(encoding.double()), torch.finfo(dtype).eps + 1e-4)
        assert_close(gates, edit.gates(encoding.double()), 1e-4)


def test_autocast_leaves_the_edit_precise() -> None:
    """Similarities decide about gates and need fp32, whatever the model around them runs in."""
    case = make_case(count=2, alike=0.9, dtype=torch.float32)
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures)
    expected = concepts.gates(case.encoding), concepts.edit_input(case.encoding)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = concepts.gates(case.encoding), concepts.edit_input(case.encoding)
    assert_close(actual[0], expected[0], 1e-5)
    assert_close(actual[1], expected[1], 1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-60])
def test_a_temperature_is_refused_or_gives_finite_gates(temperature: float) -> None:
    case = make_case(dtype=torch.float32)
    encoding = torch.zeros_like(case.encoding)  # exactly on the threshold
    try:
        gates = ConceptSet(case.concepts, betas=0, temperatures=temperature).gates(encoding)
    except ValueError:
        assert temperature < 1e-3
        return
    assert set(gates.flatten().tolist()) == {0.5}


def test_gradients_flow_after_a_use_without_them() -> None:
    """A forward under no_grad or inference_mode must not leave constants behind that later forwards train through."""
    case = make_case(dtype=torch.float32)
    delta = case.concepts[0].value_deltas[FIRST].clone().requires_grad_()
    concepts = ConceptSet([case.concepts[0].replace(value_deltas={FIRST: delta})])
    w_value = weight(FIRST, case.dim).float()
    with torch.inference_mode():
        EditedEncoding(concepts, case.encoding).value(FIRST, case.encoding, lambda x: x @ w_value.T)
    encoding = case.encoding.clone().requires_grad_()
    for _ in range(2):  # and twice: nothing of the first graph is used again
        EditedEncoding(concepts, encoding).value(FIRST, encoding, lambda x: x @ w_value.T).square().sum().backward()
    assert encoding.grad is not None
    assert delta.grad is not None


@given(case=several)
def test_an_edited_encoding_equals_the_direct_formulas(case: Case) -> None:
    concepts = ConceptSet(case.concepts, case.betas, case.temperatures, 0.8)
    other = case.encoding.flip(1) * 0.9
    w_key, w_value = weight(FIRST, case.dim, 1), weight(FIRST, case.dim, 2)

    def direct(key_encoding: Tensor, encoding: Tensor) -> tuple[Tensor, Tensor]:
        key = concepts.edit_input(key_encoding, keys=True) @ w_key.T
        value = concepts.edit_input(encoding) @ w_value.T
        return (
            concepts.edit_key(key, concepts.gates(key_encoding), FIRST),
            concepts.edit_value(value, concepts.gates(encoding), FIRST),
        )

    def assert_pair(edited: EditedEncoding, x: Tensor, expected: tuple[Tensor, Tensor]) -> None:
        assert_close(edited.key(FIRST, x, lambda e: e @ w_key.T), expected[0])
        assert_close(edited.value(FIRST, x, lambda e: e @ w_value.T), expected[1])

    plain, locked = EditedEncoding(concepts, case.encoding), EditedEncoding(concepts, case.encoding, other)
    assert_pair(plain, case.encoding, direct(case.encoding, case.encoding))
    assert_pair(locked, case.encoding, direct(other, case.encoding))
    assert_pair(plain, other, direct(other, other))  # what arrives is not what was prepared
    assert_pair(locked, case.encoding.clone(), direct(case.encoding, case.encoding))


def test_a_layer_that_one_concept_lacks_gets_the_others_outputs() -> None:
    case = make_case(count=2)
    partial = case.concepts[1].replace(value_deltas={FIRST: case.concepts[1].value_deltas[FIRST]})
    concepts = ConceptSet([case.concepts[0], partial])
    gates = torch.ones(1, 1, 2, dtype=torch.float64)
    added = concepts.edit_value(torch.zeros(1, 1, LAYERS[SECOND], dtype=torch.float64), gates, SECOND)
    assert torch.equal(added[0, 0], case.concepts[0].value_deltas[SECOND])


def test_an_unknown_layer_is_named() -> None:
    concepts = ConceptSet(make_case(free_keys=True).concepts)
    with pytest.raises(KeyError, match="no_such_layer"):
        concepts.edit_value(torch.zeros(1, 1, 6), torch.zeros(1, 1, 1), "no_such_layer")
    with pytest.raises(KeyError, match="no_such_layer"):
        concepts.edit_key(torch.zeros(1, 1, 6), torch.zeros(1, 1, 1), "no_such_layer")


def test_a_set_needs_a_concept() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ConceptSet([])


def test_a_set_has_the_usual_settings_unless_others_are_given() -> None:
    concepts = ConceptSet(make_case(count=2).concepts)
    assert concepts.betas == (0.7, 0.7)
    assert concepts.temperatures == (0.15, 0.15)
    assert concepts.strengths == (1.0, 1.0)


def test_concepts_of_different_widths_do_not_mix() -> None:
    """Also when they share a name."""
    narrow, wide = make_case(dim=12).concepts[0], make_case(dim=16).concepts[0]
    with pytest.raises(ValueError, match="different models"):
        ConceptSet([narrow, wide])
    with pytest.raises(ValueError, match="different models"):
        ConceptSet([narrow, dataclasses.replace(wide, name="other")])


@pytest.mark.parametrize("setting", ["betas", "temperatures", "strengths"])
@pytest.mark.parametrize("wrong", [[0.5], [0.5] * 3, [], float("nan"), float("inf"), [0.5, float("nan")], 1e6, -1e6])
def test_settings_must_be_finite_and_one_per_concept(setting: str, wrong: float | list[float]) -> None:
    with pytest.raises(ValueError, match=setting):
        ConceptSet(make_case(count=2).concepts, **{setting: wrong})


@pytest.mark.parametrize("wrong", [0, -0.1, [0.1, 0]])
def test_temperatures_must_be_above_zero(wrong: float | list[float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ConceptSet(make_case(count=2).concepts, temperatures=wrong)


def test_a_concept_that_acts_in_a_part_of_the_picture_leaves_its_outputs_to_the_caller() -> None:
    """What is left out of V is the share of the gate in the concept's output, times its strength. K has all of it."""
    case = make_case(count=2, free_keys=True)
    settings = {"betas": case.betas, "temperatures": case.temperatures, "strengths": [0.5, 0.8]}
    whole, placed = ConceptSet(case.concepts, **settings), ConceptSet(case.concepts, **settings, placed=[True, False])
    gates, value = whole.gates(case.encoding), case.encoding[..., : LAYERS[FIRST]]
    outputs = placed.value_outputs(FIRST, value)
    assert_close(outputs[0], 0.5 * case.concepts[0].value_deltas[FIRST])
    left_out = whole.edit_value(value, gates, FIRST) - placed.edit_value(value, gates, FIRST)
    assert_close(left_out, gates[..., :1] * outputs[0])
    assert torch.equal(whole.edit_key(value, gates, FIRST), placed.edit_key(value, gates, FIRST))
    assert torch.equal(whole.targets, torch.stack(case.targets))
