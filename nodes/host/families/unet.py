"""Stable Diffusion's UNets: SD1.x, SD2.x, SDXL, the demo model, and others of their kind."""

from __future__ import annotations

from functools import partial

from comfy import supported_models
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from ..demo_model import DemoConfig
from ..encoder import CLIPS
from .family import UNET_PROJECTIONS, Family

_NO_TEXT = (supported_models.SVD_img2vid, supported_models.Stable_Zero123)  # their attn2 looks at a picture


def _owns(base_model: nn.Module, config: type) -> bool:
    return _other(base_model) and isinstance(base_model.model_config, config)


def _other(base_model: nn.Module) -> bool:
    unet = getattr(base_model, "diffusion_model", None)
    return isinstance(unet, UNetModel) and not isinstance(base_model.model_config, _NO_TEXT)


def _unet(name: str, title: str, owns, resolution: int = 512, **more) -> Family:
    attention, texts = r".*\.attn2", frozenset(CLIPS)
    return Family(name, title, owns, attention, UNET_PROJECTIONS, "heads", resolution, texts, **more)


DEMO = _unet("demo", "", partial(_owns, config=DemoConfig), resolution=96)
SD1 = _unet("sd1", "SD1.x", partial(_owns, config=supported_models.SD15))
SD2 = _unet("sd2", "SD2.x", partial(_owns, config=supported_models.SD20))
SDXL = _unet("sdxl", "SDXL", partial(_owns, config=supported_models.SDXL), resolution=1024, large=True)
OTHER_UNET = _unet("unet", "", _other)  # such as SDXL's refiner
