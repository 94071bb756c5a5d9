"""What train_many.py tells at its end: a table for the terminal, and a page with pictures."""

import base64
import html
import io
import re
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageOps

from many.concept_folders import Concept

LOSSES = re.compile(r"([\d.]+) before, ([\d.]+) after")
THUMBNAIL = 480  # pixels


def facts(concept: Concept, output: Path) -> dict[str, str]:
    """What the table and the page tell of a concept."""
    loss = LOSSES.search(report_of(concept, output))
    return {
        "concept": concept.name,
        "result": concept.state,
        "where": concept.where,
        "steps": f"{concept.steps_done:.0f} of {concept.steps}" if concept.attempts else "",
        "seconds": f"{concept.seconds:.0f}" if concept.seconds else "",
        "loss": " to ".join(loss.groups()) if loss else "",
        "file or error": concept.note,
    }


def report_of(concept: Concept, output: Path) -> str:
    path = output / concept.name / "report.txt"
    is_of_the_file = concept.state in ("trained", "skipped")
    return path.read_text(encoding="utf-8", errors="replace") if is_of_the_file and path.is_file() else ""


def table(concepts: Sequence[Concept], output: Path) -> str:
    rows = [list(facts(concept, output).values()) for concept in concepts]
    rows = [["; ".join(cell.splitlines()) for cell in row] for row in [list(facts(concepts[0], output)), *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #8886; padding: 1rem 0 }
h2 small { font-weight: normal; opacity: .7 }
h2 .failed, h2 .stopped { color: #d93025; opacity: 1 }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
img { display: block; max-width: 100%; max-height: 15rem; border-radius: 4px }
figcaption, dl, pre { font-size: 13px }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap }
pre { white-space: pre-wrap }
"""


def page(concepts: Sequence[Concept], output: Path) -> str:
    """One HTML page without anything outside it but links to the pictures in full size."""
    counts = [
        f"{sum(c.state == state for c in concepts)} {state}" for state in dict.fromkeys(c.state for c in concepts)
    ]
    sections = "".join(section(concept, output) for concept in concepts)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Trained concepts</title><style>{STYLE}</style>"
        f"<h1>Trained concepts</h1><p>{time.strftime('%Y-%m-%d %H:%M')}: {', '.join(counts)}.</p>{sections}</html>\n"
    )


def section(concept: Concept, output: Path) -> str:
    rows = {
        **facts(concept, output),
        "trigger": concept.settings["trigger"],
        "superclass": concept.settings["superclass"],
    }
    terms = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in rows.items()
        if value and name not in ("concept", "result")
    )
    shown = [figure(concept.files[0], concept.files[0].name, "")]
    if concept.state in ("trained", "skipped"):
        for path in sorted((output / concept.name).glob("*")):
            if path.suffix != ".txt":
                shown.append(figure(path, path.stem, f"{quote(concept.name)}/{quote(path.name)}"))
    return (
        f"<section><h2>{html.escape(concept.name)} <small class={concept.state.split()[0]}>{concept.state}</small></h2>"
        f"{''.join(shown)}<dl>{terms}</dl><pre>{html.escape(report_of(concept, output))}</pre></section>\n"
    )


def figure(path: Path, caption: str, link: str) -> str:
    """A picture small and inside the page; nothing where it cannot be read."""
    try:
        with Image.open(path) as picture:
            small = ImageOps.exif_transpose(picture).convert("RGB")
    except Exception:  # broken photos raise almost anything, and the summary must come
        return ""
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    image = f"<img src='data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}' alt=''>"
    image = f"<a href='{html.escape(link)}'>{image}</a>" if link else image
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
