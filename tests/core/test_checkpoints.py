"""The best moment of a training: by score where there is one, else by loss."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfusion_core import Checkpoint, best_checkpoint, load_training, save_training
from perfusion_core.checkpoints import best_of, best_tensors, harmonic_mean

from .makers import file_concept, same_bits

CONCEPT = file_concept()


def checkpoint(step: int, loss: float, image: float | None = None, text: float | None = None) -> Checkpoint:
    return Checkpoint(step, CONCEPT, loss, image, text)


def best(*checkpoints: Checkpoint) -> int:
    return best_checkpoint(checkpoints).step


def test_the_lowest_loss_is_best_where_nothing_was_scored() -> None:
    assert best(checkpoint(0, 0.9), checkpoint(50, 0.3), checkpoint(100, 0.4)) == 50


def test_the_harmonic_mean_decides_where_there_are_scores() -> None:
    """Not the sum: .9 + .1 is more than .4 + .4, but one of both has failed."""
    assert best(checkpoint(50, 0.1, 0.9, 0.1), checkpoint(100, 0.9, 0.4, 0.4)) == 100
    assert checkpoint(50, 0.1, 0.6, 0.3).score == pytest.approx(0.4)


def test_what_was_not_scored_does_not_compete_with_what_was() -> None:
    assert best(checkpoint(50, 0.1), checkpoint(100, 0.9, 0.1, 0.1)) == 100


@given(a=st.floats(1e-6, 1), b=st.floats(1e-6, 1))
def test_the_harmonic_mean_lies_between_and_leans_to_the_lower(a: float, b: float) -> None:
    mean = harmonic_mean(a, b)
    assert mean == pytest.approx(1 / ((1 / a + 1 / b) / 2))
    assert min(a, b) * (1 - 1e-9) <= mean <= (a + b) / 2 * (1 + 1e-9)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0), (-0.5, 0.5), (0.5, -0.5), (0, 0), (float("nan"), 1)])
def test_the_harmonic_mean_is_zero_when_one_is_not_above_zero(a: float, b: float) -> None:
    assert harmonic_mean(a, b) == 0


def test_the_untrained_concept_is_only_for_lack_of_others() -> None:
    assert best(checkpoint(0, 0.1), checkpoint(50, 0.3)) == 50
    assert best(checkpoint(0, 0.1)) == 0


@pytest.mark.parametrize("similarities", [(None, None), (0.25, 0.5)])
def test_the_best_checkpoint_goes_through_a_training_file(similarities, tmp_path) -> None:
    now, best = file_concept(1), Checkpoint(50, file_concept(2), 0.125, *similarities)
    save_training(best_tensors(best), now, tmp_path / "training")
    found = best_of(load_training(tmp_path / "training", now), now)
    assert found is not None
    assert (found.step, found.loss, found.image_similarity, found.text_similarity) == (50, 0.125, *similarities)
    tensors = found.concept.tensors()
    assert tensors.keys() == best.concept.tensors().keys()
    assert all(same_bits(tensor, tensors[name]) for name, tensor in best.concept.tensors().items())
    assert best_of({}, now) is None


def test_the_earlier_of_equals_is_best() -> None:
    equals = [checkpoint(50, 0.3, 0.5, 0.5), checkpoint(100, 0.2, 0.5, 0.5)]
    assert best(*equals) == 50
    assert best(*(dataclasses.replace(one, image_similarity=None, loss=0.1) for one in equals)) == 50
