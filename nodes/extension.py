"""The pack as the host loads it."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .covariance import PerfusionCovariance
from .host import files
from .load import PerfusionLoader, PerfusionSaveConcept
from .train import PerfusionLoadPhotos, PerfusionTrainConcept


class PerfusionExtension(ComfyExtension):
    async def on_load(self) -> None:
        files.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [PerfusionLoader, PerfusionLoadPhotos, PerfusionTrainConcept, PerfusionCovariance, PerfusionSaveConcept]
