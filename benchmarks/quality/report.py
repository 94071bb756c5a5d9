"""Makes docs/quality.md, docs/quality-methods.md, docs/quality.json and their pictures of what run.py found.

bash scripts/env.sh python benchmarks/quality/report.py [FOLDER]

Without a folder pages and plot are made again of what is in docs/quality.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
Record = Mapping[str, Any]
Point = tuple[float, float]  # image alignment, text alignment
RESAMPLINGS = 2000
SHOWN = ("teddy", "racecar", "parrot")  # concepts whose pictures are kept
SIDE, CELL = 64, 112  # pixels of a picture, and of its place in a contact sheet
UNCHANGED = "perfusion as above"
PAGES = {"page.md": "quality.md", "methods_page.md": "quality-methods.md"}
WAYS = (
    "perfusion",
    "lora, rank 1",
    "lora, rank 4",
    "lora, rank 4, pasted",
    "custom diffusion",
    "textual inversion",
    "dreambooth",
)
LOOKS = {  # of methods in the plot, in colours that all eyes tell apart
    "perfusion": ("#0072b2", "o"),
    "perfusion, by strength": ("#56b4e9", "s"),
    "lora, rank 1": ("#e69f00", "^"),
    "lora, rank 4": ("#d55e00", "v"),
    "lora, rank 4, pasted": ("#cc79a7", "D"),
    "custom diffusion": ("#009e73", "P"),
    "textual inversion": ("#6b6b00", "X"),
    "dreambooth": ("#202124", "*"),
}
INK, GRID = "#202124", "#dadce0"
FINER = ", finer"  # ends the names of methods at more strengths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    options = parser.parse_args()
    if options.folder:
        figures = read(options.folder)
        (DOCS / "quality.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    figures = json.loads((DOCS / "quality.json").read_text())
    pareto(figures, DOCS / "quality-pareto.png")
    for template, page in PAGES.items():
        text = document(figures, Path(__file__).with_name(template).read_text(encoding="utf-8"))
        (DOCS / page).write_text(text, encoding="utf-8")
    print(methods_table(figures))


def read(folder: Path) -> dict[str, Any]:
    """The figures of what run.py kept in a folder; saves the pictures of some concepts."""
    sys.path.insert(0, str(REPO))  # only here: ComfyUI has a module of the same name
    from nodes.pictures import contact_sheet

    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    trained = [record for record in found.values() if isinstance(record, dict) and "curve" in record]
    figures = summary(found, trained)
    for concept in SHOWN:
        rows = [("photos", cells(folder / f"photos - {concept}.png", 0))]
        for name, curve in figures["curves"].items():
            best = max(range(len(curve)), key=lambda i: harmonic_mean(curve[i]["image"], curve[i]["text"]))
            label = f"{name} {curve[best]['setting']:g}"
            rows.append((label, cells(folder / "painted" / f"{name} - {concept} - 0.png", best)))
        contact_sheet(found["prompts"], rows, CELL).save(DOCS / f"quality-{concept}.jpg", quality=88)
    return figures


def summary(found: Mapping[str, Any], trained: Sequence[Record]) -> dict[str, Any]:
    methods, ablations, anchors = defaultdict(list), defaultdict(list), found["anchors"]
    for record in trained:
        methods[record["method"]].append(record)
    finer = {name.removesuffix(FINER): methods.pop(name) for name in list(methods) if name.endswith(FINER)}
    concepts = {name: len({record["concept"] for record in records}) for name, records in methods.items()}
    for name in [name for name, count in concepts.items() if count < max(concepts.values())]:
        ablations[name] = methods.pop(name)
    compared = {(record["concept"], record["seed"]) for records in ablations.values() for record in records}
    ablations[UNCHANGED] = [r for r in methods["perfusion"] if (r["concept"], r["seed"]) in compared]
    volumes = {
        name: {(r["concept"], r["seed"]): hypervolume(points(r, anchors)) for r in records}
        for name, records in methods.items()
    }
    means = {name: float(np.mean(list(values.values()))) for name, values in volumes.items()}
    first = max(means, key=means.__getitem__)
    return {
        "demo_model": found["demo model"],
        "hypervolume": means,
        "hypervolume_interval": {name: interval(list(values.values())) for name, values in volumes.items()},
        "hypervolume_finer": {
            name: float(np.mean([hypervolume(points(r, anchors)) for r in joined(methods[name], records)]))
            for name, records in finer.items()
        },
        "behind_first_interval": {name: behind(values, volumes[first]) for name, values in volumes.items()},
        "trainings": {name: len(records) for name, records in methods.items()},
        "bytes": {name: int(np.mean([record["bytes"] for record in records])) for name, records in methods.items()},
        "seconds": {name: float(np.median([r["seconds"] for r in records])) for name, records in methods.items()},
        "curves": {name: mean_curve(records, anchors) for name, records in methods.items()},
        "ablations": {name: ablation(records, anchors) for name, records in sorted(ablations.items())},
        "two_concepts": together(found, 2),
        "three_concepts": together(found, 3),
        "gates": gates(found),
    }


def ablation(records: Sequence[Record], anchors: Record) -> dict[str, float]:
    """Means over the trainings and, but for the hypervolume, over the curve."""
    curve, shown = mean_curve(records, anchors), ("image", "text", "concept", "superclass", "prompt_hits")
    volume = float(np.mean([hypervolume(points(record, anchors)) for record in records]))
    return {"hypervolume": volume, **{name: float(np.mean([at[name] for at in curve])) for name in shown}}


def points(record: Record, anchors: Record) -> list[Point]:
    """The curve in units in which the model without the concept is at (0, 1) and a copy of a photo at (1, 0)."""
    model, photos = anchors[record["concept"]]["model"], anchors[record["concept"]]["photos"]
    return [
        (
            (at["clip_i"] - model["clip_i"]) / (photos["clip_i"] - model["clip_i"]),
            (at["clip_t"] - photos["clip_t"]) / (model["clip_t"] - photos["clip_t"]),
        )
        for at in record["curve"]
    ]


def hypervolume(curve: Sequence[Point]) -> float:
    """The area between the origin and the front of the points."""
    area, height = 0.0, 0.0
    for image, text in sorted(curve, reverse=True):
        if image > 0 and text > height:
            area += image * (text - height)
            height = text
    return area


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % by bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLINGS, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def joined(records: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    """The records with the others' settings of the same concepts and seeds beside their own."""
    more = {(record["concept"], record["seed"]): record["curve"] for record in others}
    return [{**record, "curve": [*record["curve"], *more[record["concept"], record["seed"]]]} for record in records]


