"""How many small faults in the core its tests notice: changes one thing at a time and runs the tests that come by it.

    bash scripts/env.sh python -m pytest tests/core --cov=perfusion_core --cov-branch --cov-context=test
    bash scripts/env.sh python benchmarks/mutation.py --minutes 60 --report /tmp/mutants.json

pytest collects the tests once. Then every mutant gets a copy of that process, which runs the tests that come by the
changed line (all tests, where that is outside of functions), the quickest first, until one fails. Mutants are taken in
random order, so that a part of them is a fair sample; a report that is there is gone on with, and ``--survivors`` tries
those of it again, after tests were added.
Left out: what is only said (texts of errors, docstrings) and types.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.util
import inspect
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import coverage
import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
MODULES = ("edit", "covariance", "concept", "concept_file", "training")
LONGEST = 40  # seconds of computing, after which a mutant counts as noticed: it would hang
LARGEST = 16 * 2**30  # bytes of address space, likewise
PASSED, FAILED, BROKEN = range(3)  # exit statuses of copies; BROKEN: this script, not the tests
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
    parser.add_argument("--survivors", action="store_true", help="try again what the report calls unnoticed")
    asked = parser.parse_args()
    os.chdir(REPO)
    sys.path.insert(0, str(REPO))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(int(_pytest(["tests/core"], _Mutants(asked), folder)))


def _pytest(files: Sequence[str], plugin: object, folder: str) -> int:
    options = ["-s", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile", "few"]
    return pytest.main([*options, f"--basetemp={folder}/tests", *files], plugins=[plugin])


class _Mutants:
    """Has the collected tests run with mutants, in place of once."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        end = time.monotonic() + 60 * self.asked.minutes
        file = self.asked.report
        report = json.loads(file.read_text()) if file.exists() else {"seconds": {}, "mutants": {}}
        sources = {name: (REPO / f"perfusion_core/{name}.py").read_text() for name in MODULES}
        covered = coverage.CoverageData(str(self.asked.coverage))
        covered.read()
        tests = {name: _tests(covered, name, session.items) for name in MODULES}
        used = {context.rpartition("|")[0] for context in covered.measured_contexts()}
        items = [item for item in session.items if item.nodeid in used]
        if not report["seconds"]:
            report["seconds"] = _seconds(items, file)
        items.sort(key=lambda item: report["seconds"].get(item.nodeid, 0))

        every = [(name, number) for name in MODULES for number in range(len(list(_places(ast.parse(sources[name])))))]
        random.Random(0).shuffle(every)
        results = report["mutants"]
        unchanged = {name: _compiled(ast.parse(source), name) for name, source in sources.items()}
        if not results and any(
            _is_noticed(name, unchanged[name], 1, tests[name], items) is not False for name in MODULES
        ):
            sys.exit("Tests fail without any change in this order.")
        for name, number in every:
            key = f"{name} {number}"
            if time.monotonic() > end:
                break
            if key in results and (results[key]["noticed"] or not self.asked.survivors):
                continue
            code, line, what = _mutant(sources[name], number, name)
            noticed = _is_noticed(name, code, line, tests[name], items)
            if noticed is None:
                print(f"{name}.py:{line}: {what}: could not be run, and is left for another time", flush=True)
                continue
            results[key] = {"line": line, "what": what, "noticed": noticed}
            file.write_text(json.dumps(report, indent=1))
            if not noticed:
                print(f"{name}.py:{line}: {what}", flush=True)
        noticed = sum(result["noticed"] for result in results.values())
        print(f"{noticed} of {len(results)} noticed ({noticed / len(results):.1%}); there are {len(every)} mutants")
        return True


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


def _mutant(source: str, number: int, name: str) -> tuple[CodeType, int, str]:
    """Its code, line, and what was changed."""
    tree = ast.parse(source)
    node, field, after = list(_places(tree))[number]
    old = ast.unparse(node)
    setattr(node, field, copy.deepcopy(after))
    ast.fix_missing_locations(tree)
    shown = f"{old.splitlines()[0][:90]}  →  {ast.unparse(node).splitlines()[0][:90]}"
    return _compiled(tree, name), node.lineno, shown


