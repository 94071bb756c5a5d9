"""The pack as the host loads it."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apart import PerfusionKeepApart, PerfusionRegions
from .attention import PerfusionAttentionMap
from .compose import (
    PerfusionApply,
    PerfusionCombineConcepts,
    PerfusionConceptSettings,
    PerfusionLoadConcept,
    PerfusionSchedule,
)
from .covariance import PerfusionCovariance, PerfusionImportCovariance
from .demo import PerfusionDemoModel
from .exchange import PerfusionExportLoRA, PerfusionImportConcept
from .host import clipseg, files, routes, scorers
from .info import PerfusionConceptInfo
from .load import PerfusionLoader, PerfusionSaveConcept
from .maps import PerfusionGateMap
from .photos import PerfusionLoadPhotos, PerfusionMasksFromText, PerfusionPasteSubject
from .score import PerfusionScore
from .sweep import PerfusionSweep
from .train import PerfusionTrainConcept
from .tune import PerfusionTune


class PerfusionExtension(ComfyExtension):
    async def on_load(self) -> None:
        for part in (files, scorers, clipseg, routes):
            part.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            PerfusionLoader,
            PerfusionLoadConcept,
            PerfusionConceptSettings,
            PerfusionSchedule,
            PerfusionCombineConcepts,
            PerfusionApply,
            PerfusionKeepApart,
            PerfusionConceptInfo,
            PerfusionGateMap,
            PerfusionAttentionMap,
            PerfusionRegions,
            PerfusionLoadPhotos,
            PerfusionMasksFromText,
            PerfusionPasteSubject,
            PerfusionTrainConcept,
            PerfusionCovariance,
            PerfusionImportCovariance,
            PerfusionSaveConcept,
            PerfusionImportConcept,
            PerfusionExportLoRA,
            PerfusionSweep,
            PerfusionScore,
            PerfusionTune,
            PerfusionDemoModel,
        ]