def behind(values: Mapping[tuple[str, int], float], first: Mapping[tuple[str, int], float]) -> tuple[float, float]:
    """95 % of how far values lie below those of the first for the same concepts and seeds, over other concepts."""
    differences = defaultdict(list)
    for (concept, seed), value in values.items():
        differences[concept].append(first[concept, seed] - value)
    return interval([float(np.mean(seeds)) for seeds in differences.values()])


def mean_curve(records: Sequence[Record], anchors: Record) -> list[dict[str, Any]]:
    curve = []
    for i, at in enumerate(records[0]["curve"]):
        placed = np.array([points(record, anchors)[i] for record in records])
        scores = {
            name: float(np.mean([record["curve"][i][name] for record in records])) for name in at if name != "setting"
        }
        curve.append({
            "setting": at["setting"], **scores, "image": float(placed[:, 0].mean()), "text": float(placed[:, 1].mean()),
            "image_interval": interval(placed[:, 0]), "text_interval": interval(placed[:, 1]),
        })  # fmt: skip
    return curve


def together(found: Mapping[str, Any], count: int) -> dict[str, Any]:
    rows = defaultdict(list)
    for title, records in found.items():
        if title.startswith(f"combined {count}"):
            for record in records:
                rows[record["method"]].append(record)
    shown = {name: float(np.mean([record["all_shown"] for record in records])) for name, records in rows.items()}
    each = {name: float(np.mean([record["shown"] for record in records])) for name, records in rows.items()}
    likeness = {name: float(np.mean([record["clip_i"] for record in records])) for name, records in rows.items()}
    ours = max((share for name, share in shown.items() if name.startswith("perfusion")), default=None)
    return {
        "both_shown" if count == 2 else "all_shown": ours,
        "by_method": shown,
        "each_shown": each,
        "clip_i": likeness,
    }


def gates(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    rows = defaultdict(list)
    for title, records in found.items():
        if title.startswith("gates"):
            for record in records:
                rows[record["covariance"]].append(record)
    return {
        label: {
            name: float(np.mean([r[name] for r in records]))
            for name in records[0]
            if name not in ("concept", "covariance")
        }
        for label, records in rows.items()
    }


def pareto(figures: Mapping[str, Any], path: Path) -> None:
    """The curve of every method, with 95 % of its points at the left; variants of Perfusion are grey."""
    figure = Figure((11, 5.8), 100, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    left, right = figure.subplots(1, 2)
    for name, curve in figures["curves"].items():
        colour, marker = LOOKS.get(name, ("#c4c7cc", ""))
        look = {"color": colour, "marker": marker, "markersize": 8, "linewidth": 2, "zorder": 3 if marker else 2}
        image, text, *spread = (
            np.array([at[axis] for at in curve]).T for axis in ("image", "text", "image_interval", "text_interval")
        )
        if marker:
            x, y = (np.abs(ends - middle) for ends, middle in zip(spread, (image, text), strict=True))
            left.errorbar(image, text, y, x, ecolor=colour, elinewidth=0.8, linestyle="none", alpha=0.4)
        label = f"{name} ({figures['hypervolume'][name]:.2f})" if marker else "variants of perfusion"
        left.plot(image, text, label=label, **look)
        right.plot([100 * at["concept"] for at in curve], [100 * at["prompt_hits"] for at in curve], **look)
    left.set(
        xlabel="like the photos (1: as they are among themselves)", ylabel="like the prompt (1: without the concept)"
    )
    right.set(xlabel="% of pictures that show the subject", ylabel="% of the rest of the prompt that is shown")
    for axes in (left, right):
        axes.xaxis.label.set(fontsize=13, color=INK)
        axes.yaxis.label.set(fontsize=13, color=INK)
        axes.tick_params(color=GRID, labelcolor=INK, labelsize=12)
        axes.spines[:].set(color=GRID)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))  # the variants share a label
    order = [label for name in LOOKS for label in handles if label.startswith(f"{name} (")] + ["variants of perfusion"]
    figure.legend(
        [handles[label] for label in order], order, title="method (area under its curve at the left)", ncols=3,
        loc="outside upper left", alignment="left", fontsize=12, title_fontsize=12, labelcolor=INK, frameon=False,
    )  # fmt: skip
    figure.savefig(path)


