"""Makes the pictures of docs/performance.md of what cost.py found, and prints its tables.

bash scripts/env.sh python benchmarks/speed/report.py figures.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import host

# isort: split
from comfyui_perfusion.nodes import plots

Row = Mapping[str, Any]
TITLES = {"sd1": "SD1.5", "sdxl": "SDXL", "anima": "Anima"}
AXES = {"concepts": "concepts", "tokens": "tokens", "prompts": "prompts in a batch", "layers": "layers"}
DOCS = host.REPO / "docs"


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[row["what"]].append(row)
    for what in ("text", "forward"):
        tables = {model: [row for row in by_kind[what] if row["model"] == model] for model in TITLES}
        if any(tables.values()):
            print(side_by_side({TITLES[model]: found for model, found in tables.items() if found}))
    for what in ("python", "training", "loading"):
        for row in by_kind[what]:
            print(what, row["model"], row["name"], {k: round(v, 5) for k, v in row.items() if isinstance(v, float)})
    if by_kind["text"]:
        bars([row for row in by_kind["text"] if row["model"] == "sd1"]).save(DOCS / "performance-ways.png")
    if by_kind["growth"]:
        growth(by_kind["growth"]).save(DOCS / "performance-growth.png")


def side_by_side(tables: Mapping[str, Sequence[Row]]) -> str:
    """Milliseconds of a forward and what it is of the unpatched one's, a column for every model."""
    names = list(dict.fromkeys(row["name"] for found in tables.values() for row in found))
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    for name in names:
        cells = []
        for found in tables.values():
            row = next((row for row in found if row["name"] == name), None)
            cells.append("" if row is None else f"{1e3 * row['seconds']:.1f} ms ({row['ratio']:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(rows: Sequence[Row]):
    """What K and V of the text take in a forward, a bar for every way."""
    rows = [row for row in rows if not row["name"].startswith("0 ")]
    axes = plots._axes("milliseconds in every forward", "")
    colours = [plots._BLUE if row["name"][0].isdigit() else plots._SKY for row in rows]
    places = range(len(rows) - 1, -1, -1)
    axes.barh(places, [1e3 * row["seconds"] for row in rows], color=colours, height=0.7)
    axes.set_yticks(places, [row["name"] for row in rows], **plots._words(plots._INK, fontsize=11))
    axes.grid(False, axis="y")
    for place, row in zip(places, rows, strict=True):
        text = f" {1e3 * row['seconds']:.1f}"
        axes.annotate(text, (1e3 * row["seconds"], place), **plots._words(plots._INK, va="center", fontsize=11))
    axes.set_xlim(0, 1.1 * max(1e3 * row["seconds"] for row in rows))
    plots._ticks(axes.xaxis)
    return plots._picture(axes.figure)


def growth(rows: Sequence[Row]):
    """K and V with an edit that is not kept, as a multiple of the least, over how many times as much there is."""
    axes, legend = plots._axes("times as many", "times as long", logarithmic=True), {}
    colours = (plots._BLUE, plots._RED, plots._GREEN, plots._INK)
    most = 1.0
    for axis, colour in zip(AXES, colours, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        across = [row["at"] / own[0]["at"] for row in own]
        up = [row["edited"] / own[0]["edited"] for row in own]
        most = max(most, *across)
        (legend[AXES[axis]],) = axes.plot(across, up, **plots._line(colour, 3, marker="o"))
    (legend["as much longer as there is more"],) = axes.plot([1, most], [1, most], **plots._line(plots._INK, 1, ":"))
    axes.set(xscale="log", xlim=(1, most), ylim=(0.8, most))
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(plots._matplotlib().ticker.LogLocator(base=2))
        side.set_major_formatter("{x:g}")
    axes.minorticks_off()
    return plots._drawn(axes.figure, legend)


if __name__ == "__main__":
    main()
