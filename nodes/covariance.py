"""The covariance of a text encoder."""

from __future__ import annotations

from comfy_api.latest import io

from ..perfusion_core.covariance import RIDGE
from .host.encoder_covariance import (
    CAPTIONS,
    MAX_MIB,
    TOKENS,
    cached_covariance,
    caption_file_path,
    caption_files,
    caption_lines,
    measure_covariance,
    read_captions,
)
from .plots import as_image, spectrum
from .schema import ADVANCED, CATEGORY, CovarianceType

_NO_FILE = "none"


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
                    tooltip="Your own captions, one per line. Empty: those of caption_file, or built-in ones, and the "
                    "result is kept.",
                ),
                io.Int.Input(
                    "count",
                    default=CAPTIONS,
                    min=100,
                    max=1_000_000,
                    tooltip="How many captions to use at most. 10000 takes seconds on a GPU, on a CPU many minutes.",
                ),
                io.Combo.Input(
                    "tokens",
                    options=list(TOKENS),
                    tooltip="Which of a caption's 77 positions count: all; from the start up to the end token, without "
                    "the padding; or its content, the words alone.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "ridge",
                    default=RIDGE,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    tooltip="Share of the mean variance that is added to every direction, so that rare ones do not "
                    "decide. More for few captions. The picture shows what it covers.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "caption_file",
                    options=[_NO_FILE, *caption_files()],
                    tooltip="A text file below ComfyUI's input directory: UTF-8, one caption per line, at most "
                    f"{MAX_MIB} MiB. Used when the field captions is empty. Press R to refresh the list.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                CovarianceType.Output(display_name="covariance"),
                io.Image.Output(display_name="spectrum", tooltip="The variance of every direction, and the ridge."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, caption_file, **_) -> str:
        return "" if caption_file == _NO_FILE else str(caption_file_path(caption_file).stat().st_mtime_ns)

    @classmethod
    def execute(cls, clip, captions, count, tokens, ridge, caption_file) -> io.NodeOutput:
        if clip is None:
            raise ValueError("There is no text encoder: this checkpoint has none. Load one with Load CLIP.")
        node_id = cls.hidden.unique_id
        if own := caption_lines(captions):
            covariance = measure_covariance(clip, own[:count], node_id, tokens)
        else:
            chosen = None if caption_file == _NO_FILE else read_captions(caption_file)
            covariance = cached_covariance(clip, count, node_id, tokens, captions=chosen)
        covariance.ridge = ridge  # here only: the kept file serves every ridge
        return io.NodeOutput(covariance, as_image(spectrum(covariance)))
