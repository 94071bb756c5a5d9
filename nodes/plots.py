"""Pictures of numbers, drawn by matplotlib, which is imported for the first of them.

Every colour and size is given here and pyplot is never used, for matplotlib's settings belong to the whole process:
other packs change them, and we must not.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..perfusion_core import Covariance
from ..perfusion_core.checkpoints import harmonic_mean
from .host.own_folder import own_folder
from .pictures import shortened

_INCHES, _DPI = (7.2, 4), 100  # 720 x 400 pixels
_TEXT = 13  # points, which are 18 pixels; a node mostly shows a plot at half its size
_INK, _GRID, _PAPER = "#202124", "#dadce0", "white"
_BLUE, _SKY, _RED, _GREEN, _BAND = "#0072b2", "#7fbde8", "#d55e00", "#009e73", "#dcebf7"  # told apart by all eyes
_LEAST = 1e-8  # share of the mean; less is nothing, as in covariances once kept in fp32
_FONT = "DejaVu Sans"  # comes with matplotlib
_OTHER_SCRIPTS = ("CJK", "Fallback", "YaHei", "Yu Gothic", "Malgun", "Hiragino", "PingFang", "SD Gothic")  # in names


def loss_curve(losses: Sequence[float], tested: Mapping[int, float]) -> Image.Image:
    """The loss of every step, raw and smoothed, and ``tested``, {step: loss on fixed noises}, a picture 720 x 400."""
    axes = _axes("step", "training loss")
    steps, dot = range(1, len(losses) + 1), "o" if len(losses) == 1 else ""
    (raw,) = axes.plot(steps, losses, **_line(_SKY, 1, marker=dot))
    (smooth,) = axes.plot(steps, smoothed(losses), **_line(_BLUE, 3, marker=dot))
    legend = {"raw": raw, "smoothed": smooth}
    if tested:
        at = [max(step, 1) for step in tested]  # tested before the first step: at it
        (legend["on fixed noises"],) = axes.plot(at, list(tested.values()), **_line(_RED, 1, marker="D", markersize=6))
    shown = [*losses, *tested.values()]
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    axes.set(xlim=(1, max(len(losses), 2)), ylim=(low - margin, high + margin))
    _ticks(axes.xaxis, integer=True)
    _ticks(axes.yaxis)
    return _drawn(axes.figure, legend)


def spectrum(covariance: Covariance) -> Image.Image:
    """C's eigenvalues as shares of their mean, largest first, with the ridge, on a logarithmic scale, 720 x 400."""
    values = torch.linalg.eigvalsh(covariance.matrix()).flip(0)
    mean = max(float(values.mean()), torch.finfo(values.dtype).tiny)
    shares = (values / mean).clamp_min(_LEAST).tolist()
    axes, ends = _axes("direction", "share of the mean", logarithmic=True), [shares[0], shares[-1]]
    (curve,) = axes.plot(range(1, len(shares) + 1), shares, **_line(_BLUE, 3))
    legend = {"eigenvalues": curve}
    if covariance.ridge:
        below = int((values < covariance.ridge * mean).sum())
        words = f"ridge {covariance.ridge:g}: {below} of {len(shares)} directions lie below it"
        ends.append(max(covariance.ridge, _LEAST))
        legend[words] = axes.axhline(ends[-1], **_line(_RED, 2, "--"))
    low, high = np.floor(np.log10(min(ends))), np.ceil(np.log10(max(ends)))
    axes.set(xlim=(1, max(len(shares), 2)), ylim=(10.0**low, 10.0 ** max(high, low + 1)))
    axes.yaxis.set_major_locator(_matplotlib().ticker.LogLocator(numticks=10))
    axes.yaxis.set_major_formatter("{x:g}")
    _ticks(axes.xaxis, integer=True)
    return _drawn(axes.figure, legend)


def similarities(
    points: Sequence[tuple[float, float]], front: Sequence[tuple[float, float]], best: tuple[float, float], words: str
) -> Image.Image:
    """(CLIP-I, CLIP-T) of what was tried, the first a ring, those of the front on a line, and ``words`` on the best
    one, a picture 720 x 400.

    A dotted curve goes through all that is as good as the best, by the harmonic mean.
    """
    axes = _axes("CLIP-I, to the photos", "CLIP-T, to the prompts")
    images, texts = np.array(points).T
    axes.plot(images[1:], texts[1:], **_line(_SKY, 0, marker="o", markersize=7))
    (line,) = axes.plot(*np.array(front).T, **_line(_BLUE, 2, marker="o", markersize=8))
    (start,) = axes.plot(images[:1], texts[:1], **_line(_INK, 0, marker="o", markersize=8, markerfacecolor=_PAPER))
    (ring,) = axes.plot(*best, **_line(_RED, 0, marker="o", markersize=15, markerfacecolor="none"))
    for values, set_limits in ((images, axes.set_xlim), (texts, axes.set_ylim)):
        margin = max(np.ptp(values) * 0.08, 0.002)
        set_limits(values.min() - margin, values.max() + margin)
    if (mean := harmonic_mean(*best)) > 0:
        left, right = axes.get_xlim()
        alike = np.linspace(max(left, mean * 0.51), max(right, mean * 0.52), 200)
        axes.plot(alike, mean * alike / (2 * alike - mean), **_line(_RED, 1, ":", clip_on=True))
    _ticks(axes.xaxis)
    _ticks(axes.yaxis)
    return _drawn(axes.figure, {words: ring, "as it came": start, "unbeaten in both": line})


