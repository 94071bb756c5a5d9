"""Which names files can have on every system. It needs neither ComfyUI nor torch."""

from __future__ import annotations

import re

_UNSAFE = r'[\x00-\x1f\x7f\ud800-\udfff<>:"|?*\\/]'
# Windows takes these for devices, with any ending, and drops dots and spaces at the end of a name
_DEVICE = r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?"


def is_file_name(name: str) -> bool:
    """Whether a file or folder can be called so on Linux, Mac and Windows, and is not hidden."""
    return (
        bool(name)
        and name[0] != "."
        and name[-1] not in ". "
        and not (re.search(_UNSAFE, name) or re.fullmatch(_DEVICE, name))
    )
