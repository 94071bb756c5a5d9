"""Makes docs/quality.md, docs/quality-methods.md, docs/quality.json and their pictures of what run.py found.

bash scripts/env.sh python -m benchmarks.quality.report [FOLDER]

Without a folder pages and plot are made again of what is in docs/quality.json.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {"page.md": "quality.md", "methods_page.md": "quality-methods.md"}
Record = Mapping[str, Any]
RESAMPLINGS = 2000
SIDE, GAP, CELL = 96, 2, 104  # pixels of a picture, beside it, and of its place in a contact sheet
SHOWN = {0: "bear", 5: "robot"}  # individuals whose pictures are kept
OURS = "perfusion"
WAYS = {  # to teach an individual, in colours that all eyes tell apart; the others are variants of Perfusion
    "perfusion": ("#0072b2", "o"),
    "perfusion, locked keys": ("#56b4e9", "o"),
    "lora, rank 1": ("#e69f00", "^"),
    "lora, rank 4": ("#d55e00", "v"),
    "custom diffusion": ("#009e73", "P"),
    "textual inversion": ("#6b6b00", "X"),
    "dreambooth": ("#202124", "*"),
}
TOGETHER = ("perfusion", "perfusion, locked keys", "lora, rank 4", "textual inversion")
INK, GRID, GRAY = "#202124", "#dadce0", "#c4c7cc"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    options = parser.parse_args()
    if options.folder:
        found = json.loads((options.folder / "scores.json").read_text())
        (DOCS / "quality.json").write_text(json.dumps(summary(found), indent=1) + "\n")
    figures = json.loads((DOCS / "quality.json").read_text())
    if options.folder:
        save_pictures(found, figures, options.folder / "sheets")
    fronts(figures, DOCS / "quality-fronts.png")
    for template, page in PAGES.items():
        text = Path(__file__).with_name(template).read_text(encoding="utf-8")
        (DOCS / page).write_text(document(figures, text), encoding="utf-8")
    print(methods_table(figures))


# Figures


def summary(found: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    methods: dict[str, list[Record]] = defaultdict(list)
    for record in found["learned"]:
        methods[record["method"]].append(record)
    volumes = {
        name: {(record["numbers"][0], record["seed"]): hypervolume(record["curve"]) for record in records}
        for name, records in methods.items()
    }
    curves = {name: mean_curve(records) for name, records in methods.items()}
    two, three = means_by_way(found["two"]), means_by_way(found["three"])
    (card,) = found["card"]
    return {
        "demo_model": card["demo model"],
        "demo_model_genuine": card["genuine scenes"],
        "demo_model_autoencoder": card["through the autoencoder"],
        "hypervolume": {name: float(np.mean(list(values.values()))) for name, values in volumes.items()},
        "hypervolume_interval": {name: interval(by_individual(values)) for name, values in volumes.items()},
        "lead_interval": {name: lead(volumes[OURS], values) for name, values in volumes.items() if name != OURS},
        "identified": {
            name: {
                "one": best(curve)["identified"],
                "two": two.get(name, {}).get("all"),
                "three": three.get(name, {}).get("all"),
            }
            for name, curve in curves.items()
        },
        "mixing": {name: scores["mixing"] for name, scores in two.items()},
        "two": two,
        "three": three,
        "references": means_by_way(found["references"]),
        "curves": curves,
        "bytes": {name: int(np.mean([record["bytes"] for record in records])) for name, records in methods.items()},
        "seconds": {name: float(np.median([r["seconds"] for r in records])) for name, records in methods.items()},
        "trainings": {name: len(records) for name, records in methods.items()},
        "pictures": {name: len(records) for name, records in found.items()},
    }


def hypervolume(curve: Sequence[Record]) -> float:
    """The area below the front of the curve's points, (identified, the rest of the prompt)."""
    area, height = 0.0, 0.0
    for identified, prompt in sorted(((at["identified"], at["prompt"]) for at in curve), reverse=True):
        if prompt > height:
            area += identified * (prompt - height)
            height = prompt
    return area


def best(curve: Sequence[Record]) -> Record:
    """The point where the harmonic mean of both shares is highest."""
    return max(curve, key=lambda at: at["identified"] * at["prompt"] / (at["identified"] + at["prompt"] + 1e-9))


