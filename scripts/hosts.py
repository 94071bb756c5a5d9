"""Runs the tests in the browser with every pair of ComfyUI and frontend that we answer for, and writes docs/hosts.md.

bash scripts/env.sh python scripts/hosts.py                  # the exit status is 0 only when all passed
bash scripts/env.sh python scripts/hosts.py 0.30.0 1.58.1    # one pair; the page keeps what it says of the others
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from datetime import datetime, timezone
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "hosts.md"
PAIRS = [  # the frontends of the older two are those that belong to them
    ("0.30.0", "1.58.1"), ("0.30.0", "1.55.18"), ("0.30.0", "1.51.10"), ("0.30.0", "1.47.12"),
    ("0.18.2", "1.41.21"), ("0.16.3", "1.39.19"),
]  # fmt: skip
IN_PARALLEL = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
RENDERERS = {"classic": "classic canvas", "vue": "Vue nodes"}
HEAD = """# ComfyUI and frontends

`bash scripts/env.sh python scripts/hosts.py` runs the tests in the browser (`tests/web`) with each pair of ComfyUI and
frontend below, and writes this page. One pair alone: `bash scripts/host.sh 0.30.0 1.58.1`, or `newest` in place of the
frontend's version. Tests that are about both renderers run in each; those that are about neither stand under the
classic canvas.

| ComfyUI | frontend | renderer | passed | failed | skipped | date |
|---|---|---|---|---|---|---|
"""


def run(host: str, frontend: str) -> list[tuple[str, str]]:
    """(test, "passed", "failed" or "skipped") of each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [host, frontend, "python", "-m", "pytest", "tests/web", f"--junitxml={report}", *IN_PARALLEL]
        subprocess.run(["bash", "scripts/host.sh", *command], cwd=REPO)
        if not report.exists():
            sys.exit(f"The tests did not run with ComfyUI {host} and frontend {frontend}.")
        cases = ElementTree.parse(report).iter("testcase")
        return [(case.get("name", ""), outcome(case)) for case in cases]


def outcome(case: ElementTree.Element) -> str:
    marks = {child.tag for child in case}
    return "failed" if marks & {"failure", "error"} else "skipped" if "skipped" in marks else "passed"


def renderer(test: str) -> str:
    """By the test's parameters, such as [vue] and [vue-2 Train SD1.5]."""
    return "vue" if "vue" in test.partition("[")[2].rstrip("]").split("-") else "classic"


def main() -> None:
    failed = False
    for pair in [tuple(sys.argv[1:])] if sys.argv[1:] else PAIRS:
        results = run(*pair)
        rows = {**written(), pair: [row(pair, key, results) for key in RENDERERS]}
        lines = [line for known in PAIRS for line in rows.get(known, [])]
        PAGE.write_text(HEAD + "\n".join([*lines, ""]), encoding="utf-8")
        failed |= any(end == "failed" for _, end in results)
    sys.exit(failed)


def written() -> dict[tuple[str, ...], list[str]]:
    """The rows that stand on the page, by pair."""
    rows = defaultdict(list)
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else ():
        rows[tuple(line.strip("| ").split(" | ")[:2])].append(line)
    return rows


def row(pair: tuple[str, ...], key: str, results: list[tuple[str, str]]) -> str:
    count = Counter(end for test, end in results if renderer(test) == key)
    counts = [str(count[end]) for end in ("passed", "failed", "skipped")]
    return f"| {' | '.join([*pair, RENDERERS[key], *counts])} | {datetime.now(timezone.utc):%Y-%m-%d} |"


if __name__ == "__main__":
    main()
