"""Sheets of pictures and of words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

_CELL, GAP = 256, 6  # pixels
_SMALL, _LARGE = 192, 512  # of a picture that is shown pixel by pixel
_INK, _PAPER, _BLUE = "#202124", "white", (0, 114, 178)


def thumbnails(images: Tensor) -> list[Image.Image]:
    """Pictures for a cell of a sheet, of an IMAGE batch (n, height, width, 3) in 0..1."""
    return [ImageOps.contain(picture, (_CELL, _CELL)) for picture in _pictures(images)]


def native(images: Tensor) -> list[Image.Image]:
    """The pictures of an IMAGE batch pixel by pixel; small ones a whole number of times as large, huge ones reduced."""
    pictures = _pictures(images)
    longest = max(pictures[0].size)
    if longest > _LARGE:
        return [ImageOps.contain(picture, (_LARGE, _LARGE)) for picture in pictures]
    times = -(-_SMALL // longest)
    return [ImageOps.scale(picture, times, Image.Resampling.NEAREST) for picture in pictures]


def _pictures(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.mul(255).round().byte().cpu().numpy()) for image in images.clamp(0, 1)]


def contact_sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = _CELL
) -> Image.Image:
    """A labelled grid of thumbnails. Each row has a label and at most as many pictures as there are columns.

    cell: the side in pixels of the square that a thumbnail is to fit in. The labels grow with it, so that they can be
    read when a node shows a large sheet small. Right of every cell and below it there is GAP; the rest is labels.
    """
    step, font = cell + GAP, ImageFont.load_default(cell / 10)
    above = [_wrapped(label, font, cell - 8, lines=4) for label in columns]
    beside = [_wrapped(label, font, round(cell * 0.7), lines=6) for label, _ in rows]
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    side = 2 * GAP + max(math.ceil(ruler.multiline_textbbox((0, 0), lines, font)[2]) for lines in beside)
    head = 2 * GAP + max(math.ceil(ruler.multiline_textbbox((0, 0), lines, font)[3]) for lines in above)
    sheet = Image.new("RGB", (side + len(columns) * step, head + len(rows) * step), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(above):
        middle = (side + column * step + cell / 2, head / 2)
        draw.multiline_text(middle, lines, fill=_INK, font=font, anchor="mm", align="center")
    for row, (lines, (_, pictures)) in enumerate(zip(beside, rows, strict=True)):
        top = head + row * step
        draw.multiline_text((side - GAP, top + cell / 2), lines, fill=_INK, font=font, anchor="rm", align="right")
        for column, picture in enumerate(pictures):
            left = side + column * step
            sheet.paste(picture, (left + (cell - picture.width) // 2, top + (cell - picture.height) // 2))
    return sheet


def word_map(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Image.Image:
    """Texts with the number 0..1 of every word below it, the bluer the higher, and a heading above each; 640 wide."""
    font, small, pad, high = ImageFont.load_default(24), ImageFont.load_default(20), 8, 62
    width, across, down = 640, pad, pad
    texts, boxes = [], []  # (place, text) and (left, top, right, word, number)
    for heading, words in rows:
        texts.append(((pad, down), heading))
        across, down = pad, down + 36
        for word, number in words:
            label = shortened(word)
            wide = round(max(font.getlength(label), small.getlength(f"{number:.2f}"))) + 2 * pad
            if across > pad and across + wide > width - pad:
                across, down = pad, down + high + 6
            boxes.append((across, down, across + wide, label, number))
            across += wide + 3
        down += high + 3 * pad
    picture = Image.new("RGB", (width, down - pad), "white")
    draw = ImageDraw.Draw(picture)
    for place, text in texts:
        draw.text(place, text, fill=_INK, font=font)
    for left, top, right, word, number in boxes:
        paper, ink = _colours(number)
        draw.rectangle([left, top, right, top + high], fill=paper)
        draw.text(((left + right) / 2, top + 18), word, fill=ink, font=font, anchor="mm")
        draw.text(((left + right) / 2, top + 45), f"{number:.2f}", fill=ink, font=small, anchor="mm")
    return picture


def _colours(number: float) -> tuple[tuple[int, ...], str]:
    """Of the paper and the ink for a number in 0..1."""
    return tuple(round(255 + (part - 255) * number) for part in _BLUE), "white" if number > 0.5 else _INK


def shortened(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _wrapped(text: str, font, width: int, lines: int) -> str:
    """``text`` in at most so many lines of at most this width; what does not fit is left out with an ellipsis."""
    done, words = [""], text.split()
    for i, word in enumerate(words):
        longer = f"{done[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            done[-1] = longer
        elif done[-1] and len(done) < lines:
            done.append(word)
        else:
            done[-1] = " ".join([longer, *words[i + 1 :]])
            break
    return "\n".join(_cut(line, font, width) for line in done)


def _cut(line: str, font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
