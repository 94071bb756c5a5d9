"""How the quality benchmark turns scores into figures and pages."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from benchmarks.quality.report import best, by_individual, hypervolume, interval, lead, mean_curve, means


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"setting": i, "identified": x, "prompt": y} for i, (x, y) in enumerate(points)]


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([(0.5, 0.5)], 0.25),
        ([(1.0, 0.2), (0.5, 0.6)], 1.0 * 0.2 + 0.5 * 0.4),
        ([(0.5, 0.6), (1.0, 0.2)], 1.0 * 0.2 + 0.5 * 0.4),  # in any order
        ([(1.0, 0.5), (0.9, 0.4)], 0.5),  # what another point beats adds nothing
        ([(1.0, 1.0), (0.0, 1.0)], 1.0),
        ([(0.0, 1.0)], 0.0),
        ([], 0.0),
    ],
)
def test_hypervolume_is_the_area_below_the_front(points, area):
    assert hypervolume(curve(*points)) == pytest.approx(area)


def test_the_best_point_has_both():
    assert best(curve((1.0, 0.1), (0.7, 0.7), (0.0, 1.0)))["setting"] == 1
    assert best(curve((0.0, 0.0), (0.0, 1.0)))["identified"] == 0


def test_the_interval_holds_the_mean_and_shrinks_with_more_values():
    few, many = interval([0.0, 1.0] * 5), interval([0.0, 1.0] * 500)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_seeds_of_an_individual_count_once():
    assert by_individual({(0, 0): 0.0, (0, 1): 1.0, (1, 0): 1.0}) == [0.5, 1.0]


def test_how_far_ours_is_ahead_is_taken_from_the_same_individuals_and_seeds():
    ours = {(number, seed): 0.1 * number + 0.2 * seed for number in range(4) for seed in (0, 1)}
    assert lead(ours, {key: value - 0.05 for key, value in ours.items()}) == pytest.approx((0.05, 0.05))
    low, high = lead(ours, {(number, seed): value - (number == 0) for (number, seed), value in ours.items()})
    assert low == 0 < 0.25 < high  # other individuals may have none like the first


def test_a_share_that_some_lack_is_the_mean_of_the_others():
    assert means([{"colour": 1.0, "accessory": 1.0}, {"colour": 0.0}]) == {"colour": 0.5, "accessory": 1.0}


def test_a_mean_curve_has_the_means_of_its_points():
    records = [{"numbers": [i], "seed": 0, "curve": curve((i, 0.5), (0, 1 - i))} for i in (0, 1)]
    first, second = mean_curve(records)
    assert (first["identified"], first["prompt"], second["prompt"]) == (0.5, 0.5, 0.5)
    assert first["identified_interval"] == (0, 1) and first["prompt_interval"] == (0.5, 0.5)
