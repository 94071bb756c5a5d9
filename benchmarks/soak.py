"""A long day: hundreds of prompts in one ComfyUI server with the demo model, of which some are cancelled.

    bash scripts/env.sh python benchmarks/soak.py --prompts 500 --minutes 60

They switch between no concept, one and two, with and without a LoRA and a schedule, samplers and key locks, four in the
queue at a time. What each of them has to paint was painted before, by a server that did nothing else: every picture has
to be that one bit for bit, the picture without any concept among them every 25 prompts. The memory at the end is told.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "scripts"))

from comfyui import RunError, Server
from demo_model import TRAINING

CONCEPTS = {"teddy": "bear", "tiger": "cat"}  # photos that come with the pack, and their superclasses
LORA, STEPS, AT_A_TIME, REFERENCE_EVERY = "style.safetensors", 3, 4, 25
CANCELLED = 0.15  # share of the prompts
Setting = tuple[tuple[str, ...], bool, bool, str, float]  # concepts, LoRA, schedule, sampler, key lock
PLAIN: Setting = ((), False, False, "euler", 0.0)
SETTINGS: list[Setting] = [
    (concepts, lora, schedule, sampler, lock)
    for number, (concepts, sampler) in enumerate(
        (concepts, sampler)
        for concepts in ((), ("teddy",), ("tiger",), ("teddy", "tiger"))
        for sampler in ("euler", "dpmpp_2m", "euler_ancestral")
    )
    for lora, schedule, lock in ((False, False, 0.0), (number % 2 == 0, number % 3 > 0, (0.5, 1.0)[number % 2]))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    asked = parser.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    settings = list(dict.fromkeys([PLAIN, *(one for one in SETTINGS if one[0] or not (one[2] or one[4]))]))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        add_lora(base)
        with Server(base) as server:
            for name, superclass in CONCEPTS.items():
                server.run(training(name, superclass))
            expected = {one: picture(server, server.run(painting(one))) for one in settings}
        alike = sum(np.array_equal(expected[PLAIN], other) for other in expected.values()) - 1
        assert not alike, f"{alike} settings paint the plain picture, and would not be told from it"
        with Server(base) as server:
            asyncio.run(soak(server, expected, asked.prompts, end))


async def soak(server: Server, expected: dict[Setting, np.ndarray], prompts: int, end: float) -> None:
    chance, settings = random.Random(0), list(expected)
    waiting = [PLAIN if i % REFERENCE_EVERY == 0 else chance.choice(settings) for i in range(prompts)]
    painted, cancelled, wrong, plain = 0, 0, [], 0
    memory: list[tuple[int, float]] = []
    done = 0
    while done < prompts and time.monotonic() < end:
        several = waiting[done : done + AT_A_TIME]
        delays = [
            chance.uniform(0, 4) if chance.random() < CANCELLED and (done + i) % REFERENCE_EVERY else None
            for i in range(len(several))
        ]
        for one, outcome in zip(several, await asyncio.gather(*map(_run, [server] * 4, several, delays)), strict=False):
            if outcome is None:
                cancelled += 1
                continue
            painted += 1
            plain += one == PLAIN
            if not np.array_equal(outcome, expected[one]):
                wrong.append(one)
        done += len(several)
        memory.append((done, resident(server)))
        if done % 20 == 0:
            print(f"{done} prompts, {cancelled} cancelled, {len(wrong)} wrong, {memory[-1][1]:.0f} MiB", flush=True)
    half = memory[len(memory) // 2 :]
    slope = np.polyfit(*np.array(half).T, 1)[0]
    print(f"{done} prompts of {len(settings)} kinds: {painted} painted, {cancelled} cancelled")
    print(f"pictures other than those of a fresh server: {len(wrong)} {wrong[:3]}; without a concept {plain} painted")
    print(
        f"memory {memory[0][1]:.0f} MiB first, {memory[-1][1]:.0f} last; {slope:+.3f} MiB a prompt in the second half"
    )


async def _run(server: Server, setting: Setting, cancel_after: float | None) -> np.ndarray | None:
    """The picture; None of a prompt that was cancelled in time."""
    prompt_id = str(uuid.uuid4())

    async def cancel() -> None:
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            await server.cancel(prompt_id)

    cancelling = asyncio.create_task(cancel())
    try:
        outputs = await server.follow(painting(setting), prompt_id=prompt_id)
    except (RunError, ConnectionError) as error:
        if cancel_after is None or not server.is_running():
            raise
        assert "interrupted" in str(error) or "went away" in str(error), error  # taken out of the queue, or stopped
        return None
    finally:
        await cancelling
    return picture(server, outputs)


def picture(server: Server, outputs: dict[str, Any]) -> np.ndarray:
    (saved,) = outputs["picture"]["images"]
    return np.asarray(Image.open(server.path(saved)))


def painting(setting: Setting) -> dict[str, Any]:
    concepts, lora, schedule, sampler, lock = setting
    model, clip = ["demo", 0], ["demo", 1]
    prompt: dict[str, Any] = {"demo": ("PerfusionDemoModel", {})}
    if lora:
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        prompt["lora"] = ("LoraLoader", {"model": model, "clip": clip, "lora_name": LORA, **strengths})
        model, clip = ["lora", 0], ["lora", 1]
    for name in concepts:
        inputs = {"concept": f"{name}.safetensors", "beta": 0.5, "temperature": 0.15, "key_lock": lock, "strength": 1.0}
        if schedule:
            ends = {"beta_end": 0.3, "temperature_end": 0.2, "easing": "linear"}
            prompt[f"{name} file"] = ("PerfusionLoadConcept", inputs)
            spans = {"start_percent": 0.0, "end_percent": 0.8, **ends}
            prompt[f"{name} schedule"] = ("PerfusionSchedule", {"concepts": [f"{name} file", 0], **spans})
            inputs = {"model": model, "clip": clip, "concepts": [f"{name} schedule", 0], "merging": "exact"}
            prompt[name] = ("PerfusionApply", inputs)
        else:
            prompt[name] = ("PerfusionLoader", {"model": model, "clip": clip, **inputs})
        model, clip = [name, 0], [name, 1]
    words = " and ".join(f"a <my-{name}>" for name in concepts) or "a bear"
    prompt["text"] = ("CLIPTextEncode", {"clip": clip, "text": f"a photo of {words} in the snow"})
    prompt["nothing"] = ("CLIPTextEncode", {"clip": clip, "text": ""})
    prompt["empty"] = ("EmptyLatentImage", {"width": 96, "height": 96, "batch_size": 1})
    sampling = {"seed": 0, "steps": STEPS, "cfg": 3.0, "sampler_name": sampler, "scheduler": "normal", "denoise": 1.0}
    wires = {"model": model, "positive": ["text", 0], "negative": ["nothing", 0], "latent_image": ["empty", 0]}
    prompt["sampler"] = ("KSampler", {**sampling, **wires})
    prompt["pixels"] = ("VAEDecode", {"samples": ["sampler", 0], "vae": ["demo", 2]})
    prompt["picture"] = ("SaveImage", {"images": ["pixels", 0], "filename_prefix": "soak"})
    return _as_api(prompt)


def training(name: str, superclass: str) -> dict[str, Any]:
    few = {**TRAINING, "steps": 12, "batch_size": 2, "previews": ""}
    wires = {"model": ["demo", 0], "clip": ["demo", 1], "vae": ["demo", 2], "images": ["photos", 0]}
    words = {"trigger": f"<my-{name}>", "superclass": superclass}
    return _as_api(
        {
            "demo": ("PerfusionDemoModel", {}),
            "photos": ("PerfusionLoadPhotos", {"folder": f"demo: {name}"}),
            "trained": ("PerfusionTrainConcept", {**wires, **words, **few}),
            "saved": (
                "PerfusionSaveConcept",
                {"concept": ["trained", 0], "filename": name, "overwrite": True, "keep_training": False},
            ),
        }
    )


def add_lora(base: Path) -> None:
    """A random LoRA of rank 1 for every value projection of the demo model."""
    with safe_open(REPO / "nodes/demo_model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    tensors, random_numbers = {}, torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        if name.endswith("attn2.to_v.weight"):
            layer = "diffusion_model." + name.removesuffix(".weight").split("diffusion_model.")[-1]
            tensors[f"{layer}.lora_up.weight"] = 0.3 * torch.randn(shape[0], 1, generator=random_numbers)
            tensors[f"{layer}.lora_down.weight"] = 0.3 * torch.randn(1, shape[1], generator=random_numbers)
    (base / "models/loras").mkdir(parents=True)
    save_file(tensors, base / "models/loras" / LORA)


def resident(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def _as_api(nodes: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


if __name__ == "__main__":
    main()
