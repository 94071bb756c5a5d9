"""What scripts/test.sh runs of everything that there is to check."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def test_sh(tmp_path):
    """test_sh(*arguments) -> (the commands that it runs, for which there are stand-ins, its exit status, what it says);
    the commands with ``failing`` in them fail."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(SCRIPTS / "test.sh", tmp_path / "scripts")
    for name in ("scripts/env.sh", "scripts/check_web.sh", "scripts/host.sh", "bin/apt-get", "bin/npm", "bin/chromium"):
        (tmp_path / name).write_text(
            f'''#!/bin/sh
            command="{Path(name).name} $*"
            echo "$command" | tee -a "{tmp_path}/ran"
            case $command in *"$FAILING"*) exit 1 ;; esac
            '''
        )
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str, failing: str = "nothing") -> tuple[list[str], int, str]:
        (tmp_path / "ran").unlink(missing_ok=True)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
        command = ["bash", tmp_path / "scripts" / "test.sh", *arguments]
        environment |= {"PATH": path, "FAILING": failing}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return (tmp_path / "ran").read_text().splitlines(), done.returncode, done.stdout

    return run


@pytest.mark.parametrize(
    "asked", [("tests/core",), ("tests/core/test_edit.py::test_x", "-x"), ("tests/host", "-k", "a")]
)
def test_nothing_of_web_is_checked_when_other_tests_are_asked_for(test_sh, asked):
    ran, status, _ = test_sh(*asked)
    assert status == 0
    assert f"env.sh python -m pytest {' '.join(asked)}" in ran
    assert not any("check_web" in command or "host.sh" in command for command in ran)


@pytest.mark.parametrize(
    "asked", [(), ("-k", "a"), ("tests",), ("tests/web",), ("tests/core", "tests/web/test_face.py")]
)
def test_web_is_checked_when_its_tests_are_among_those_asked_for(test_sh, asked):
    ran, status, _ = test_sh(*asked)
    assert status == 0
    expected = f"env.sh python -m pytest {' '.join(asked or ('tests/web',))} "
    assert any(f"{command} ".startswith(expected) for command in ran)
    assert any("check_web" in command for command in ran)


@pytest.mark.parametrize(
    "failing",
    ["ruff format", "ruff check", "mypy", "check_web", "pytest tests/core tests/host", "pytest tests/web", "host.sh"],
)
def test_all_else_runs_when_one_fails_and_what_each_says_is_shown(test_sh, failing):
    whole, status, _ = test_sh()
    assert status == 0 and sum(failing in command for command in whole) > 0
    ran, status, said = test_sh(failing=failing)
    assert status == 1
    assert sorted(ran) == sorted(whole) == sorted(said.splitlines())