def mean_curve(records: Sequence[Record]) -> list[dict[str, Any]]:
    curve = []
    for points in zip(*(record["curve"] for record in records), strict=True):
        by_axis = {
            f"{axis}_interval": interval(by_individual({
                (record["numbers"][0], record["seed"]): at[axis] for record, at in zip(records, points, strict=True)
            }))
            for axis in ("identified", "prompt")
        }  # fmt: skip
        curve.append({**means(points), **by_axis})
    return curve


def means_by_way(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    ways = {name: None for record in records for name in record["scores"]}
    return {name: means([record["scores"][name] for record in records]) for name in ways}


def means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every share; not all individuals have all of them."""
    names = {name: None for of in scores for name in of}
    return {name: float(np.mean([of[name] for of in scores if name in of])) for name in names}


def by_individual(values: Mapping[tuple[int, int], float]) -> list[float]:
    """The means over seeds of values by individual and seed."""
    found = defaultdict(list)
    for (number, _), value in values.items():
        found[number].append(value)
    return [float(np.mean(seeds)) for seeds in found.values()]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean, by bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLINGS, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def lead(ours: Mapping[tuple[int, int], float], theirs: Mapping[tuple[int, int], float]) -> tuple[float, float]:
    """95 % of how far ours is ahead for the same individuals and seeds, over other individuals."""
    return interval(by_individual({key: ours[key] - value for key, value in theirs.items()}))


# Pages


def document(figures: Mapping[str, Any], text: str) -> str:
    """A page of docs/ with figures where it asks for them."""
    tables = {
        "short": short_table(figures),
        "methods": methods_table(figures),
        "fronts": fronts_table(figures["curves"]),
        "two": table(figures["two"], "way"),
        "three": table(figures["three"], "way"),
        "references": table(figures["references"], "way"),
        "demo model": table(
            {
                "demo model": figures["demo_model"],
                "genuine scenes": figures["demo_model_genuine"],
                "through the autoencoder": figures["demo_model_autoencoder"],
            },
            "",
        ),
    }
    return fill(text, figures, tables)


def fill(text: str, figures: Mapping[str, Any], tables: Mapping[str, str]) -> str:
    """With figures where the text asks for them: [share: identified.perfusion.one], [table: methods]."""

    def share(match: re.Match) -> str:
        value: Any = figures
        for name in match[1].split("."):
            value = value[name]
        return f"{100 * value:.0f} %"

    text = re.sub(r"\[share: ([^\]]+)\]", share, text)
    return re.sub(r"\[table: ([^\]]+)\]", lambda match: tables[match[1]], text)


def short_table(figures: Mapping[str, Any]) -> str:
    """A row for every way to teach an individual, and for what they are compared with."""
    lines = ["| | shown | rest of the prompt | both of two | all of three | mixed up | trade-off | file |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    rows = []
    for name in WAYS:
        size = f"{figures['bytes'][name] / 1024:,.1f} KB"
        rows.append((name, best(figures["curves"][name]), f"{figures['hypervolume'][name]:.2f}", size))
    rows += [(f"*{name}*", at, "", "") for name, at in reversed(figures["references"].items())]
    for name, at, volume, size in rows:
        two, three = (figures[kind].get(name.strip("*"), {}) for kind in ("two", "three"))
        lines.append(
            f"| {name} | {percent(at['identified'])} | {percent(at['prompt'])} | {percent(two.get('all'))} | "
            f"{percent(three.get('all'))} | {percent(two.get('mixing'))} | {volume} | {size} |"
        )
    return "\n".join(lines)


def methods_table(figures: Mapping[str, Any]) -> str:
    lines = ["| method | hypervolume | 95 % | behind Perfusion, 95 % | file | to learn, one core | trainings |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, volume in sorted(figures["hypervolume"].items(), key=lambda item: -item[1]):
        low, high = figures["hypervolume_interval"][name]
        behind = "{:+.2f} to {:+.2f}".format(*figures["lead_interval"][name]) if name != OURS else ""
        lines.append(
            f"| {name} | {volume:.2f} | {low:.2f} to {high:.2f} | {behind} | {figures['bytes'][name] / 1024:,.1f} KB | "
            f"{figures['seconds'][name]:.0f} s | {figures['trainings'][name]} |"
        )
    return "\n".join(lines)


def fronts_table(curves: Mapping[str, Sequence[Record]]) -> str:
    shown = ("identified", "in five", "class", "prompt", "place", "style", "thing", "its colour", "likeness")
    rows = {
        f"{name} | {at['setting']:g}": {column: at[column] for column in shown if column in at}
        for name, curve in curves.items()
        for at in curve
    }
    return table(rows, "method | setting")


def table(rows: Mapping[str, Mapping[str, float | None]], corner: str) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1 + corner.count("|")) + "|"]
    lines += [f"| {label} | {' | '.join(percent(row.get(name)) for name in columns)} |" for label, row in rows.items()]
    return "\n".join(lines)


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


# Pictures


def fronts(figures: Mapping[str, Any], path: Path) -> None:
    """The curve of every method, with 95 % of its points; variants of Perfusion are gray."""
    figure = Figure((9, 6.4), 100, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for name, curve in figures["curves"].items():
        colour, marker = WAYS.get(name, (GRAY, ""))
        x, y = (100 * np.array([at[axis] for at in curve]) for axis in ("identified", "prompt"))
        if marker:
            ends = (100 * np.array([at[f"{axis}_interval"] for at in curve]).T for axis in ("prompt", "identified"))
            dy, dx = (np.abs(both - middle) for both, middle in zip(ends, (y, x), strict=True))
            axes.errorbar(x, y, dy, dx, ecolor=colour, elinewidth=0.8, linestyle="none", alpha=0.3)
        label = f"{name} ({figures['hypervolume'][name]:.2f})" if marker else "variants of perfusion"
        axes.plot(x, y, label=label, color=colour, marker=marker, markersize=8, linewidth=2, zorder=3 if marker else 2)
    for marker, (name, at) in zip("DsPv^", figures["references"].items(), strict=True):
        style = {"color": INK, "fillstyle": "none", "linestyle": "none", "markersize": 8, "zorder": 4}
        axes.plot(100 * at["identified"], 100 * at["prompt"], marker, label=name, **style)
    axes.set_xlabel("% of pictures in which the individual is the nearest of 201", color=INK)
    axes.set_ylabel("% of what else the prompt names is there", color=INK)
    axes.tick_params(color=GRID, labelcolor=INK)
    axes.spines[:].set(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # the variants share a label
    figure.legend(
        handles.values(), handles, title="method (area below its front)", ncols=4, loc="outside upper left",
        alignment="left", labelcolor=INK, frameon=False,
    )  # fmt: skip
    figure.savefig(path)


def save_pictures(found: Mapping[str, Sequence[Record]], figures: Mapping[str, Any], sheets: Path) -> None:
    from nodes.pictures import contact_sheet  # only here: ComfyUI has a module of the same name

    prompts = {record["numbers"][0]: record["prompts"] for record in found["references"]}
    for number, kind in SHOWN.items():
        rows = [("photos", cells(sheets / f"photos - {number}.png", 0))]
        for name in WAYS:
            curve = figures["curves"][name]
            at = curve.index(best(curve))
            label = f"{name}, {curve[at]['setting']:g}"
            rows.append((label, cells(sheets / f"{name} - {number} - 0.png", at)))
        for row, name in enumerate(figures["references"]):
            rows.append((name, cells(sheets / f"references - {number} - 0.png", row)))
        contact_sheet(prompts[number], rows, CELL).save(DOCS / f"quality-{kind}.jpg", quality=88, optimize=True)
    pairs = [record for record in found["two"] if record["numbers"][0] in SHOWN and not record["seed"]]
    rows = [("photos", [cell for record in pairs for number in record["numbers"]
                        for cell in cells(sheets / f"photos - {number}.png", 0)[:2]])]  # fmt: skip
    for row, name in enumerate(figures["two"]):
        if name in TOGETHER:
            parts = [cells(sheets / f"two - {record['numbers'][0]} - 0.png", row) for record in pairs]
            rows.append((name, [cell for part in parts for cell in part]))
    prompts = [prompt for record in pairs for prompt in record["prompts"]]
    contact_sheet(prompts, rows, CELL).save(DOCS / "quality-together.jpg", quality=88, optimize=True)


def cells(path: Path, row: int) -> list[Image.Image]:
    """One row of a sheet of judging.py's."""
    picture, top = Image.open(path), row * (SIDE + GAP)
    return [picture.crop((left, top, left + SIDE, top + SIDE)).resize((CELL, CELL), Image.Resampling.LANCZOS)
            for left in range(0, picture.width, SIDE + GAP)]  # fmt: skip


if __name__ == "__main__":
    main()