def _compiled(tree: ast.Module, name: str) -> CodeType:
    return compile(tree, str(REPO / f"perfusion_core/{name}.py"), "exec", dont_inherit=True)


def _tests(covered: coverage.CoverageData, name: str, items: Collection[pytest.Item]) -> dict[int, set[str]]:
    """Of each line, the tests that come by it; all of a file, when what it sets up does."""
    (path,) = (path for path in covered.measured_files() if path.endswith(f"perfusion_core/{name}.py"))
    files, found = defaultdict(set), defaultdict(set)
    for item in items:
        files[_file(item.nodeid)].add(item.nodeid)
    for line, contexts in covered.contexts_by_lineno(path).items():
        for test, _, phase in (context.rpartition("|") for context in contexts if context):
            found[line] |= files[_file(test)] if phase == "setup" else {test}
    return found


def _file(test: str) -> str:
    return test.partition("::")[0]


def _seconds(items: Sequence[pytest.Item], file: Path) -> dict[str, float]:
    """What every test takes, without any change."""

    def measure() -> int:
        seconds = {}
        for item in items:
            start = time.process_time()
            if _run([item]) == FAILED:
                return FAILED
            seconds[item.nodeid] = time.process_time() - start
        file.write_text(json.dumps({"seconds": seconds, "mutants": {}}))
        return PASSED

    if _in_copy(measure) != PASSED:
        sys.exit("Tests fail without any change.")
    return json.loads(file.read_text())["seconds"]


def _is_noticed(
    name: str, code: CodeType, line: int, tests: dict[int, set[str]], items: Sequence[pytest.Item]
) -> bool | None:
    """Whether a test fails, or takes far too much, in a process with the mutant; None where that broke otherwise."""

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
        resource.setrlimit(resource.RLIMIT_AS, (LARGEST, LARGEST))
        if _put_in(importlib.import_module(f"perfusion_core.{name}"), code):
            last = max(known for known in tests if known <= line)  # statements of several lines are known by some
            return _run([item for item in items if item.nodeid in tests[last]])
        return _run_afresh(name, code, [item.nodeid for item in items])

    status = _in_copy(run)
    return None if status == BROKEN else status != PASSED


def _in_copy(act: Callable[[], int]) -> int:
    """The exit status of a copy of this process that does this; negative when it was killed."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = BROKEN
        with contextlib.suppress(BaseException):
            status = act()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _put_in(module: ModuleType, code: CodeType) -> bool:
    """Gives the one function its other code; False when the change is outside of functions."""
    codes = {(one.co_name, one.co_firstlineno): one for one in _codes(code)}
    for function in _functions(module):
        own = function.__code__
        other = codes[own.co_name, own.co_firstlineno]
        if other != own:
            function.__code__ = other
            return True
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _codes(one)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Those that stand in its file, of classes as well."""
    for owner in (module, *(value for value in vars(module).values() if isinstance(value, type))):
        for value in vars(owner).values():
            function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
            if isinstance(function, FunctionType) and function.__code__.co_filename == module.__file__:
                yield function


def _run(items: Sequence[pytest.Item]) -> int:
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if item.session.testsfailed:
            return FAILED
    return PASSED


def _run_afresh(name: str, code: CodeType, tests: Sequence[str]) -> int:
    """With everything of ours imported anew, and this module as the mutant."""
    for imported, module in list(sys.modules.items()):
        if imported != "__main__" and str(getattr(module, "__file__", None)).startswith(str(REPO)):
            del sys.modules[imported]
    sys.meta_path.insert(0, _Mutated(name, code))
    with tempfile.TemporaryDirectory() as folder:
        return min(_pytest(sorted({_file(test) for test in tests}), _Only(tests), folder), FAILED)


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the core from other code."""

    def __init__(self, name: str, code: CodeType) -> None:
        self.name, self.code = f"perfusion_core.{name}", code

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module):
        exec(self.code, module.__dict__)


class _Only:
    """Runs these tests, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.tests = tests

    def pytest_collection_modifyitems(self, items):
        found = {item.nodeid: item for item in items}
        items[:] = [found[test] for test in self.tests if test in found]  # names may have the mutant in them


if __name__ == "__main__":
    main()
