"""How many small faults in the core its tests notice: changes one thing at a time and runs the tests that come by it.

    bash scripts/env.sh python -m pytest tests/core --cov=perfusion_core --cov-branch --cov-context=test
    bash scripts/env.sh python benchmarks/mutation.py --minutes 60 --report /tmp/mutants.json

Mutants are taken in random order, so that a part of them is a fair sample; a report that is there is gone on with.
Left out: what is only said (texts of errors, docstrings) and types.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import coverage
import einops  # noqa: F401, once for all mutants, as what follows
import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import torch

REPO = Path(__file__).resolve().parents[1]
MODULES = ("edit", "covariance", "concept", "concept_file", "training")
OWN_TESTS = {"concept": ("concept_file", "metadata"), "concept_file": ("concept_file", "metadata", "training_file")}
LONGEST = 120  # seconds of computing, after which a mutant counts as noticed: it would hang
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--coverage", type=Path, default=REPO / ".coverage")
    asked = parser.parse_args()
    os.chdir(REPO)
    sys.path.insert(0, str(REPO))
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * asked.minutes
    results = json.loads(asked.report.read_text()) if asked.report.exists() else {}
    sources = {name: (REPO / f"perfusion_core/{name}.py").read_text() for name in MODULES}
    every = [(name, number) for name in MODULES for number in range(len(list(_places(ast.parse(sources[name])))))]
    random.Random(0).shuffle(every)
    tests = {name: _tests(asked.coverage, name) for name in MODULES}
    if not results and any(_is_noticed(name, sources[name], tests[name].get(1, set())) for name in MODULES):
        sys.exit("Tests fail without any change.")
    for name, number in every:
        key = f"{name} {number}"
        if time.monotonic() > end:
            break
        if key in results:
            continue
        source, line, what = _mutant(sources[name], number)
        noticed = _is_noticed(name, source, tests[name].get(line, set()))
        results[key] = {"line": line, "what": what, "noticed": noticed}
        asked.report.write_text(json.dumps(results, indent=1))
        if not noticed:
            print(f"{name}.py:{line}: {what}", flush=True)
    noticed = sum(result["noticed"] for result in results.values())
    print(f"{noticed} of {len(results)} noticed ({noticed / len(results):.1%}); there are {len(every)} mutants")


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    """(node, its field, what is put there)"""
    for node in _said_or_done(tree):
        if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
            yield node, "op", SWAPS[type(node.op)]()
        elif isinstance(node, ast.Compare):
            for i, op in enumerate(node.ops):
                yield node, "ops", [*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, "operand", ast.UnaryOp(ast.Not(), node.operand)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, "value", not node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            yield node, "value", node.value + 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            yield node, "value", f"{node.value}X"
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            yield node, "test", ast.UnaryOp(ast.Not(), node.test)
        elif isinstance(node, (ast.Expr, ast.Return)) and node.value and not isinstance(node.value, ast.Constant):
            yield node, "value", ast.Constant(None)


def _said_or_done(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those of messages, docstrings, types and imports."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment") or isinstance(node, (ast.JoinedStr, ast.Raise)):
            continue
        for child in value if isinstance(value, list) else [value]:
            said = isinstance(node, (ast.Expr, ast.Return)) and isinstance(child, ast.Constant)
            if isinstance(child, ast.AST) and not said and not isinstance(child, (ast.Import, ast.ImportFrom)):
                yield from _said_or_done(child)


def _mutant(source: str, number: int) -> tuple[str, int, str]:
    """Its source, line, and what was changed."""
    tree = ast.parse(source)
    node, field, after = list(_places(tree))[number]
    old = ast.unparse(node)
    setattr(node, field, copy.deepcopy(after))
    ast.fix_missing_locations(tree)
    shown = f"{old.splitlines()[0][:90]}  →  {ast.unparse(node).splitlines()[0][:90]}"
    return ast.unparse(tree), node.lineno, shown


def _tests(data: Path, name: str) -> dict[int, set[str]]:
    """Of each line, the tests that come by it."""
    held = coverage.CoverageData(str(data))
    held.read()
    (path,) = (path for path in held.measured_files() if path.endswith(f"perfusion_core/{name}.py"))
    return {
        line: {context.partition("|")[0] for context in contexts if context}
        for line, contexts in held.contexts_by_lineno(path).items()
    }


def _is_noticed(name: str, source: str, tests: set[str]) -> bool:
    """Whether a test fails in a process of its own, whose module is the mutant."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = 1
        with contextlib.suppress(BaseException):
            sys.meta_path.insert(0, _Mutated(name, source))
            own = [f"tests/core/test_{own}.py" for own in OWN_TESTS.get(name, (name,))]
            files = sorted({test.partition("::")[0] for test in tests} | set(own), key=lambda file: file not in own)
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile", "few"]
            status = int(pytest.main([*options, *files], plugins=[_Only(tests, own)]))
        os._exit(status)
    return os.waitpid(child, 0)[1] != 0


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the core from another source."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = f"perfusion_core.{name}", source

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module):
        exec(compile(self.source, f"{module.__name__} mutated", "exec"), module.__dict__)


class _Only:
    """Runs these tests and those that are newer than the coverage, the module's own first."""

    def __init__(self, tests: set[str], own: list[str]) -> None:
        self.tests, self.own = tests, own

    def pytest_collection_modifyitems(self, items):
        items[:] = [
            item
            for item in items
            if item.nodeid in self.tests or (item.nodeid.partition("::")[0] in self.own and not self.tests)
        ]


if __name__ == "__main__":
    main()