def gate_curve(
    beta: float,
    temperature: float,
    words: Mapping[str, float],
    suggested: tuple[float, float] | None,
    picture: Image.Image | None,
) -> Image.Image:
    """The gate over the similarity of a word to the concept, with a dot for each of ``words``, 720 x 400.

    words: at most three with their similarities; the concept's own is 1. suggested: a range of beta, shown as a band.
    picture: shown at the side.
    """

    def gate(similarity: Any) -> Any:
        return 1 / (1 + np.exp(np.minimum((beta - similarity) / temperature, 700)))

    axes = _axes("how like the concept a word is", "gate", picture)
    low, high = min(-0.1, *words.values()) - 0.05, max(1.15, *words.values()) + 0.05
    across, quarters = np.linspace(low, high, 300), (0, 0.25, 0.5, 0.75, 1)
    (curve,) = axes.plot(across, gate(across), zorder=3, **_line(_BLUE, 3))
    legend = {f"gate at beta {beta:.2f}, temperature {temperature:.2f}": curve}
    if suggested:
        band = axes.axvspan(*suggested, facecolor=_BAND, edgecolor="none", zorder=0)
        legend[f"suggested beta {suggested[0]:.2f} to {suggested[1]:.2f}"] = band
    for (word, similarity), colour, marker in zip(words.items(), (_GREEN, _INK, _RED), "s^o", strict=False):
        look = _line(colour, 0, marker=marker, markersize=11, markeredgecolor=_PAPER)
        (dot,) = axes.plot([similarity], [gate(similarity)], zorder=4, **look)
        legend[f"{shortened(word)} {gate(similarity):.1%}"] = dot
    axes.axvline(beta, zorder=2, **_line(_INK, 1, ":"))
    axes.annotate("beta", (beta, 1.04), (-5, 0), textcoords="offset points", **_words(_INK, ha="right", va="top"))
    axes.set(xlim=(low, high), ylim=(-0.05, 1.05), xticks=quarters, yticks=quarters)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return _drawn(axes.figure, legend)


def heat_map(names: Sequence[str], values: Sequence[Sequence[float]]) -> Image.Image:
    """A table of numbers in -1..1 with the same names for rows and columns; blue is high, red below 0."""
    figure = _figure((0.8 * len(names), 0.8 * len(names)))
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xlim=(0, len(names)), ylim=(len(names), 0))
    colours = {"cmap": "RdBu", "vmin": -1, "vmax": 1, "edgecolors": _PAPER, "linewidth": 3, "antialiased": False}
    axes.pcolormesh(np.asarray(values), **colours)
    for (row, column), value in np.ndenumerate(np.asarray(values)):
        ink = _PAPER if abs(value) > 0.5 else _INK
        axes.text(column + 0.5, row + 0.5, f"{value:.2f}", **_words(ink, ha="center", va="center_baseline"))
    labels, middles = list(map(shortened, names)), np.arange(len(names)) + 0.5
    axes.xaxis.tick_top()
    axes.set_xticks(middles, labels, rotation=90, **_words(_INK, ha="center", va="bottom", parse_math=False))
    axes.set_yticks(middles, labels, **_words(_INK, ha="right", va="center", parse_math=False))
    axes.tick_params(length=0, pad=6)
    axes.minorticks_off()
    axes.grid(False)
    return _picture(figure, tight=True)


def heat_overlay(picture: Image.Image, heat: torch.Tensor) -> Image.Image:
    """A picture in grey under ``heat`` (height, width) in 0..1: the brighter, the higher."""
    shade = Image.fromarray(heat.mul(255).round().byte().numpy()).resize(picture.size, Image.Resampling.BILINEAR)
    colours = _matplotlib().colormaps["inferno"](np.asarray(shade), bytes=True)
    return Image.blend(picture.convert("L").convert("RGB"), Image.fromarray(colours).convert("RGB"), 0.5)


