"""Which names files can have on every system. It needs neither ComfyUI nor torch."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r'[\x00-\x1f\x7f\ud800-\udfff<>:"|?*\\/]')
# Windows takes these for devices, with any ending, and drops dots and spaces at the end of a name
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def is_file_name(name: str) -> bool:
    """Whether a file or folder can be called so on Linux, Mac and Windows, and is not hidden."""
    return (
        bool(name) and name[0] != "." and name[-1] not in ". " and not (_UNSAFE.search(name) or _DEVICE.fullmatch(name))
    )
