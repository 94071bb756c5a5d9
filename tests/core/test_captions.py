"""Captions for the covariance: many, all different, the same on every machine."""

from __future__ import annotations

import random
import re
from itertools import islice

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


def test_captions_use_the_right_article() -> None:
    wrong = re.compile(r"\ba [aeio]|\ban [^aeiou]|\ban uni")
    assert [caption for caption in captions(20_000) if wrong.search(caption)] == []


def test_each_template_holds_one_place_for_the_trigger() -> None:
    assert {template.count("{}") for template in TEMPLATES} == {1}
    assert len(set(TEMPLATES)) == len(TEMPLATES)
