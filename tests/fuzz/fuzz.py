"""Coverage-guided fuzzing of what comes from outside, by hand and for as long as you like:

    bash scripts/env.sh python -m pip install --no-deps --target /tmp/atheris atheris
    PYTHONPATH=/tmp/atheris bash scripts/env.sh python tests/fuzz/fuzz.py concept --minutes 60 --corpus /tmp/corpus

It goes on from what --corpus holds. A fault ends it, and its input is printed and kept as crash-*. --keep puts those of
the inputs into tests/fuzz/corpus by which other lines of ours run than by all smaller ones.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
KEPT = HERE / "corpus"
LONGEST = {"concept": 4096, "exchange": 4096, "photo": 8192, "request": 2048}  # bytes of an input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=LONGEST)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder for what it finds")
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    sys.path[:0] = [str(REPO), str(REPO / "tests"), str(REPO / "tests/host")]
    warnings.simplefilter("ignore")
    kept, found = KEPT / asked.target, asked.corpus / asked.target
    kept.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    target, mutator = _target(asked.target)
    if asked.keep:
        _keep(target, found, kept)
        return
    options = [str(found), str(kept), f"-max_total_time={round(60 * asked.minutes)}", "-timeout=60"]
    options += [
        f"-max_len={LONGEST[asked.target]}",
        "-rss_limit_mb=6000",
        f"-artifact_prefix={asked.corpus}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options], target, **({"custom_mutator": mutator} if mutator else {}))
    atheris.Fuzz()


def _keep(target: Callable[[bytes], None], found: Path, kept: Path) -> None:
    steps: set[tuple[str, int, int]] = set()

    def trace(frame, event, _):
        name = frame.f_code.co_filename
        if not any(part in name for part in ("perfusion", "PIL", "_weights_only")) and str(REPO) not in name:
            return None
        line = frame.f_lineno

        def within(frame, *_):
            nonlocal line
            steps.add((name, line, frame.f_lineno))
            line = frame.f_lineno
            return within

        return within

    for content in sorted({path.read_bytes() for path in (*kept.iterdir(), *found.iterdir())}, key=len):
        before = len(steps)
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            target(content)
        finally:
            sys.settrace(None)
        if len(steps) > before:
            (kept / hashlib.sha1(content).hexdigest()[:12]).write_bytes(content)


def _target(name: str):
    """What is fuzzed, and how inputs are mutated (None: byte by byte)."""
    from fuzz import mutations

    def with_bytes(change):
        return lambda content, longest, seed: change(content, longest, seed, atheris.Mutate)

    if name in ("concept", "exchange"):
        import torch._weights_only_unpickler  # first, or all of torch is instrumented

        with atheris.instrument_imports(include=["perfusion_core", "torch"]):
            from fuzz import core_files

            importlib.reload(torch._weights_only_unpickler)
        if name == "concept":
            return core_files.concept, with_bytes(mutations.safetensors)
        return core_files.exchange, None
    import conftest

    conftest.start_host()
    with atheris.instrument_imports(include=["comfyui_perfusion", "PIL"]):
        for plugin in [name for name in sys.modules if name.startswith("PIL.") and name.endswith("ImagePlugin")]:
            importlib.reload(sys.modules[plugin])
        from fuzz import core_files, host_input
    if name == "photo":
        from comfyui_perfusion.nodes import photo_file

        photo_file.MOST_PIXELS = 2**20  # as large ones are refused, without making some that are nearly so large
        return host_input.photo, None
    site = host_input.Site(Path(tempfile.mkdtemp(dir=core_files.MEMORY)))
    return site.answer, with_bytes(mutations.request)


if __name__ == "__main__":
    main()
