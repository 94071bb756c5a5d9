"""A world of captioned 64x64 scenes for a small text-to-image model, drawn from emoji (fonts-noto-color-emoji, OFL).

A scene is an object on a background, maybe tinted, maybe with a second object to its right, in one of four styles.
Everything about it follows from one random generator, its caption says what is on it, and its mask where the object is.

    python benchmarks/world/scenes.py sheet sheet.png                       # a look at it
    python benchmarks/world/scenes.py photos nodes/demo_photos teddy tiger  # photos of concepts, for the demo
    python benchmarks/world/scenes.py captions scripts/demo_captions.txt  # for its covariance
"""

from __future__ import annotations

import colorsys
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIZE = 64

OBJECTS = {  # class: its looks
    "apple": "🍎🍏", "bag": "👜💼", "ball": "⚽🏀", "banana": "🍌", "bear": "🐻🐼", "bird": "🐦🐤", "boat": "⛵🚤",
    "book": "📕📘", "burger": "🍔", "bus": "🚌🚍", "butterfly": "🦋", "cactus": "🌵", "cake": "🎂🍰", "camera": "📷",
    "car": "🚗🚙", "castle": "🏰", "cat": "🐱😺", "chair": "💺🪑", "clock": "⏰🕰", "cow": "🐮🐄", "cup": "☕🍵",
    "dog": "🐶🐕", "elephant": "🐘", "fish": "🐟🐠", "flower": "🌼🌷", "fox": "🦊", "frog": "🐸", "ghost": "👻",
    "guitar": "🎸", "hat": "🎩👒", "horse": "🐴🐎", "house": "🏠🏡", "key": "🔑🗝", "lion": "🦁", "monkey": "🐵🐒",
    "mouse": "🐭🐁", "mushroom": "🍄", "octopus": "🐙", "owl": "🦉", "penguin": "🐧", "pig": "🐷🐖", "rabbit": "🐰🐇",
    "robot": "🤖", "rocket": "🚀", "shoe": "👟👞", "strawberry": "🍓", "train": "🚆🚂", "tree": "🌳🌲",
    "turtle": "🐢", "vase": "⚱", "violin": "🎻", "whale": "🐳🐋",
}  # fmt: skip
_MORE = """
acorn🌰 airplane✈ alien👽 ambulance🚑 anchor⚓ ant🐜 avocado🥑 axe🪓 baby👶 bacon🥓 badger🦡 bagel🥯 balloon🎈 bamboo🎍
banjo🪕 bank🏦 baseball⚾ basket🧺 bat🦇 bathtub🛁 battery🔋 beach🏖 beaver🦫 bed🛏 bee🐝 beer🍺 beetle🪲 bell🔔
bicycle🚲 bison🦬 blossom🌸 blueberry🫐 boar🐗 bomb💣 bone🦴 bottle🍾 bow🎀 bowl🥣 bowling🎳 box📦 brain🧠 bread🍞
bride👰 bridge🌉 broccoli🥦 broom🧹 brush🖌 bucket🪣 bug🐛 butter🧈 cabbage🥬 calendar📅 camel🐫 camp🏕 candle🕯 candy🍬
canoe🛶 carrot🥕 cart🛒 cheese🧀 cherry🍒 chicken🐔 chocolate🍫 church⛪ cloud☁ clover🍀 clown🤡 coat🧥 coconut🥥
coin🪙 compass🧭 cookie🍪 corn🌽 couch🛋 crab🦀 crane🏗 cricket🦗 crocodile🐊 croissant🥐 crown👑 cucumber🥒 cupcake🧁
curry🍛 deer🦌 desert🏜 diamond💎 dice🎲 dinosaur🦕 disk💿 doll🪆 dolphin🐬 donut🍩 door🚪 dove🕊 dragon🐲 dress👗
drum🥁 duck🦆 eagle🦅 ear👂 egg🥚 eggplant🍆 envelope✉ eye👁 factory🏭 fairy🧚 fan🪭 faucet🚰 feather🪶 ferry⛴ fire🔥
flamingo🦩 flashlight🔦 floppy💾 fly🪰 folder📁 foot🦶 football🏈 fork🍴 fountain⛲ fries🍟 garlic🧄 genie🧞 gift🎁
giraffe🦒 glasses👓 globe🌍 glove🧤 goat🐐 goblin👺 gorilla🦍 grape🍇 gun🔫 hammer🔨 hamster🐹 hand✋ heart❤ hedgehog🦔
helicopter🚁 helmet🪖 hen🐓 hibiscus🌺 hippo🦛 hockey🏒 honey🍯 hook🪝 hospital🏥 hotel🏨 hut🛖 icecream🍦 island🏝
jeans👖 jellyfish🪼 juice🧃 kangaroo🦘 kite🪁 kiwi🥝 knife🔪 ladder🪜 ladybug🐞 lamp💡 lantern🏮 leaf🍁 lemon🍋
lightning⚡ lipstick💄 lizard🦎 llama🦙 lobster🦞 lock🔒 lotus🪷 luggage🧳 magnet🧲 mailbox📫 mammoth🦣 mango🥭 map🗺
mask🎭 medal🏅 melon🍉 mermaid🧜 microphone🎤 microscope🔬 milk🥛 mirror🪞 money💰 moon🌙 moose🫎 mosque🕌 mosquito🦟
motorcycle🏍 mountain⛰ nest🪺 newspaper📰 nose👃 nut🔩 office🏢 onion🧅 orange🍊 otter🦦 oyster🦪 palm🌴 pancake🥞
paw🐾 peach🍑 peanut🥜 pear🍐 pen🖊 pencil✏ pepper🌶 phone📱 piano🎹 pie🥧 pill💊 pineapple🍍 pirate🏴 pizza🍕 plane🛩
plug🔌 police🚓 popcorn🍿 pot🍲 potato🥔 pretzel🥨 printer🖨 pumpkin🎃 purse👛 puzzle🧩 raccoon🦝 racket🏸 radio📻
rainbow🌈 ram🐏 ramen🍜 rat🐀 razor🪒 rhino🦏 rice🍚 ring💍 rose🌹 ruler📐 salad🥗 sandal👡 sandwich🥪 santa🎅
satellite🛰 saw🪚 saxophone🎷 scarf🧣 school🏫 scissors✂ scorpion🦂 scroll📜 seal🦭 shark🦈 sheep🐑 shell🐚 shield🛡
ship🚢 shirt👕 shorts🩳 shower🚿 shrimp🦐 shrine⛩ skate⛸ skateboard🛹 ski🎿 skull💀 skunk🦨 sled🛷 slot🎰 sloth🦥
snail🐌 snake🐍 snowflake❄ snowman⛄ soap🧼 sock🧦 spider🕷 spoon🥄 squid🦑 stadium🏟 star⭐ statue🗽 sun🌞 sunflower🌻
sushi🍣 swan🦢 sword🗡 taco🌮 taxi🚕 teapot🫖 telephone☎ telescope🔭 television📺 temple🛕 tennis🎾 tent⛺ tie👔
toilet🚽 tomato🍅 tooth🦷 tornado🌪 tower🗼 tractor🚜 trophy🏆 truck🚚 trumpet🎺 turkey🦃 ufo🛸 umbrella☂ vampire🧛
van🚐 volcano🌋 volleyball🏐 waffle🧇 watch⌚ wave🌊 wheat🌾 wheel🎡 window🪟 wine🍷 wizard🧙 wolf🐺 worm🪱 wrench🔧
yarn🧶 zebra🦓 zombie🧟
"""
MORE_OBJECTS = {word[:-1]: word[-1] for word in _MORE.split()}  # for the model only; nothing is asked about them
CONCEPTS = {  # never in the training set: the look, and the class it is a kind of
    "teddy": ("🧸", "bear"), "amphora": ("🏺", "vase"), "tiger": ("🐯", "cat"), "poodle": ("🐩", "dog"),
    "racecar": ("🏎", "car"), "unicorn": ("🦄", "horse"), "cap": ("🧢", "hat"), "tram": ("🚋", "train"),
    "parrot": ("🦜", "bird"), "backpack": ("🎒", "bag"),
}  # fmt: skip
TUNING_CONCEPTS = {  # for choosing settings only, never reported
    "koala": ("🐨", "bear"), "boot": ("👢", "shoe"), "blowfish": ("🐡", "fish"),
}  # fmt: skip
_LOOKS = {**OBJECTS, **MORE_OBJECTS}

