"""What the schemas of all families share."""

from __future__ import annotations

import inspect

from comfy_api.latest import io

CATEGORY = "perfusion"
Concepts = io.Custom("PERFUSION_CONCEPTS")  # tuple[ConceptUse, ...]
CovarianceType = io.Custom("PERFUSION_COVARIANCE")  # perfusion_core.Covariance

# Folded away until asked for, on hosts that can.
ADVANCED = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input.__init__).parameters else {}