def as_image(picture: Image.Image) -> torch.Tensor:
    """IMAGE (1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def _axes(below: str, beside: str, picture: Image.Image | None = None, logarithmic: bool = False) -> Any:
    """An empty plot with the names of its axes, and a picture at the right. logarithmic: upwards."""
    figure = _figure(_INCHES, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, wspace=0.02, hspace=0)
    if picture is None:
        axes = figure.add_subplot()
    else:
        axes, side = figure.subplots(1, 2, width_ratios=(3.5, 1))
        side.imshow(np.asarray(picture.convert("RGB")), interpolation="antialiased", origin="upper", aspect="equal")
        side.set_anchor("N")
        side.set_axis_off()
    axes.set(facecolor=_PAPER, yscale="log" if logarithmic else "linear")
    axes.set_axisbelow(True)
    axes.spines[:].set(color=_GRID, linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(False, axis="x")
    axes.grid(True, axis="y", color=_GRID, linewidth=1, linestyle="-")
    axes.tick_params(direction="out", length=4, width=1, pad=5, color=_GRID, labelcolor=_INK, labelsize=_TEXT,
                     labelfontfamily=_fonts())  # fmt: skip
    axes.minorticks_off()
    axes.set_xlabel(below, labelpad=4, loc="center", **_words(_INK))
    axes.set_ylabel(beside, labelpad=6, loc="center", **_words(_INK))
    return axes


def _ticks(axis: Any, **options: Any) -> None:
    """A few round numbers."""
    ticker = _matplotlib().ticker
    axis.set_major_locator(ticker.MaxNLocator(6, steps=(1, 2, 5, 10), **options))
    axis.set_major_formatter(ticker.ScalarFormatter(useOffset=False, useMathText=False, useLocale=False))


def _figure(inches: tuple[float, float], **options: Any) -> Any:
    matplotlib = _matplotlib()
    figure = matplotlib.figure.Figure(inches, _DPI, facecolor=_PAPER, edgecolor=_PAPER, **options)
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    return figure


def _line(colour: str, width: float, style: str = "-", **options: Any) -> dict[str, Any]:
    """How a line or, at width 0, its markers look."""
    marks = {"marker": "", "markersize": 6, "markeredgewidth": 2, "markeredgecolor": colour, "markerfacecolor": colour}
    style = style if width else "none"
    return {"color": colour, "linewidth": width, "linestyle": style, "clip_on": False, **marks, **options}


def _words(colour: str, **options: Any) -> dict[str, Any]:
    return {"color": colour, "fontsize": _TEXT, "fontfamily": _fonts(), **options}


def _drawn(figure: Any, legend: Mapping[str, Any]) -> Image.Image:
    """The picture of a figure, with words on what is in it above it, as many in a line as fit."""
    widths = [45 + 10 * len(words) for words in legend]  # pixels, on the safe side
    columns = next(n for n in (3, 2, 1) if n == 1 or sum(max(it, default=0) for it in _split(widths, n)) < 700)
    box = figure.legend(
        legend.values(), ["-"] * len(legend), loc="outside upper left", ncols=columns, labelcolor=_INK, frameon=False,
        prop={"size": _TEXT, "family": _fonts()}, handlelength=1.2, handletextpad=0.5, columnspacing=1.2, borderpad=0,
        borderaxespad=0.8, labelspacing=0.3, numpoints=1, markerscale=1,
    )  # fmt: skip
    for text, words in zip(box.get_texts(), legend, strict=True):
        text.set(text=words, parse_math=False)  # names may hold what matplotlib takes for formulas, or for hidden
    return _picture(figure)


def _split(values: Sequence[int], columns: int) -> list[list[int]]:
    """As matplotlib spreads them over the columns of a legend."""
    return [part.tolist() for part in np.array_split(np.array(values), columns)]


def _picture(figure: Any, tight: bool = False) -> Image.Image:
    """tight: as large as what is drawn, which may go beyond the figure."""
    if not tight:
        figure.canvas.draw()
        return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, facecolor=_PAPER, bbox_inches="tight", pad_inches=0.1)
    return Image.open(buffer).convert("RGB")


@cache
def _fonts() -> list[str]:
    """The font of all words, and fonts of this system for what it lacks: a concept's name may be Japanese."""
    names = {font.name for font in _matplotlib().font_manager.fontManager.ttflist}
    return [_FONT, *sorted(name for name in names if any(part in name for part in _OTHER_SCRIPTS))[:4]]


@cache
def _matplotlib() -> Any:
    """The package. Its first import makes a list of the system's fonts, which takes a moment, and keeps it."""
    with _home_kept_clean():
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.font_manager
        import matplotlib.ticker
    return matplotlib


@contextmanager
def _home_kept_clean() -> Iterator[None]:
    """What matplotlib keeps goes to ComfyUI's user folder, unless there is a folder of its own already."""
    home = Path.home()
    caches = [Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "matplotlib", home / ".matplotlib"]
    configs = [Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib"]
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ or any(map(Path.exists, caches + configs)):
        yield
        return
    os.environ["MPLCONFIGDIR"] = str(own_folder("matplotlib"))
    try:
        yield
    finally:
        del os.environ["MPLCONFIGDIR"]  # matplotlib has read it


def smoothed(losses: Sequence[float], every: int = 1) -> list[float]:
    """Mean over a window of a tenth of the curve around every so many steps."""
    reach = max(len(losses) // 20, 1)
    return [float(np.mean(losses[max(i - reach, 0) : i + reach + 1])) for i in range(0, len(losses), every)]