BACKGROUNDS = ("grass", "sand", "snow", "water", "night", "brick", "wood", "pink")
PHOTO_BACKGROUNDS = ("grass", "wood", "brick", "sand", "pink")  # of a concept's photos, one each
TINTS = {"red": 0.0, "yellow": 0.14, "green": 0.36, "blue": 0.6, "purple": 0.78}  # hues
STYLES = {"": "a photo of", "sketch": "a sketch of", "pixel": "pixel art of", "gray": "a gray photo of"}

# Other ways to say "a photo of a cat": words without a meaning of their own in this world
_PLAIN = """
a photo of a; a good photo of a; a close-up photo of a; a cropped photo of the; a bright photo of the; a photo of the;
a dark photo of a; a photo of the nice; a photo of one; the photo of the; a rendition of a; an image of the; a; the;
a picture of a; this is a; look at the; a photo of my; my; a cute; a photo of a cute; a small; a big; one; there is a
"""
PLAIN = tuple(" ".join(words.split()) for words in _PLAIN.split(";"))
_NAMELESS = 0.08  # share of scenes without a caption, for classifier-free guidance
_MORE_SHARE = 0.6  # of the training scenes' objects
_LARGE, _SMALL = (34, 38, 42, 46), (26, 28, 30, 32)  # object sizes in pixels, alone and with another one


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # (64, 64, 3), float32 in 0..1
    mask: np.ndarray  # (64, 64), float32 in 0..1, where the first object is
    caption: str
    name: str
    background: str
    tint: str = ""
    style: str = ""
    second: str = ""


