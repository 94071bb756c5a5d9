"""The covariance of a text encoder."""

from __future__ import annotations

from comfy_api.latest import io

from ..perfusion_core.covariance import RIDGE
from ..perfusion_core.exchange import load_covariance
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
from .host.files import COVARIANCES, FOLDER, foreign_names, foreign_path, foreign_stamp, stamp
from .plots import as_image, spectrum
from .schema import ADVANCED, EXCHANGE, NEEDS_MODEL, TRAIN, CovarianceType

_NO_FILE = "none"
_HOLDS = ("covariance", "inverse")


def _ridge_input() -> io.Input:
    return io.Float.Input(
        "ridge",
        default=RIDGE,
        min=0.0,
        max=10.0,
        step=0.0001,
        tooltip="Smooths the measurement, so that rare directions do not decide. Raise it when you have few captions; "
        "the picture shows how far it reaches.",
        **ADVANCED,
    )


def _outputs() -> list[io.Output]:
    return [
        CovarianceType.Output(display_name="covariance"),
        io.Image.Output(display_name="spectrum", tooltip="The variance of every direction, and the ridge."),
    ]


class PerfusionCovariance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionCovariance",
            display_name="Perfusion Covariance",
            category=TRAIN,
            description="A measurement of the text encoder, made once by itself and kept in "
            "models/perfusion/covariance. You need this node only for captions or settings of your own.",
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
                _ridge_input(),
                io.Combo.Input(
                    "caption_file",
                    options=[_NO_FILE, *caption_files()],
                    tooltip="A text file below ComfyUI's input directory: UTF-8, one caption per line, at most "
                    f"{MAX_MIB} MiB. Used when the field captions is empty. Press R to refresh the list.",
                    **ADVANCED,
                ),
                io.Model.Input("model", optional=True, tooltip=NEEDS_MODEL),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, caption_file: str | None, **_) -> str:
        """caption_file: None where it is linked, for it is not known yet; then all of them count."""
        names = {None: caption_files(), _NO_FILE: []}.get(caption_file, [caption_file])
        return stamp(map(caption_file_path, names))

    @classmethod
    def execute(cls, clip, captions, count, tokens, ridge, caption_file, model=None) -> io.NodeOutput:
        if clip is None:
            raise ValueError("There is no text encoder: this checkpoint has none. Load one with Load CLIP.")
        node_id = cls.hidden.unique_id
        if own := caption_lines(captions):
            covariance = measure_covariance(clip, own[:count], node_id, tokens, model=model)
        else:
            chosen = None if caption_file == _NO_FILE else read_captions(caption_file)
            covariance = cached_covariance(clip, count, node_id, tokens, captions=chosen, model=model)
        covariance.ridge = ridge  # here only: the kept file serves every ridge
        return io.NodeOutput(covariance, as_image(spectrum(covariance)))


class PerfusionImportCovariance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = f"models/{FOLDER}/{COVARIANCES}"
        return io.Schema(
            node_id="PerfusionImportCovariance",
            display_name="Perfusion Import Covariance",
            category=EXCHANGE,
            description=f"Reads the covariance of a text encoder that another program made, from {folder}, for "
            "Perfusion Train Concept.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=foreign_names(COVARIANCES),
                    tooltip=f"A .pt, .pth, .bin, .npy or .safetensors file from {folder} that holds one square matrix. "
                    "Press R to refresh the list.",
                ),
                io.Combo.Input(
                    "holds",
                    options=list(_HOLDS),
                    tooltip="Whether the matrix is the covariance C or its inverse. A matrix named C_inv, as in files "
                    "of perfusion-pytorch, is always taken as the inverse.",
                ),
                _ridge_input(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_) -> str:
        return foreign_stamp(COVARIANCES, file)

    @classmethod
    def execute(cls, file, holds, ridge) -> io.NodeOutput:
        covariance = load_covariance(foreign_path(COVARIANCES, file), inverse=holds == "inverse")
        covariance.ridge = ridge
        covariance.inverse()  # raises now what would end a training
        return io.NodeOutput(covariance, as_image(spectrum(covariance)))
