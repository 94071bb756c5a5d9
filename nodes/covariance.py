"""The covariance of a text encoder."""

from __future__ import annotations

from comfy_api.latest import io

from .host.encoder_covariance import CAPTIONS, cached_covariance, measure_covariance
from .schema import CATEGORY, CovarianceType


class PerfusionCovariance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionCovariance",
            display_name="Perfusion Covariance",
            category=CATEGORY,
            description="Measures which directions a text encoder uses, the metric Perfusion compares words in. "
            "Made once per text encoder and kept in models/perfusion/covariance.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder to measure."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="Your own captions, one per line. Empty: built-in ones, and the result is kept.",
                ),
                io.Int.Input(
                    "count",
                    default=CAPTIONS,
                    min=100,
                    max=1_000_000,
                    tooltip="How many captions to use at most. 10000 takes seconds on a GPU, on a CPU many minutes.",
                ),
            ],
            outputs=[CovarianceType.Output(display_name="covariance")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, captions, count) -> io.NodeOutput:
        own = [line.strip() for line in captions.splitlines() if line.strip()]
        if own:
            return io.NodeOutput(measure_covariance(clip, own[:count], cls.hidden.unique_id))
        return io.NodeOutput(cached_covariance(clip, count, cls.hidden.unique_id))
