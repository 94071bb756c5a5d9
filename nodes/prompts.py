"""Prompts in which concepts are named, by their triggers or by {} in a trigger's place."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..perfusion_core import Concept
from .host.tokenizer import whole_word


def prompt_lines(text: str) -> list[str]:
    """The prompts of a text with one on each line."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def with_triggers(prompt: str, concepts: Sequence[Concept]) -> str:
    """The prompt with the triggers of all concepts in the place of every {}."""
    return prompt.replace("{}", " and ".join(concept.trigger for concept in concepts))


def with_places(prompt: str, concept: Concept) -> str:
    """The prompt with {} in the trigger's place."""
    return "{}".join(re.split(whole_word(concept.trigger), unicodedata.normalize("NFC", prompt)))


def with_superclasses(prompt: str, concepts: Sequence[Concept]) -> str:
    """The prompt as those can read it who know no triggers: with superclass words in their place."""
    prompt = unicodedata.normalize("NFC", prompt)
    for concept in sorted(concepts, key=lambda concept: len(concept.trigger), reverse=True):
        prompt = concept.superclass.join(re.split(whole_word(concept.trigger), prompt))
    return prompt


def has_trigger(prompt: str, concept: Concept) -> bool:
    return re.search(whole_word(concept.trigger), unicodedata.normalize("NFC", prompt)) is not None
