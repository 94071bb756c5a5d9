"""What the edit costs, beside what people use instead: ratios of times measured in turn in one run.

The models are the host's own SD1.5, SDXL and Anima with random weights. Forwards are timed one by one while the host
samples. CPU time counts the work alone; the time on the clock also what other programs on the machine do meanwhile.

    bash scripts/env.sh python benchmarks/cost.py forward [--model sdxl] [--size 1024] [--batch 2] [--dtype float16]
    bash scripts/env.sh python benchmarks/cost.py text [--model anima]
    bash scripts/env.sh python benchmarks/cost.py python
    bash scripts/env.sh python benchmarks/cost.py growth
    bash scripts/env.sh python benchmarks/cost.py training [--size 256] [--batch 4]
    bash scripts/env.sh python benchmarks/cost.py memory [--model sdxl] [--dtype bfloat16]
    bash scripts/env.sh python benchmarks/cost.py covariance [--captions 256]

forward: whole forwards of cond + uncond, with nothing, with our concepts (kept and not), LoRAs, and other forms.
text: the same of a model that has nothing but its K and V projections of the text, in true sizes: what an edit adds to
a forward does not depend on the picture's size.
python: the same with projections so narrow that only calls are left, per projection.
growth: what an edit adds over the numbers of concepts, tokens, prompts and layers.
training: one micro-batch, as the nodes train it, against the network's own forward and backward (also in channels_last,
and compiled), the same without the edit, and the straightforward loop; and one whole step.
loading: reading a concept's file and putting it on a model.
memory: what one concept keeps in memory between forwards, and at most within one, beyond the unpatched model.
covariance: measuring the text encoder of SD1.5 over captions, against encoding them alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import speed.host  # noqa: F401, starts the host

# isort: split
import torch
from comfyui_perfusion.nodes.host import encoder_covariance
from comfyui_perfusion.nodes.host.model import apply_to_model
from comfyui_perfusion.nodes.host.text import encode_rows, prepare_encoders
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.perfusion_core import load_concept, save_concept
from comfyui_perfusion.perfusion_core.captions import captions as built_in_captions
from speed.clock import in_turn, timed
from speed.forwards import Prompts, clocked, measure, memory_taken, table, ways
from speed.models import KINDS, SD15, TOKENS, clip_l, random_concepts, random_model
from speed.training import NETWORK, OURS, RandomVAE, training_steps

from random_checkpoint import SHALLOW_TEXT

CONCEPTS = (0, 1, 4, 16)
NARROW = {"sd1": {"model_channels": 32, "context_dim": 8}, "sdxl": {"model_channels": 64, "context_dim": 8},
          "anima": {"model_channels": 64, "num_heads": 2, "crossattn_emb_channels": 8}}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[name.removesuffix("_rows") for name in globals() if name.endswith("_rows")])
    parser.add_argument("--model", choices=KINDS, default="sd1")
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument("--steps", type=int, default=4, help="of each sampling run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="such as float16")
    parser.add_argument("--compile", metavar="BACKEND", help="of torch.compile, such as inductor")
    parser.add_argument("--streamed", action="store_true", help="weights stay beside the GPU, as with --novram")
    parser.add_argument("--concepts", type=int, nargs="+", default=CONCEPTS)
    parser.add_argument("--cfg", type=float, default=7.0, help="at 1, forwards are of the prompt alone")
    parser.add_argument("--ways", nargs="+", metavar="NAME", help="of the rows, such as 'unpatched'; all without it")
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--ours", action="store_true", help="nothing but ours and the unpatched model")
    parser.add_argument("--tiny", action="store_true", help="networks of a few channels, to try the benchmark itself")
    parser.add_argument("--json", type=Path, help="a file that the figures are added to, a line for each")
    return parser


def main() -> None:
    options = parser().parse_args()
    torch.manual_seed(0)
    for row in globals()[f"{options.what}_rows"](options):
        row = {"what": options.what, "model": options.model, "dtype": options.dtype, "machine": machine(), **row}
        print(" ".join(f"{key}={_short(value)}" for key, value in row.items() if key != "machine"), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def forward_rows(options, **kind: Any) -> Iterator[dict[str, Any]]:
    changes = NARROW[options.model] if options.tiny else {}
    dtype = getattr(torch, options.dtype)
    model, times = clocked(random_model(options.model, dtype, streamed=options.streamed, **{**changes, **kind}))
    with torch.inference_mode():
        masks = "text_only" not in kind
        found = ways(model, options.concepts, options.compile, not options.ours, masks, options.ways or ())
        prompts = Prompts.of(model, TOKENS[options.model], options.cfg)
        measure(found, times, prompts, options.size, options.batch, options.steps, options.rounds)
    given = {name: getattr(options, name) for name in ("size", "batch", "compile", "streamed", "cfg")}
    for row in table(found, clock=0 if torch.cuda.is_available() else 1):
        yield {**given, **row}


def text_rows(options) -> Iterator[dict[str, Any]]:
    options.size = 64
    return (row for row in forward_rows(options, text_only=True) if "IP-Adapter" not in row["name"])


def python_rows(options) -> Iterator[dict[str, Any]]:
    """Microseconds of a call of a projection, of which there are two in a layer."""
    options.ours, options.tiny = True, True
    for row in text_rows(options):
        projections = 2 * len(random_concepts_of(options.model)[0].value_deltas)
        yield {"name": row["name"], "microseconds": 1e6 * row["seconds"] / projections}


def random_concepts_of(kind: str) -> list:
    return random_concepts(random_model(kind, text_only=True, **NARROW[kind]), 1)


def growth_rows(options) -> Iterator[dict[str, Any]]:
    """Seconds of a forward's K and V without an edit, with one, and with one that is kept."""
    axes = {"concepts": (1, 4, 16, 64), "tokens": (77, 154, 308, 770), "prompts": (1, 4, 16), "layers": (16, 48, 144)}
    usual = {"concepts": 1, "tokens": 77, "prompts": 1, "layers": 16}
    for axis, values in axes.items():
        for value in values[:2] if options.tiny else values:
            at = {**usual, axis: value}
            times = at["layers"] // 16
            deep = {"transformer_depth": [times * n for n in SD15["transformer_depth"]],
                    "transformer_depth_middle": times,
                    "transformer_depth_output": [times * n for n in SD15["transformer_depth_output"]]}  # fmt: skip
            narrow = NARROW["sd1"] if options.tiny else {}
            model, clock = clocked(random_model("sd1", text_only=True, **{**deep, **narrow}))
            with torch.inference_mode():
                found = ways(model, [at["concepts"]], others=False)
                measure(found, clock, Prompts.of(model, at["tokens"]), 64, at["prompts"], options.steps, options.rounds)
            base, kept, edited = (row["seconds"] for row in table(found, clock=0 if torch.cuda.is_available() else 1))
            yield {"axis": axis, "at": value, "plain": base, "edited": edited, "kept": kept}


