"""What keys are locked to: of a superclass the last word, and of that the last token."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from comfy.sd1_clip import SDTokenizer

from ...perfusion_core.concept import plain_words
from .tokenizer import ids_within


@dataclass(frozen=True)
class LockedWord:
    superclass: str  # in plain words
    token: int
    locked: str  # the word, or the part of one, that the token is
    known: bool  # whether that is a whole word

    @property
    def sentence(self) -> str:
        return f"{self.superclass}: the layout follows {self.locked!r}"

    @property
    def warning(self) -> str | None:
        """What to do where the text encoder does not know the word; None where it does."""
        if self.known:
            return None
        word = self.superclass.split()[-1]
        if self.locked.isdigit():
            return f"The layout would follow the number {self.locked!r}. Write a plain English word last, such as dog."
        locked = repr(self.locked) if self.locked else "a part of a character"
        return (
            f"The text encoder does not know {word!r} as one word: the layout would follow {locked}. Write a common "
            "English word for it, such as dog."
        )


def locked_word(tokenizer, superclass: str) -> LockedWord:
    """By a text encoder's Hugging Face tokenizer. Raises ValueError for a superclass without a word."""
    words = plain_words(superclass)
    if not words:
        found = "is empty" if not superclass.strip() else f"{superclass.strip()!r} holds no word"
        raise ValueError(f"The superclass {found}. Give the plain word your concept is a kind of, such as teddy.")
    token = ids_within(tokenizer, words)[-1]
    locked = tokenizer.decode([token]).strip()
    known = _last_letters(words).lower() == locked.lower()
    return LockedWord(words, token, locked if locked.isprintable() and "\ufffd" not in locked else "", known)


def locked_without_model(superclass: str) -> LockedWord:
    """As every CLIP encoder of SD1.x, SD2.x and SDXL reads it: all have one vocabulary."""
    return locked_word(_tokenizer(), superclass)


@functools.cache
def _tokenizer():
    return SDTokenizer().tokenizer


def _last_letters(words: str) -> str:
    """Of "old t-shirt" the shirt; nothing where a number stands last."""
    return re.search(r"[^\W\d_]*\Z", words).group()
