"""Makes the pictures of docs/gallery.md: what two concepts of the demo can do, in a real ComfyUI.

    bash scripts/env.sh python scripts/make/gallery.py [PICTURE ...]

It takes the concepts that scripts/demo.sh trained, or trains them first.
"""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from comfyui import REPO, Server
from demo import BASE, PHOTOS, Graph, ProgressLine, Subject, gather_photos, opened, training_prompt
from demo_model import SAMPLING, TRAINING

TEDDY = Subject("<my-teddy>", "bear", PHOTOS / "teddy", "perfusion_demo")
TIGER = Subject("<my-tiger>", "cat", PHOTOS / "tiger", "perfusion_demo_tiger")
SWEPT = {**SAMPLING, "seed": 0, "sampler": "dpmpp_2m", "resolution": 0}
USE = {"beta": 0.7, "temperature": 0.15, "key_lock": 0.0, "strength": 1.0}
ALONE = "a photo of a {} in the snow"
SEVERAL = """a photo of a {} in the snow
a photo of a {} and a blue mug in the room
a sketch of a {} on the beach
a photo of a {} at night"""
TOGETHER = """a photo of a <my-teddy> and a <my-tiger> on the beach
a photo of a <my-teddy> and a <my-tiger> in the snow
a photo of a <my-tiger> and a <my-teddy> at night"""


def main(names: Sequence[str]) -> None:
    progress = ProgressLine()
    with Server(BASE) as server:
        for subject in (TEDDY, TIGER):
            if not (BASE / "models" / "perfusion" / f"{subject.name}.safetensors").exists():
                gather_photos(subject.photos, BASE / "input" / subject.name)
                server.run(training_prompt(server, subject, TRAINING["steps"]), progress)
        prompt, shown = everything()
        shown = {name: node for name, node in shown.items() if name in names or not names}
        outputs = server.run(only(prompt, shown.values()), progress)
        progress.show("")
        for name, node in shown.items():
            path = REPO / "docs" / f"gallery-{name}.jpg"
            opened(server, outputs[node]).save(path, quality=88, optimize=True)
            print(path)


def only(prompt: dict[str, Any], previews: Collection[str]) -> dict[str, Any]:
    """A prompt with these of its preview nodes."""
    return {id: node for id, node in prompt.items() if id in previews or node["class_type"] != "PreviewImage"}


def everything() -> tuple[dict[str, Any], dict[str, str]]:
    """One graph, and the preview node of every picture of the gallery."""
    graph = Graph()
    demo = graph.add("PerfusionDemoModel")
    model, clip, vae = ([demo, output] for output in range(3))
    teddy, tiger = (
        [graph.add("PerfusionLoadConcept", concept=f"{subject.name}.safetensors", **USE), 0]
        for subject in (TEDDY, TIGER)
    )
    both = graph.add("PerfusionCombineConcepts", **{"sets.concepts_0": teddy, "sets.concepts_1": tiger})
    applied = graph.add("PerfusionApply", model=model, clip=clip, concepts=[both, 0], merging="exact")

    def sweep(concepts: list, text: str, columns: tuple[str, str], rows: tuple[str, str]) -> list:
        axes = {
            "columns": columns[0], "columns.values": columns[1], "rows": rows[0], "rows.values": rows[1],
        }  # fmt: skip
        return [
            graph.add(
                "PerfusionSweep", model=model, clip=clip, vae=vae, concepts=concepts, text=text, negative="",
                **axes, **SWEPT,
            ),
            0,
        ]  # fmt: skip

    pictures = {
        "beta": sweep(teddy, SEVERAL, ("beta", "0.3, 0.5, 0.7, 0.8, 0.9"), ("prompt", "")),
        "temperature": sweep(teddy, ALONE, ("beta", "0.5, 0.7, 0.9"), ("temperature", "0.05, 0.15, 0.3")),
        "lock": sweep(teddy, SEVERAL, ("key_lock", "0, 0.25, 0.5, 0.75, 1"), ("prompt", "")),
        "concepts": sweep([both, 0], SEVERAL, ("concept", ""), ("prompt", "")),
        "together": sweep([both, 0], TOGETHER, ("beta", "0.3, 0.5, 0.7, 0.8, 0.9"), ("prompt", "")),
        "overlap": [both, 1],
        "gates": [graph.add("PerfusionGateMap", clip=[applied, 1], text=TOGETHER.splitlines()[0]), 0],
        "attention": [
            graph.add(
                "PerfusionAttentionMap", model=[applied, 0], clip=[applied, 1], vae=vae, text=TOGETHER.splitlines()[0],
                negative="", **SWEPT,
            ),
            0,
        ],
        "info": [graph.add("PerfusionConceptInfo", concepts=teddy), 1],
    }  # fmt: skip
    return graph.nodes, {name: graph.add("PreviewImage", images=image) for name, image in pictures.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