def harmonic_mean(image: float, text: float) -> float:
    return 2 / (1 / image + 1 / text) if image > 0 and text > 0 else 0.0


def cells(path: Path, row: int) -> list[Image.Image]:
    """One row of a sheet of run.py's, enlarged."""
    picture = Image.open(path)
    corners = [(left, row * SIDE) for left in range(0, picture.width, SIDE)]
    return [picture.crop((x, y, x + SIDE, y + SIDE)).resize((CELL, CELL), Image.Resampling.LANCZOS) for x, y in corners]


def document(figures: Mapping[str, Any], findings: str) -> str:
    """A page of docs/: the findings, which are written by hand, with the tables where they name them."""
    tables = {
        "short": short_table(figures),
        "methods": methods_table(figures),
        "gates": table(figures["gates"], "covariance or dual"),
        "two concepts": together_table(figures["two_concepts"]),
        "three concepts": together_table(figures["three_concepts"]),
        "demo model": table({"64 prompts": figures["demo_model"]}, ""),
        "perfusion": curve_table(figures["curves"]["perfusion"], "beta"),
        "by strength": curve_table(figures["curves"]["perfusion, by strength"], "strength"),
        "global lock": curve_table(figures["curves"]["perfusion, global lock"], "beta"),
        "lora": curve_table(figures["curves"]["lora, rank 4"], "strength"),
        "ablations": table(figures["ablations"], "change"),
    }
    for name, lines in tables.items():
        findings = findings.replace(f"[table: {name}]", lines)
    return findings


def methods_table(figures: Mapping[str, Any]) -> str:
    lines = [
        "| method | hypervolume | 95 % | behind, 95 % | file | to learn | trainings |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, volume in sorted(figures["hypervolume"].items(), key=lambda item: -item[1]):
        low, high = figures["hypervolume_interval"][name]
        least, most = figures["behind_first_interval"][name]
        size = figures["bytes"][name] / 1024
        lines.append(
            f"| {name} | {volume:.3f} | {low:.3f} to {high:.3f} | {least:.3f} to {most:.3f} | {size:,.1f} KB | "
            f"{figures['seconds'][name]:.1f} s | {figures['trainings'][name]} |"
        )
    return "\n".join(lines)


def short_table(figures: Mapping[str, Any]) -> str:
    """A row for every way to teach a subject, with its best setting; ablations and other sweeps are left out."""
    lines = ["| method | shown | rest of the prompt | both of two | trade-off | file |", "|---|---|---|---|---|---|"]
    both = figures["two_concepts"]["by_method"]
    for name in WAYS:
        best = max(figures["curves"][name], key=lambda at: at["concept"])
        area = max(
            volume for other, volume in figures["hypervolume"].items() if other in (name, f"{name}, by strength")
        )
        size = figures["bytes"][name] / 1024
        lines.append(
            f"| {name} | {best['concept']:.0%} | {best['prompt_hits']:.0%} | "
            f"{format(both[name], '.0%') if name in both else ''} | {area:.2f} | {size:,.1f} KB |"
        )
    return "\n".join(lines).replace("%", " %")


def together_table(figures: Mapping[str, Any]) -> str:
    rows = {
        name: {"all shown": share, "each shown": figures["each_shown"][name], "CLIP-I": figures["clip_i"][name]}
        for name, share in figures["by_method"].items()
    }
    return table(rows, "method")


def curve_table(curve: Sequence[Mapping[str, Any]], setting: str) -> str:
    chosen = ("image", "text", "clip_i", "clip_t", "concept", "background", "tint", "style", "second")
    return table({f"{at['setting']}": {name: at[name] for name in chosen} for at in curve}, setting)


def table(rows: Mapping[str, Mapping[str, float]], corner: str) -> str:
    columns = list(next(iter(rows.values()), {}))
    lines = [
        f"| {corner} | {' | '.join(name.replace('_', ' ') for name in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [f"| {label} | {' | '.join(f'{row[name]:.2f}' for name in columns)} |" for label, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
