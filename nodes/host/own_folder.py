"""What the pack keeps between runs and nobody looks for: below ComfyUI's user folder, out of reach of its routes."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def own_folder(name: str) -> Path:
    """user/__perfusion/<name>, made when it is not there."""
    folder = Path(folder_paths.get_system_user_directory("perfusion")) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
