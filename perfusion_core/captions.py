"""Words for training: the templates a trigger stands in, and web-like captions for the covariance."""

from __future__ import annotations

import random
from collections.abc import Iterator


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(";")]


TEMPLATES = (
    "a photo of a {}",
    "a good photo of a {}",
    "a close-up photo of a {}",
    "a cropped photo of the {}",
    "a bright photo of the {}",
    "a dark photo of a {}",
    "a photo of the nice {}",
    "a photo of one {}",
    "the photo of the {}",
    "a rendition of a {}",
    "an image of the {}",
    "a picture of a {}",
    "a {}",
    "this is a {}",
    "a {} in the picture",
    "look at the {}",
)  # the trigger takes the place of {}

_ATTRIBUTES = """
red blue green yellow purple orange pink black white brown golden silver old new tiny huge wooden metal plastic glass
soft shiny broken colorful striped spotted vintage modern cute scary happy sad sleepy wet dry clean dirty handmade
antique fluffy smooth rusty elegant simple heavy bright pale empty famous lonely
""".split()
_THINGS = """
cat dog horse bird rabbit bear lion tiger elephant monkey fish turtle owl fox wolf mouse cow sheep pig duck teddy doll
robot toy puppet figurine statue sculpture vase pot cup mug bottle bowl plate teapot lamp chair table sofa bed clock
watch phone camera computer keyboard book pencil backpack bag hat shoe shirt dress jacket scarf umbrella guitar piano
violin drum ball bicycle car bus truck train boat airplane rocket house castle church bridge tower tent tree flower rose
cactus mushroom apple banana cake pizza burger cookie sandwich man woman boy girl child baby chef dancer painter doctor
soldier king queen wizard knight angel dragon unicorn ghost monster skeleton mountain river lake forest beach island
volcano waterfall garden street market kitchen office window door mirror candle crown ring necklace sword shield key map
flag balloon gift kite
""".split()
_PLACES = _phrases("""
on a table; in the garden; on the beach; in the snow; in a forest; on a wooden floor; in the kitchen; by the window;
on the street; in a city at night; under the sea; on top of a mountain; in space; on a white background; in the rain;
at sunset; in the desert; next to a river; in a museum; on a shelf; in front of a castle; in a cafe; on the grass;
in a box; on a bed; in the clouds; at the market; in an old library; on a boat; near a lake
""")
_ACTIONS = _phrases("""
sitting; standing; sleeping; running; jumping; dancing; playing guitar; reading a book; drinking tea; wearing a hat;
wearing sunglasses; riding a bicycle; looking at the camera; eating cake; holding a flower; swimming; flying; hiding
""")
_STYLES = _phrases("""
a photo of {}; a close-up photo of {}; an oil painting of {}; a watercolor painting of {}; a pencil sketch of {};
a drawing of {}; a digital illustration of {}; a 3d render of {}; pixel art of {}; a black and white photo of {};
a poster of {}; a cartoon of {}; a sculpture of {}; a macro photo of {}; a vintage photograph of {}; {};
a stained glass window with {}; a children's book illustration of {}; a studio photo of {}; {}, 4k; {} for sale;
{}, highly detailed; my {plain}; the {plain} that I bought yesterday; two {plain}s; how to draw {}
""")


def captions(count: int) -> Iterator[str]:
    """``count`` different captions in the manner of web captions, always the same ones (at most a few million)."""
    chosen = random.Random(0)
    seen: set[str] = set()
    while len(seen) < count:
        caption = _caption(chosen)
        if caption not in seen:
            seen.add(caption)
            yield caption


def _caption(chosen: random.Random) -> str:
    plain = thing = chosen.choice(_THINGS)
    if chosen.random() < 0.6:
        thing = f"{chosen.choice(_ATTRIBUTES)} {thing}"
    thing = _with_article(thing)
    if chosen.random() < 0.35:
        thing += f" {chosen.choice(_ACTIONS)}"
    if chosen.random() < 0.25:
        thing += " and " + _with_article(f"{chosen.choice(_ATTRIBUTES)} {chosen.choice(_THINGS)}")
    if chosen.random() < 0.6:
        thing += f" {chosen.choice(_PLACES)}"
    return chosen.choice(_STYLES).replace("{plain}", plain).replace("{}", thing)


def _with_article(words: str) -> str:
    vowel = words[0] in "aeiou" and not words.startswith("uni")
    return f"{'an' if vowel else 'a'} {words}"