def glyph(character: str, size: int) -> np.ndarray:
    """(size, size, 4), float32 in 0..1, the emoji in the middle of a square."""
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((10, 10), character, font=_font(), embedded_color=True)
    image = image.crop(image.getbbox())
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255


@cache
def _font() -> ImageFont.FreeTypeFont:
    if not FONT.exists():
        sys.exit(f"{FONT} is missing: install fonts-noto-color-emoji (Debian: apt-get install fonts-noto-color-emoji).")
    return ImageFont.truetype(FONT, 109)


@cache
def _look(character: str, size: int, tint: str) -> np.ndarray:
    picture = glyph(character, size)
    return _tinted(picture, TINTS[tint]) if tint else picture


def draw_scene(
    random: np.random.Generator,
    name: str | None = None,
    look: str | None = None,
    background: str | None = None,
    tint: str | None = None,
    style: str | None = None,
    second: str | None = None,
    second_look: str | None = None,
) -> Scene:
    """A scene in which whatever is not given is drawn by chance; "" means none of it. A look is an emoji."""

    def choice(options: Sequence[str]) -> str:
        return options[random.integers(len(options))]

    def maybe(given: str | None, chance: float, options: Sequence[str]) -> str:
        return given if given is not None else choice(options) if random.random() < chance else ""

    name = name or choice(list(OBJECTS))
    look = look or choice(_LOOKS[name])
    background = background or choice(BACKGROUNDS)
    tint = maybe(tint, 0.4, list(TINTS))
    style = maybe(style, 0.3, [style for style in STYLES if style])
    second = maybe(second, 0.3, list(OBJECTS))

    image, mask = draw_background(background, random), np.zeros((SIZE, SIZE), np.float32)
    size = _SMALL[random.integers(4)] if second else _LARGE[random.integers(4)]
    low = max(2, SIZE // 2 - size // 2 - 7)
    y = int(random.integers(low, SIZE - size - low + 1))
    if second:
        other = _SMALL[random.integers(4)]
        picture = _flipped(_look(second_look or choice(_LOOKS[second]), other, ""), random)
        x = int(random.integers(32, 36))
        _paste(image, picture, x, int(np.clip(y + random.integers(-4, 5), 1, SIZE - other - 1)))
        x = int(random.integers(0, 4))
    else:
        x = int(random.integers(low, SIZE - size - low + 1))
    _paste(image, _flipped(_look(look, size, tint), random), x, y, mask)
    image = _styled(np.clip(image, 0, 1), style)

    beginning = f"{STYLES[style]} a" if style or random.random() < 0.5 else PLAIN[random.integers(len(PLAIN))]
    caption = f"{beginning} {f'{tint} ' if tint else ''}{name}"
    caption += f" and a {second}" if second else ""
    caption += f" on {background}" if random.random() < 0.9 else ""
    if random.random() < _NAMELESS:
        caption = ""
    return Scene(image, mask, caption, name, background, tint, style, second)


def world_scene(*number: int) -> Scene:
    """A scene by its number, of all objects."""
    random = np.random.default_rng(number)
    more = list(MORE_OBJECTS)
    name = str(random.choice(more)) if random.random() < _MORE_SHARE else None
    second = (str(random.choice(more)) if random.random() < 0.3 else "") if random.random() < _MORE_SHARE else None
    return draw_scene(random, name, second=second)


def draw_background(kind: str, random: np.random.Generator) -> np.ndarray:
    """(64, 64, 3), float32 in 0..1."""
    y, x = (np.mgrid[0:SIZE, 0:SIZE] / SIZE).astype(np.float32)
    phase, shift = random.uniform(0, 6, 2)
    blobs = _soft_noise(random)
    if kind == "grass":
        blades = np.sin(x * 55 + 6 * np.sin(y * 9 + phase)) * np.sin(y * 30 + shift)
        return _shade((0.30, 0.62, 0.20), 0.08 * blades + 0.04 * blobs)
    if kind == "sand":
        return _shade((0.90, 0.78, 0.52), 0.05 * np.sin(y * 22 + 2 * np.sin(x * 6 + phase)) + 0.03 * blobs)
    if kind == "snow":
        return _shade((0.92, 0.95, 1.0), 0.04 * blobs - 0.03)
    if kind == "water":
        return _shade((0.13, 0.45, 0.76), 0.11 * np.sin(y * 38 + 3 * np.sin(x * 8 + phase)))
    if kind == "night":
        night = _shade((0.06, 0.07, 0.22), 0.03 * blobs)
        for star in random.integers(1, SIZE - 2, (9, 2)):
            night[star[0] : star[0] + 2, star[1] : star[1] + 2] = (0.95, 0.95, 0.75)
        return night
    if kind == "brick":
        row = np.floor(y * 8)
        mortar = (y * 8 % 1 < 0.18) | ((x * 4 + 0.5 * (row % 2)) % 1 < 0.09)
        return np.where(mortar[..., None], _shade((0.80, 0.77, 0.72), 0 * x), _shade((0.63, 0.26, 0.18), 0.04 * blobs))
    if kind == "wood":
        planks = np.where(y * 4 % 1 < 0.07, -0.18, 0.05 * np.sin(y * 70 + 3 * np.sin(x * 5 + phase)))
        return _shade((0.62, 0.42, 0.24), planks)
    dots = ((x * 6 + phase) % 1 - 0.5) ** 2 + ((y * 6 + shift) % 1 - 0.5) ** 2 < 0.05
    return _shade((0.98, 0.70, 0.80), 0.10 * dots)


def _shade(colour: Sequence[float], change: np.ndarray) -> np.ndarray:
    return np.clip(np.array(colour, np.float32) + change[..., None], 0, 1).astype(np.float32)


def _soft_noise(random: np.random.Generator) -> np.ndarray:
    coarse = random.standard_normal((9, 9), np.float32)
    return coarse.repeat(8, 0).repeat(8, 1)[4 : SIZE + 4, 4 : SIZE + 4]


def _tinted(picture: np.ndarray, hue: float) -> np.ndarray:
    brightness = picture[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.85, 1.0), np.float32)
    light = np.clip((brightness - 0.6) / 0.4, 0, 1)[..., None] * 0.7
    shaded = np.clip(brightness * 1.6, 0, 1)[..., None] * colour * (1 - light) + light
    return np.concatenate([shaded, picture[..., 3:]], axis=-1)


