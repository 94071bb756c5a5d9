"""When the host runs out of memory."""

from __future__ import annotations

import comfy.model_management


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a GPU's or the CPU's way of saying that memory is at an end."""
    if isinstance(error, (MemoryError, comfy.model_management.OOM_EXCEPTION)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "defaultcpuallocator" in text)


def release_memory() -> None:
    """Gives back whatever the host keeps on its devices."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
