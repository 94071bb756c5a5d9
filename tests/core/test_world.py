"""The small world of the demo model: a scene is what its seed, its caption, its fields and its mask say."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.world import scenes
from benchmarks.world.scenes import (
    BACKGROUNDS,
    CONCEPTS,
    FONT,
    MORE_OBJECTS,
    OBJECTS,
    STYLES,
    TINTS,
    TUNING_CONCEPTS,
    Scene,
    draw_scene,
    world_scene,
)

pytestmark = pytest.mark.skipif(not FONT.exists(), reason=f"{FONT} is missing: apt-get install fonts-noto-color-emoji")

SEEDS = range(150)
PLAIN = {"style": "", "tint": ""}
HELD_OUT = {**CONCEPTS, **TUNING_CONCEPTS}


def drawn(seed: int, **given: str) -> Scene:
    return draw_scene(np.random.default_rng(seed), **given)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The emoji that are drawn, in their order: the second object's comes before the first's."""
    record, look = [], scenes._look

    def recorded(character: str, size: int, tint: str) -> np.ndarray:
        record.append(character)
        return look(character, size, tint)

    monkeypatch.setattr(scenes, "_look", recorded)
    return record


def changed(one: Scene, other: Scene) -> np.ndarray:
    """(64, 64), bool: where the pictures differ."""
    return (one.image != other.image).any(-1)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_gives_the_same_scene(seed: int) -> None:
    one, again, other = (asdict(drawn(s)) for s in (seed, seed, seed + 1))
    for field, value in one.items():
        np.testing.assert_array_equal(value, again[field])
    assert not np.array_equal(one["image"], other["image"])


def test_pictures_and_masks_are_64_pixels_square_in_0_to_1() -> None:
    for scene in map(drawn, SEEDS):
        for values, shape in ((scene.image, (64, 64, 3)), (scene.mask, (64, 64))):
            assert values.shape == shape and values.dtype == np.float32
            assert values.min() >= 0 and values.max() <= 1


@pytest.mark.parametrize("second", ["", "cup"])
def test_the_mask_is_where_the_first_object_is(second: str) -> None:
    for seed in range(20):
        bear, cake = (drawn(seed, name=name, second=second, background="snow", **PLAIN) for name in ("bear", "cake"))
        difference = changed(bear, cake)
        either = np.maximum(bear.mask, cake.mask)
        assert not difference[either == 0].any()
        assert difference[either == 1].mean() > 0.95
        assert (bear.mask > 0.5).mean() > 0.08


@pytest.mark.parametrize("name", OBJECTS)
def test_every_look_of_every_class_covers_a_good_part_of_its_square(name: str) -> None:
    for look in OBJECTS[name]:
        assert drawn(0, name=name, look=look, second="").mask.sum() > 0.15 * 34**2


@pytest.mark.parametrize("name", MORE_OBJECTS)
def test_more_objects_are_there_and_are_others(name: str) -> None:
    assert drawn(0, name=name, second="").mask.sum() > 0.06 * 34**2
    assert name not in {*OBJECTS, *HELD_OUT}
    assert MORE_OBJECTS[name] not in "".join(OBJECTS.values()) + "".join(look for look, _ in HELD_OUT.values())


def test_the_model_is_trained_on_all_objects(looks: list[str]) -> None:
    drawn = [world_scene(2, number) for number in range(600)]
    assert 0.55 < np.mean([scene.name in MORE_OBJECTS for scene in drawn]) < 0.65
    assert 0.25 < np.mean([scene.second != "" for scene in drawn]) < 0.35
    assert not set(looks) & {look for look, _ in HELD_OUT.values()}
    assert len({scene.name for scene in drawn} & set(MORE_OBJECTS)) > 0.5 * len(MORE_OBJECTS)
    np.testing.assert_array_equal(drawn[7].image, world_scene(2, 7).image)


def test_captions_name_what_is_there_and_nothing_else() -> None:
    captions = 0
    for scene in map(drawn, SEEDS):
        words = set(scene.caption.split())
        if scene.caption:
            captions += 1
            assert words & set(OBJECTS) == {scene.name, scene.second} - {""}
            assert words & set(TINTS) == {scene.tint} - {""}
            assert words & set(BACKGROUNDS) <= {scene.background}
            assert not scene.style or scene.caption.startswith(STYLES[scene.style])
            assert scene.style or not scene.caption.startswith(tuple(STYLES[style] for style in STYLES if style))
    assert 0.8 * len(SEEDS) < captions < len(SEEDS)


def test_concepts_are_never_drawn_without_being_asked_for(looks: list[str]) -> None:
    for scene in map(drawn, SEEDS):
        assert scene.name in OBJECTS and scene.second in {"", *OBJECTS}
        assert not set(scene.caption.split()) & set(HELD_OUT)
    assert set(looks) <= set("".join(OBJECTS.values()))
    assert not set(looks) & {look for look, _ in HELD_OUT.values()}


@pytest.mark.parametrize("concept", HELD_OUT)
def test_concepts_are_drawn_as_their_class_where_they_are_asked_for(concept: str, looks: list[str]) -> None:
    look, name = HELD_OUT[concept]
    scene = drawn(0, name=name, look=look, second=name, second_look=look)
    assert looks == [look, look]
    assert scene.name == scene.second == name
    assert name in OBJECTS and look not in "".join(OBJECTS.values())


def test_the_second_object_is_to_the_right_of_the_first() -> None:
    for seed in range(30):
        given = {"second": "bear", "background": "water", **PLAIN}
        brown, panda = (drawn(seed, second_look=look, **given) for look in OBJECTS["bear"])
        np.testing.assert_array_equal(brown.mask, panda.mask)
        columns = np.flatnonzero(changed(brown, panda).any(0))
        assert columns.min() >= 32 > np.average(np.arange(64), weights=brown.mask.sum(0))


def test_an_empty_word_means_none_of_it(looks: list[str]) -> None:
    for seed in SEEDS:
        scene = drawn(seed, style="", tint="", second="")
        assert (scene.style, scene.tint, scene.second) == ("", "", "")
        assert " and a " not in scene.caption
    assert len(looks) == len(SEEDS)


def test_what_is_given_is_in_the_scene() -> None:
    given = {"name": "cat", "background": "night", "tint": "blue", "style": "pixel", "second": "key"}
    for seed in range(10):
        fields = asdict(drawn(seed, **given))
        assert {field: fields[field] for field in given} == given


def test_styles_and_tints_are_what_they_say() -> None:
    for style in ("sketch", "gray"):
        image = drawn(1, style=style).image
        assert (image == image[..., :1]).all()
    blocks = drawn(1, style="pixel").image.reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    for tint, channel in (("red", 0), ("green", 1), ("blue", 2)):
        scene = drawn(1, name="elephant", tint=tint, style="", second="")
        assert scene.image[scene.mask == 1].mean(0).argmax() == channel
