"""The core stands alone: torch and safetensors, and nothing of ComfyUI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import sys
sys.path[:] = [entry for entry in sys.path if "ComfyUI" not in entry]
sys.path.insert(0, sys.argv[1])
import perfusion_core
missing = [name for name in perfusion_core.__all__ if not hasattr(perfusion_core, name)]
assert not missing, missing
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
FOREIGN = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "open_clip", "transformers", "PIL"}


def test_the_core_imports_without_comfyui_or_open_clip(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-I", "-c", CODE, str(ROOT)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert "perfusion_core" in imported
    assert not imported & FOREIGN


def test_scanners_find_nothing_that_runs_texts_as_code() -> None:
    files = [ROOT / "__init__.py", *ROOT.glob("nodes/**/*.py"), *ROOT.glob("perfusion_core/**/*.py")]
    words = ("compile(", "eval(", "exec(", "base64.b64decode")  # also in re.compile( and a network's .eval()
    found = [(file.name, word) for file in files for word in words if word in file.read_text(encoding="utf-8")]
    assert len(files) > 50 and not found
