"""What pyproject.toml and requirements.txt name is enough: for the wheel alone, and in the oldest versions allowed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNNER = ("pytest", "pytest-timeout", "hypothesis")
FEW = ("--hypothesis-profile", "few")  # examples: all of them are tried outside of this file
# of the core's tests those that are quick, and need nothing but the core
OF_THE_CORE = ("edit", "masked_mse", "checkpoints", "metadata", "wiring")
OF_LOWEST = {
    "tests/core": "a_folder_gives or read_in_each_of_its_layouts or name_of_a_bare_file or a_layer_is or test_edit",
    "tests/host": "settings_change_nothing or known_optimum or cut_short",
}


def run(*command: object, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def requirements(package: metadata.Distribution, extra: str = "") -> list[str]:
    """The names of what it needs here, and for one of its extras."""
    needed = [line for line in package.requires or () if "extra ==" not in line or (extra and f'"{extra}"' in line)]
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed]


def with_all_they_need(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system
            continue
        waiting += requirements(found[name])
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "perfusion_core", source / "perfusion_core", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_alone_with_what_it_names_runs_the_cores_tests(wheel: Path, tmp_path: Path) -> None:
    """In an environment of the wheel, what it names and what runs tests, linked to what is installed here."""
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, wheel)
    (ours,) = metadata.distributions(name="comfyui-perfusion", path=[str(packages)])
    core = ["torch", "einops", "safetensors", "numpy"]
    assert (requirements(ours), requirements(ours, extra="score")) == (core, [*core, "open_clip_torch"])
    for package in with_all_they_need([*requirements(ours), *RUNNER]).values():
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(package.locate_file(top))
    tests = tmp_path / "tests"
    shutil.copytree(ROOT / "tests" / "core", tests, ignore=shutil.ignore_patterns("__pycache__"))
    python = tmp_path / "env" / "bin" / "python"
    find = "from importlib.util import find_spec; print(find_spec('perfusion_core').origin)"
    where = run(python, "-I", "-c", find, cwd=tmp_path).strip()
    assert Path(where).is_relative_to(packages)
    files = [tests / f"test_{name}.py" for name in OF_THE_CORE]
    options = ("-q", *FEW, "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tests)
    said = run(python, "-m", "pytest", *options, *files, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert int(re.search(r"(\d+) passed", said)[1]) > 100


def lowest(name: str, packages: Sequence[str]) -> Path:
    """A folder of the cache with the oldest allowed versions of these packages, without what they need."""
    pins = [line.replace(">=", "==") for line in (ROOT / "requirements.txt").read_text().split()]
    wanted = [pin for pin in pins if pin.partition("==")[0] in packages]
    assert len(wanted) == len(packages)
    folder = Path(sys.prefix).parent / f"lowest-{name}-{'-'.join(pin.partition('==')[2] for pin in wanted)}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            new = folder.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", new, *wanted)
            new.rename(folder)
    return folder


@pytest.mark.parametrize("part", OF_LOWEST)
def test_the_lowest_versions_in_requirements_serve(part: str) -> None:
    """safetensors only for the core: the host's newest transformers asks for a newer one than we do."""
    folders = [lowest("packages", ("einops", "open_clip_torch", "matplotlib", "optuna"))]
    if part == "tests/core":
        folders.append(lowest("safetensors", ("safetensors",)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    options = ("-p", "no:cacheprovider", "-k", OF_LOWEST[part], *(FEW if part == "tests/core" else ()))
    files = ["test_openclip", "test_concept_file", "test_edit"] if part == "tests/core" else ["test_plots", "test_tune"]
    paths = [f"{part}/{file}.py" for file in files]
    said = run(sys.executable, "-m", "pytest", *options, *paths, cwd=ROOT, env=environment)
    assert int(re.search(r"(\d+) passed", said)[1]) > 10


def test_requirements_name_no_torch_and_all_have_a_lower_bound() -> None:
    lines = (ROOT / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z_]+>=[\d.]+", line) for line in lines)
    assert [line.partition(">")[0] for line in lines] == [
        "einops", "safetensors", "open_clip_torch", "matplotlib", "optuna",
    ]  # fmt: skip
