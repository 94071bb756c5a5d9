"""How the quality benchmark turns scores into figures."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from benchmarks.quality.report import hypervolume, interval, points

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