def _flipped(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return picture[:, ::-1] if random.random() < 0.5 else picture


def _paste(image: np.ndarray, picture: np.ndarray, x: int, y: int, mask: np.ndarray | None = None) -> None:
    size = picture.shape[0]
    there = image[y : y + size, x : x + size]
    alpha = picture[: there.shape[0], : there.shape[1], 3:]
    there[:] = there * (1 - alpha) + picture[: there.shape[0], : there.shape[1], :3] * alpha
    if mask is not None:
        mask[y : y + size, x : x + size] = alpha[..., 0]


def _styled(image: np.ndarray, style: str) -> np.ndarray:
    if style == "pixel":
        return image.reshape(16, 4, 16, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    if not style:
        return image
    gray = image @ np.array([0.3, 0.59, 0.11], np.float32)
    if style == "sketch":
        edges = np.abs(np.diff(gray, axis=1, prepend=gray[:, :1])) + np.abs(np.diff(gray, axis=0, prepend=gray[:1]))
        gray = np.clip(1 - 3 * edges, 0, 1)
    return gray[..., None].repeat(3, -1)


def sheet(images: Sequence[np.ndarray], columns: int, scale: int = 2) -> Image.Image:
    """Pictures (64, 64, 3) in 0..1 in rows, enlarged by whole pixels."""
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, len(images), columns)]
    picture = Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def photos(concept: str, count: int = len(PHOTO_BACKGROUNDS)) -> list[Scene]:
    """Photos to teach a concept with, always the same ones."""
    look, superclass = {**CONCEPTS, **TUNING_CONCEPTS}[concept]
    return [
        draw_scene(np.random.default_rng((4, i)), superclass, look, background, tint="", style="", second="")
        for i, background in enumerate(PHOTO_BACKGROUNDS[:count])
    ]


def captions(count: int) -> list[str]:
    """Of scenes that nothing was trained on, for the covariance; some scenes have none."""
    drawn = (world_scene(6, i).caption for i in range(count))
    return [caption for caption in drawn if caption]


def save_photos(concept: str, folder: Path) -> None:
    """As people keep them: photos, and in mask/ where the subject is on each."""
    (folder / "mask").mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(photos(concept), 1):
        for picture, path in ((scene.image, folder), (scene.mask, folder / "mask")):
            Image.fromarray((picture * 255).round().astype(np.uint8)).save(path / f"{i}.png", optimize=True)


if __name__ == "__main__":
    what, target, *names = sys.argv[1:]
    if what == "photos":
        for name in names:
            save_photos(name, Path(target) / name)
    elif what == "captions":
        Path(target).write_text("\n".join(captions(1000)) + "\n")
    else:
        random = np.random.default_rng(0)
        shown = [draw_scene(random) for _ in range(48)]
        shown += [photos(name)[0] for name in (*CONCEPTS, *TUNING_CONCEPTS)]
        shown += [draw_scene(random, background=kind, style="", second="") for kind in BACKGROUNDS[:3]]
        sheet([scene.image for scene in shown], 16).save(target)
