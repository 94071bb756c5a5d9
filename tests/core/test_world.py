"""The picture book: a scene is what its number, its caption, its masks and its attributes say."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.world import scenes
from benchmarks.world.individuals import (
    ACCESSORIES,
    BOOK,
    CLASSES,
    COLOURS,
    FIRST_STAGE,
    NOBODY,
    PATTERNS,
    SHAPES,
    UNKNOWN,
    WIDTH,
    Individual,
    World,
    individual,
)
from benchmarks.world.places import PLACES, STYLES
from benchmarks.world.scenes import NAMES, caption, described, partly, plan, scene

SEEDS = range(300)
TEDDY = Individual("bear", "chubby", "red", "white", "stripes", "bow", "blue")


def chance(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("number", range(5))
def test_a_scene_follows_from_its_number(number: int) -> None:
    one, again, other = scene(number), scene(number), scene(number + 1)
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.masks, again.masks)
    assert (one.things, one.place, one.style, one.caption) == (again.things, again.place, again.style, again.caption)
    assert plan(number) == (one.things, one.place, one.style)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_mask_is_where_the_thing_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = individual(chance(1), kind)
    for place in PLACES:
        with_it = scene(7, [thing], place, "")
        monkeypatch.setattr(scenes, "draw_thing", lambda *_: None)
        monkeypatch.setattr(np, "ptp", lambda _: 0)  # of a thing that is not there
        shadowless = scene(7, [thing], place, "").image
        monkeypatch.undo()
        assert 0.03 < (with_it.masks[0] > 127).mean() < 0.6
        changed = (with_it.image != shadowless).any(-1)
        high = slice(0, 70)  # above every shadow
        assert not changed[high][with_it.masks[0][high] == 0].any()


def test_what_is_in_front_takes_its_pixels_from_the_mask_behind() -> None:
    for number in SEEDS:
        masks = scene(number, [TEDDY, replace(TEDDY, kind="car", shape="round")]).masks.astype(int)
        assert masks.shape == (2, 96, 96) and (masks.sum(0) <= 256).all()
        if number > 20:
            break


def test_every_attribute_shows_in_the_picture() -> None:
    for field, value in (("shape", "slim"), ("colour", "green"), ("second", "yellow"), ("pattern", "dots"),
                         ("accessory", "hat"), ("accessory_colour", "pink")):  # fmt: skip
        other = replace(TEDDY, **{field: value})
        assert not np.array_equal(scene(3, [TEDDY], "beach", "").image, scene(3, [other], "beach", "").image), field


@pytest.mark.parametrize("kind", SHAPES)
def test_every_word_of_a_class_has_a_look_of_its_own(kind: str) -> None:
    plain = replace(TEDDY, kind=kind, shape=SHAPES[kind][0], accessory="", accessory_colour="")
    looks = [replace(plain, shape=shape) for shape in SHAPES[kind][1:]]
    looks += [replace(plain, pattern=pattern) for pattern in PATTERNS if pattern != plain.pattern]
    looks += [replace(plain, accessory=name, accessory_colour="blue") for name in ACCESSORIES[kind] if name]
    looks += [replace(plain, colour=name) for name in COLOURS if name not in ("red", "white")]
    pictures = [scene(3, [one], "meadow", "").image.tobytes() for one in (plain, *looks)]
    assert len(set(pictures)) == len(pictures)


def test_no_training_scene_shows_a_held_out_individual() -> None:
    shown = [one for number in range(3000) for one in plan(number)[0]]
    assert not any(one.held_out for one in shown)
    assert all(one.held_out for number in range(20) for one in plan(number, held_out=True)[0])
    assert len(set(shown)) > 0.99 * len(shown)  # nearly every scene has new ones
    values = {(one.kind, one.colour) for one in shown}
    assert len(values) == len(CLASSES) * len(COLOURS)


def test_captions_tell_the_truth() -> None:
    attributes = {*COLOURS, *PATTERNS, *(s for shapes in SHAPES.values() for s in shapes), *ACCESSORIES["bear"]}
    for seed in SEEDS:
        things, place, style = plan(seed)
        text = caption(things, place, style, chance(seed))
        assert text.endswith(PLACES[place]) and (not style or STYLES[style] in text)
        words = text.removesuffix(PLACES[place]).split()
        true = {value for one in things for value in (one.shape, one.colour, one.second, one.pattern, one.accessory)}
        true |= {one.accessory_colour for one in things} | ({"gray"} if style == "gray" else set())
        assert set(words) & attributes <= true, text
        for one, name in zip(things, NAMES, strict=False):
            assert name in words or one.kind in words, text


def test_captions_name_all_attributes_often_and_individuals_by_one_word() -> None:
    things = [plan(seed)[0][0] for seed in range(1000)]
    texts = [caption([one], "beach", "", chance(seed)) for seed, one in enumerate(things)]
    assert 0.3 < sum(NAMES[0] in text for text in texts) / len(texts) < 0.5
    for value in (*COLOURS, *PATTERNS[1:], *ACCESSORIES["bear"][1:], *SHAPES["mug"], *CLASSES):
        assert sum(f" {value}" in f" {text} " for text in texts) > 10, value


def test_all_attributes_in_words() -> None:
    assert described(TEDDY) == "a chubby red bear with white stripes and a blue bow"
    plain = replace(TEDDY, pattern="plain", accessory="glasses")
    assert described(replace(plain, shape="slim", colour="orange")).startswith("a slim orange and white bear")
    assert described(plain) == "a chubby red and white bear with blue glasses"


def test_a_name_says_all_or_some_and_words_tell_the_rest():
    some = replace(NOBODY, colour="red", accessory="bow", accessory_colour="blue")
    assert described(TEDDY, noun="<one>", said=some) == "a chubby <one> with white stripes"
    assert described(TEDDY, noun="<one>", said=TEDDY) == "a <one>"
    assert not NOBODY.numbers().any() and some.numbers().sum() == 3
    said = [partly(TEDDY, chance(seed)) for seed in range(300)]
    assert 120 < said.count(TEDDY) < 180 and NOBODY in said
    assert {name.colour for name in said} == {"red", UNKNOWN}
    for seed, one in enumerate(said):
        text = caption([TEDDY], "beach", "", chance(seed), [one])
        assert not (one.colour == "red" and NAMES[0] in text.split() and "red" in text.split())


def test_numbers_tell_individuals_apart() -> None:
    ones = {individual(chance(seed)) for seed in SEEDS}
    numbers = {one.numbers().tobytes() for one in ones}
    assert len(numbers) == len(ones) and TEDDY.numbers().shape == (WIDTH,)


@pytest.mark.parametrize("world", [FIRST_STAGE, BOOK])
def test_every_prompt_leaves_padding(world: World) -> None:
    assert max(len(caption(*plan(seed, world=world), chance(seed)).split()) for seed in SEEDS) < 60


def test_scenes_show_all_classes_and_up_to_three_things() -> None:
    plans = [plan(number) for number in range(3000)]
    assert {one.kind for things, _, _ in plans for one in things} == set(CLASSES)
    shares = [np.mean([len(things) == count for things, _, _ in plans]) for count in (1, 2, 3)]
    assert np.abs(np.array(shares) - (0.6, 0.28, 0.12)).max() < 0.03
    assert {style for things, _, style in plans if len(things) == 3} == set(STYLES) - {"pixel"}
    three = scene(next(number for number, (things, _, _) in enumerate(plans) if len(things) == 3))
    left = [int((mask * np.arange(96)).sum() / mask.sum()) for mask in three.masks.astype(float)]
    assert left == sorted(left) and (three.masks > 127).any((1, 2)).all()


def test_scenes_of_the_first_stage_stay_what_they_were() -> None:
    digest = hashlib.sha256()
    for number in range(20):
        things, place, style = plan(number, world=FIRST_STAGE)
        digest.update(repr((things, place, style, scene(number, world=FIRST_STAGE).caption)).encode())
    assert digest.hexdigest() == "d1d92167619e6497c42dc66c84329349796833f818781a9cc1a90b568fd898f5"
