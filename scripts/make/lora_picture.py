"""Makes docs/lora.jpg: the same two subjects taught to Perfusion and to a LoRA, painted from the same noise.

    bash scripts/env.sh python scripts/make/lora_picture.py

As in the quality benchmark, with its first seed: both learn from the same pictures in the same time. Alone each is
used at the setting at which docs/quality.md says how often it shows the subject, together as that combines them.
"""

import json
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), *(str(REPO / "benchmarks" / name) for name in ("quality", "world"))]

import torch
from PIL import Image
from torch import Tensor

from evaluation import PROMPTS, noise, photos
from gates import inverse_covariance
from methods import MIDDLE_BETA, LearnedConcepts, Lora, Pasted, Perfusion, summed
from nodes.pictures import contact_sheet
from painter import Painter, task
from run import PAIRED

WAYS = {"perfusion": "Perfusion", "lora, rank 4, pasted": "LoRA, rank 4"}
SUBJECTS = ("teddy", "tiger")  # as in the demo
CELL = 100  # pixels of a picture in the sheet


def main() -> None:
    torch.set_flush_denormal(True)
    painter, tasks = Painter(), [task(name) for name in SUBJECTS]
    methods = {"perfusion": Pasted(Perfusion(inverse_covariance(painter))), "lora, rank 4, pasted": Pasted(Lora(4))}
    learned = {name: [method(painter, one, 0) for one in tasks] for name, method in methods.items()}
    curves = json.loads((REPO / "docs" / "quality.json").read_text())["curves"]
    best = {name: max(curves[name], key=lambda at: at["concept"])["setting"] for name in WAYS}

    sentences, start = [prompt.sentence for prompt in PROMPTS], noise(len(PROMPTS), 0)
    alone = [
        (WAYS[name], cells(first.paint(painter, sentences, start, best[name]))) for name, (first, _) in learned.items()
    ]
    concepts = [one.concepts[0] for one in learned["perfusion"]]
    together = {"perfusion": LearnedConcepts(concepts, (MIDDLE_BETA,)),
                "lora, rank 4, pasted": summed(painter, learned["lora, rank 4, pasted"])}  # fmt: skip
    pairs = list(PAIRED) * 2
    both = [
        (WAYS[name], cells(one.paint(painter, pairs, noise(len(pairs), 0), one.settings[0])))
        for name, one in together.items()
    ]
    taught = [(f"photos of {one.trigger}", cells(photos(one))) for one in tasks]
    parts = [
        contact_sheet([""] * len(PROMPTS), taught, CELL),
        contact_sheet([with_triggers(sentence, tasks[:1]) for sentence in sentences], alone, CELL),
        contact_sheet([with_triggers(sentence, tasks) for sentence in pairs], both, CELL),
    ]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (whole.width - part.width, top))
        top += part.height
    whole.save(REPO / "docs" / "lora.jpg", quality=88, optimize=True)


def with_triggers(sentence: str, tasks: list) -> str:
    for one in tasks:
        sentence = sentence.replace("{}", one.trigger, 1)
    return sentence


def cells(images: Tensor) -> list[Image.Image]:
    pictures = [Image.fromarray(image) for image in images.mul(255).round().byte().numpy()]
    return [picture.resize((CELL, CELL), Image.Resampling.LANCZOS) for picture in pictures]


if __name__ == "__main__":
    main()
