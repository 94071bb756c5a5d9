"""Words for training: the templates a trigger stands in, and web-like captions for the covariance."""

from __future__ import annotations

import random
import re
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

_MOODS = "cute scary happy sad sleepy lonely tired friendly angry quiet proud elegant famous old young tiny".split()
_COLOURS = """
red blue green yellow purple orange pink black white brown golden colorful striped spotted wooden plastic glass soft
fluffy wet dirty clean tiny huge old
""".split()
_STATES = """
new metal silver shiny broken vintage modern dry handmade antique smooth rusty elegant simple heavy bright pale empty
famous
""".split()
_SCENERY = "old new tiny huge colorful bright pale dark empty famous lonely quiet foggy beautiful".split()
_PLACES = _phrases("""
on a table; in the garden; on the beach; in the snow; in a forest; on a wooden floor; in the kitchen; by the window;
on the street; in a city at night; under the sea; on top of a mountain; in space; on a white background; in the rain;
at sunset; in the desert; next to a river; in a museum; on a shelf; in front of a castle; in a cafe; on the grass;
in a box; on a bed; in the clouds; at the market; in an old library; on a boat; near a lake
""")
_VIEWS = _phrases("""
in the snow; in the rain; in the fog; in the clouds; at sunset; at night; in the morning; in summer; in winter;
seen from above; seen from far away; under a blue sky; with a few people; without anybody around
""")
_ACTIONS = _phrases("""
sitting; standing; sleeping; running; jumping; dancing; playing guitar; reading a book; drinking tea; wearing a hat;
wearing sunglasses; riding a bicycle; looking at the camera; eating cake; holding a flower; swimming; flying; hiding
""")
_KINDS = {  # things: what they are like, what they do, where they are
    """
    man woman boy girl child baby chef dancer painter doctor soldier king queen wizard knight
    """: (_MOODS, _ACTIONS, _PLACES),
    """
    cat dog horse bird rabbit bear lion tiger elephant monkey fish turtle owl fox wolf mouse cow sheep pig duck teddy
    doll robot toy puppet figurine statue angel dragon unicorn ghost monster skeleton
    """: (_MOODS + _COLOURS, _ACTIONS, _PLACES),
    """
    sculpture vase pot cup mug bottle bowl plate teapot lamp chair table sofa bed clock watch phone camera computer
    keyboard book pencil backpack bag hat shoe shirt dress jacket scarf umbrella guitar piano violin drum ball bicycle
    car bus truck train boat airplane rocket tent flower rose cactus mushroom apple banana cake pizza burger cookie
    sandwich door mirror candle crown ring necklace sword shield key map flag balloon gift kite
    """: (_COLOURS + _STATES, [], _PLACES),
    """
    house castle church bridge tower tree mountain river lake forest beach island volcano waterfall garden street
    market kitchen office window
    """: (_SCENERY, [], _VIEWS),
}
_THINGS = {thing: kind for things, kind in _KINDS.items() for thing in things.split()}
_THING_NAMES = list(_THINGS)
_STYLES = _phrases("""
a photo of {}; a close-up photo of {}; an oil painting of {}; a watercolor painting of {}; a pencil sketch of {};
a drawing of {}; a digital illustration of {}; a 3d render of {}; pixel art of {}; a black and white photo of {};
a poster of {}; a cartoon of {}; a sculpture of {}; a macro photo of {}; a vintage photograph of {}; {};
a stained glass window with {}; a children's book illustration of {}; a studio photo of {}; {}, 4k;
{}, highly detailed; how to draw {}; my {plain}; the {plain} that I saw yesterday; two {plural}
""")
_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "mouse": "mice", "wolf": "wolves", "scarf": "scarves",
    "cactus": "cacti", "fish": "fish", "sheep": "sheep",
}  # fmt: skip


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
    plain, other = chosen.choice(_THING_NAMES), chosen.choice(_THING_NAMES)
    attributes, actions, places = _THINGS[plain]
    thing = _with_article(f"{chosen.choice(attributes)} {plain}" if chosen.random() < 0.6 else plain)
    if actions and chosen.random() < 0.5:
        thing += f" {chosen.choice(actions)}"
    if chosen.random() < 0.25:
        thing += " and " + _with_article(f"{chosen.choice(_THINGS[other][0])} {other}")
    if chosen.random() < 0.6:
        thing += f" {chosen.choice(places)}"
    style = chosen.choice(_STYLES).replace("{plain}", plain).replace("{plural}", _plural(plain))
    return style.replace("{}", thing)


def _with_article(words: str) -> str:
    vowel = words[0] in "aeiou" and not words.startswith("uni")
    return f"{'an' if vowel else 'a'} {words}"


def _plural(thing: str) -> str:
    if thing in _PLURALS:
        return _PLURALS[thing]
    if re.search("[^aeiou]y$", thing):
        return f"{thing[:-1]}ies"
    return thing + ("es" if thing.endswith(("s", "x", "ch")) else "s")
