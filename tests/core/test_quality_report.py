"""How the quality benchmark turns scores into figures."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from benchmarks.quality.report import behind, hypervolume, interval, joined, points

ANCHORS = {
    "teddy": {"model": {"clip_i": 0.2, "clip_t": 0.9}, "photos": {"clip_i": 0.8, "clip_t": 0.5}},
}


def test_the_model_without_the_concept_and_a_copy_of_a_photo_are_the_ends_of_the_scale():
    curve = [{"clip_i": 0.2, "clip_t": 0.9}, {"clip_i": 0.8, "clip_t": 0.5}, {"clip_i": 0.5, "clip_t": 0.7}]
    found = points({"concept": "teddy", "curve": curve}, ANCHORS)
    assert [pytest.approx(point) for point in [(0, 1), (1, 0), (0.5, 0.5)]] == found


@pytest.mark.parametrize(
    ("curve", "area"),
    [
        ([(0.5, 0.5)], 0.25),
        ([(1.0, 0.2), (0.5, 0.6)], 1.0 * 0.2 + 0.5 * 0.4),
        ([(0.5, 0.6), (1.0, 0.2)], 1.0 * 0.2 + 0.5 * 0.4),  # in any order
        ([(1.0, 0.5), (0.9, 0.4)], 0.5),  # what another point beats adds nothing
        ([(-0.2, 0.9), (0.4, -0.1)], 0.0),  # nor what is worse than both ends of the scale
        ([(1.0, 0.5), (-0.2, 0.9)], 0.5),
        ([], 0.0),
    ],
)
def test_hypervolume_is_the_area_below_the_front(curve, area):
    assert hypervolume(curve) == pytest.approx(area)


def test_the_interval_holds_the_mean_and_shrinks_with_more_values():
    few, many = interval([0.0, 1.0] * 5), interval([0.0, 1.0] * 500)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_how_far_a_method_is_behind_is_taken_from_the_same_concepts_and_seeds():
    first = {(concept, seed): 0.1 * i + 0.2 * seed for i, concept in enumerate("abcd") for seed in (0, 1)}
    assert behind({key: value - 0.05 for key, value in first.items()}, first) == pytest.approx((0.05, 0.05))
    low, high = behind({(concept, seed): value - (concept == "a") for (concept, seed), value in first.items()}, first)
    assert low == 0 < 0.25 < high  # other concepts may have none like "a"


def test_more_settings_join_those_of_the_same_concept_and_seed():
    records = [{"concept": concept, "seed": seed, "curve": [{"setting": 1.0}]} for concept in "ab" for seed in (0, 1)]
    others = [{**record, "curve": [{"setting": 0.5, "of": (record["concept"], record["seed"])}]} for record in records]
    for record in joined(records, others[::-1]):
        assert record["curve"] == [{"setting": 1.0}, {"setting": 0.5, "of": (record["concept"], record["seed"])}]
