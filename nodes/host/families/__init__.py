"""The model families that Perfusion knows, a file each. All that differs between them is in their ``Family``."""

from .cosmos import ANIMA, COSMOS_PREDICT2
from .family import Family
from .flux import FLUX, FLUX_2_KLEIN
from .lumina import LUMINA_2, Z_IMAGE
from .pixart import PIXART_ALPHA, PIXART_SIGMA
from .qwen_image import QWEN_IMAGE
from .sd3 import SD3
from .unet import DEMO, OTHER_UNET, SD1, SD2, SDXL
from .video import LTX_VIDEO, WAN

FAMILIES = (
    DEMO, SD1, SD2, SDXL, OTHER_UNET, ANIMA, COSMOS_PREDICT2, WAN, LTX_VIDEO, PIXART_ALPHA, PIXART_SIGMA,
    QWEN_IMAGE, Z_IMAGE, LUMINA_2, FLUX, FLUX_2_KLEIN, SD3,
)  # fmt: skip

__all__ = ["FAMILIES", "Family", "family_of"]


def family_of(model) -> Family:
    """The family of a MODEL. Raises ValueError for one that Perfusion cannot edit."""
    for family in FAMILIES:
        if family.owns(model.model):
            return family
    *known, last = [family.title for family in FAMILIES if family.title]
    raise ValueError(f"Perfusion knows {', '.join(known)} and {last}. This one is {type(model.model).__name__}.")
