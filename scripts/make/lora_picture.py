"""Makes docs/lora.jpg: the same two subjects taught to Perfusion and to a LoRA, painted from the same noise.

    bash scripts/env.sh python scripts/make/lora_picture.py FOLDER

FOLDER is what benchmarks/quality/run.py found: both learned from the same photos in the same time. Alone each is used
at the setting at which docs/quality.md says how often it shows the subject, together as that combines them.
"""

import json
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO))

from PIL import Image

from benchmarks.quality.report import DOCS, best, cells
from nodes.pictures import contact_sheet

WAYS = {"perfusion": "Perfusion", "lora, rank 4": "LoRA, rank 4"}
PAIR = (0, 1)
CELL = 104  # pixels of a picture in the sheet


def main(folder: Path) -> None:
    sheets, found = folder / "sheets", json.loads((folder / "scores.json").read_text())
    curves = json.loads((DOCS / "quality.json").read_text())["curves"]
    prompts = {record["numbers"][0]: record["prompts"] for record in found["references"]}
    (pair,) = [record for record in found["pair"] if record["numbers"] == list(PAIR) and not record["seed"]]
    order = list(pair["scores"])
    taught = [cell for number in PAIR for cell in cells(sheets / f"photos - {number}.png", 0)[:4]]
    alone = [
        (label, cells(sheets / f"{name} - {PAIR[0]} - 0.png", curves[name].index(best(curves[name]))))
        for name, label in WAYS.items()
    ]
    both = [(label, cells(sheets / f"pair - {PAIR[0]} - 0.png", order.index(name))) for name, label in WAYS.items()]
    parts = [
        contact_sheet([""] * len(taught), [("photos", taught)], CELL),
        contact_sheet(prompts[PAIR[0]], alone, CELL),
        contact_sheet(pair["prompts"], both, CELL),
    ]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    whole.save(DOCS / "lora.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
