"""What scripts/test.sh runs of everything that there is to check."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def test_sh(tmp_path):
    """test_sh(*arguments) -> the commands that it runs, in place of which there are stand-ins."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(SCRIPTS / "test.sh", tmp_path / "scripts")
    for name in ("scripts/env.sh", "scripts/check_web.sh", "scripts/host.sh", "bin/apt-get", "bin/npm", "bin/chromium"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{Path(name).name} $*" >> "{tmp_path}/ran"\n')
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str) -> list[str]:
        (tmp_path / "ran").unlink(missing_ok=True)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
        command = ["bash", tmp_path / "scripts" / "test.sh", *arguments]
        subprocess.run(command, env={**environment, "PATH": path}, check=True, capture_output=True)
        return (tmp_path / "ran").read_text().splitlines()

    return run


@pytest.mark.parametrize(
    "asked", [("tests/core",), ("tests/core/test_edit.py::test_x", "-x"), ("tests/host", "-k", "a")]
)
def test_nothing_of_web_is_checked_when_other_tests_are_asked_for(test_sh, asked):
    ran = test_sh(*asked)
    assert f"env.sh python -m pytest {' '.join(asked)}" in ran
    assert not any("check_web" in command or "host.sh" in command for command in ran)


@pytest.mark.parametrize(
    "asked", [(), ("-k", "a"), ("tests",), ("tests/web",), ("tests/core", "tests/web/test_face.py")]
)
def test_web_is_checked_when_its_tests_are_among_those_asked_for(test_sh, asked):
    ran = test_sh(*asked)
    expected = f"env.sh python -m pytest {' '.join(asked or ('tests/web',))} "
    assert any(f"{command} ".startswith(expected) for command in ran)
    assert any("check_web" in command for command in ran)