def training_rows(options) -> Iterator[dict[str, Any]]:
    dtype, tiny = getattr(torch, options.dtype), options.tiny
    model = random_model("sd1", dtype, **({"model_channels": 32} if tiny else {}))
    clip, vae = clip_l(dtype, **(SHALLOW_TEXT if tiny else {})), RandomVAE(dtype=dtype, channels=32 if tiny else 128)
    with training_steps(model, clip, vae, options.size, options.batch, options.compile) as steps:
        steps = {name: step for name, step in steps.items() if name in (NETWORK, OURS, *(options.ways or steps))}
        times = in_turn(steps, options.rounds)
        clock = 0 if torch.cuda.is_available() else 1
        for name in steps:
            row = {"name": name, "seconds": min(one[name][clock] for one in times)}
            for base in (NETWORK, OURS):
                row[f"to {base}"] = statistics.median(one[name][clock] / one[base][clock] for one in times)
            yield {"size": options.size, "batch": options.batch, **row}


def loading_rows(options) -> Iterator[dict[str, Any]]:
    """Seconds from a concept's file to a MODEL that uses it."""
    model = random_model(options.model, text_only=True)
    (concept,) = random_concepts(model, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "concept.safetensors"
        save_concept(concept, path)
        runs = {
            "reading": lambda: timed(lambda: load_concept(path)),
            "putting on": lambda: timed(lambda: apply_to_model(model, [ConceptUse(concept)])),
        }
        times = in_turn(runs, options.rounds)
    for name in runs:
        yield {"name": name, "seconds": min(one[name][1] for one in times)}


def memory_rows(options) -> Iterator[dict[str, Any]]:
    """Bytes of tensors beyond those of the unpatched model, whose K and V are projected and let go."""
    changes = NARROW[options.model] if options.tiny else {}
    model = random_model(options.model, getattr(torch, options.dtype), text_only=True, **changes)
    base = None
    with torch.inference_mode():
        for name, way in ways(model, [1], others=False).items():
            between, most = memory_taken(way, model, Prompts.of(model, TOKENS[options.model]), options.batch)
            base = base or (between, most)
            yield {"name": name, "batch": options.batch, "between": between - base[0], "most": most - base[1]}


def covariance_rows(options) -> Iterator[dict[str, Any]]:
    clip = clip_l(**(SHALLOW_TEXT if options.tiny else {}))
    captions = list(built_in_captions(options.captions))
    batches = list(encoder_covariance._batches(clip, captions))

    @torch.no_grad()
    def encode() -> None:
        for rows in batches:
            encode_rows(clip, rows)

    runs = {
        "encoding": lambda: timed(encode),
        "covariance": lambda: timed(lambda: encoder_covariance.measure_covariance(clip, captions, None)),
    }
    with torch.inference_mode():
        prepare_encoders(clip)
        times = in_turn(runs, options.rounds)
    clock = 0 if torch.cuda.is_available() else 1
    seconds = {name: min(one[name][clock] for one in times) for name in runs}
    for name in runs:
        row = {"name": name, "captions": options.captions, "seconds": seconds[name]}
        yield {**row, "to encoding": seconds[name] / seconds["encoding"]}


if __name__ == "__main__":
    main()
