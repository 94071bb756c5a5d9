"""Captions for the covariance: many, all different, the same on every machine."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

from perfusion_core.captions import TEMPLATES, captions


def test_a_hundred_thousand_captions_are_distinct_and_tidy() -> None:
    made = list(captions(100_000))
    assert len(made) == len(set(made)) == 100_000
    untidy = re.compile(r"^\s|\s$|\s\s|[{}\n\t]|\s,")
    assert [caption for caption in made if untidy.search(caption)] == []


def test_captions_are_always_the_same_ones() -> None:
    """However many are asked for, and whatever else draws random numbers."""
    first = list(captions(1000))
    random.seed(1)
    assert list(islice(captions(100_000), 1000)) == first


def test_the_captions_that_kept_covariances_were_made_from_stay_the_same() -> None:
    """In every process. Whoever changes them on purpose must also change the file names of kept covariances."""
    code = (
        "import hashlib, runpy; captions = runpy.run_path('perfusion_core/captions.py')['captions']; "  # without torch
        "print(hashlib.sha256('\\n'.join(captions(10_000)).encode()).hexdigest()[:16])"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        )
        assert run.stdout.strip() == "6031e6331e78201a"


def test_captions_use_the_right_article() -> None:
    wrong = re.compile(r"\ba (?!uni)[aeiou]|\ban [^aeiou]|\ban uni")
    assert [caption for caption in captions(20_000) if wrong.search(caption)] == []


def test_two_of_a_thing_are_in_the_plural() -> None:
    plurals = {caption.removeprefix("two ") for caption in captions(20_000) if caption.startswith("two ")}
    assert {"men", "babies", "monkeys", "foxes", "buses", "watches", "scarves", "cacti", "sheep"} <= plurals
    assert {
        plural for plural in plurals if re.search(r"([^aeiou]y|x|ch|ss|fish|sheep|man|child|mouse)s$", plural)
    } == set()


def test_people_are_neither_goods_nor_made_of_things() -> None:
    people = re.compile(r"\b(\w+) (man|woman|boy|girl|child|baby|doctor|king|queen)\b")
    described = {match[1] for caption in captions(20_000) for match in people.finditer(caption)}
    assert {"happy", "young"} <= described
    assert described.isdisjoint({"black", "brown", "yellow", "wooden", "broken", "dirty", "heavy", "new"})
    assert not any("for sale" in caption for caption in captions(20_000))


def test_each_template_holds_one_place_for_the_trigger() -> None:
    assert {template.count("{}") for template in TEMPLATES} == {1}
    assert len(set(TEMPLATES)) == len(TEMPLATES)
