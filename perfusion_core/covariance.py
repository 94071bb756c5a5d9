"""The uncentered second moment C of text encodings: the metric in which Perfusion compares directions."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from .concept_file import check_header, safetensors_bytes, write_atomically
from .device import precise

FORMAT = "perfusion-covariance"
RIDGE = 0.01  # share of the mean variance; enough for a few hundred captions, harmless for many
_ASYMMETRY = 1e-3  # of the largest entry, which rounding may leave in a matrix from elsewhere


class Covariance:
    """C = mean of e e^T over the encodings seen so far, accumulated in float64. ``dim`` is d, ``count`` how many.

    ``origin`` is the file of one that was made elsewhere, whose count is unknown and therefore 1.
    ``ridge`` is the share of the mean variance that ``inverse`` adds, at least 0; it is kept in the file. Raises
    ValueError for another.
    """

    def __init__(self, dim: int, ridge: float = RIDGE):
        self.sum = torch.zeros(dim, dim, dtype=torch.float64)
        self.count = 0
        self.ridge = ridge
        self.origin = ""

    @property
    def dim(self) -> int:
        return self.sum.shape[0]

    @property
    def source(self) -> str:
        """What it was made from, for people."""
        return self.origin or f"{self.count} encodings"

    @property
    def ridge(self) -> float:
        return self._ridge

    @ridge.setter
    def ridge(self, ridge: float) -> None:
        self._ridge = _checked(ridge)

    def update(self, encodings: Tensor, mask: Tensor | None = None) -> None:
        """Adds encodings (..., d); ``mask`` (...) keeps those where it is true. Raises ValueError for NaN."""
        if encodings.shape[-1] != self.dim:
            raise ValueError(f"These encodings are {encodings.shape[-1]} wide, this covariance is for {self.dim}.")
        kept = rearrange(encodings, "... d -> (...) d") if mask is None else encodings[mask.bool()]
        kept = precise(kept.detach())  # where the encodings are: a GPU is too fast to wait for the CPU
        moment = (kept.T @ kept).to(self.sum.device)
        if not torch.isfinite(moment).all():
            raise ValueError("The text encodings hold NaN or infinity. Load the text encoder in fp32 or bf16.")
        self.sum += moment
        self.count += kept.shape[0]

    def matrix(self) -> Tensor:
        """C, (d, d) float64. Raises ValueError while nothing was added."""
        if not self.count:
            raise ValueError("This covariance is empty: add encodings with update() first.")
        return self.sum / self.count

    def inverse(self, ridge: float | None = None) -> Tensor:
        """(C + ridge · mean variance · I)^-1, (d, d) float64, with its own ridge when None.

        The ridge makes a small sample's C invertible. Raises ValueError when it does not.
        """
        ridge = self.ridge if ridge is None else _checked(ridge)
        matrix = self.matrix()
        matrix.diagonal().add_(ridge * matrix.diagonal().mean())
        try:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
            error = (matrix @ inverse - torch.eye(self.dim, dtype=matrix.dtype)).abs().max()
            usable = bool(error < 1e-6)  # rounding lets singular ones pass the decomposition
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            usable = False
        if not usable:
            raise ValueError(
                f"The covariance of {self.source} cannot be inverted with a ridge of {ridge:g}. "
                f"Use a ridge such as {RIDGE}, or more captions."
            )
        return inverse

    @classmethod
    def from_matrix(cls, matrix: Tensor, inverse: bool = False, origin: str = "a matrix") -> Covariance:
        """From a C of any scale, (d, d), or from its ``inverse``. Raises ValueError when it can be neither."""
        kind = "the inverse of a covariance" if inverse else "a covariance"
        if matrix.ndim != 2 or not matrix.shape[0] == matrix.shape[1] > 0 or not matrix.is_floating_point():
            raise ValueError(f"{origin} is not {kind}: it is {matrix.dtype} {tuple(matrix.shape)}, expected (d, d).")
        matrix = matrix.detach().cpu().double()
        if not torch.isfinite(matrix).all():
            raise ValueError(f"{origin} is not {kind}: it holds NaN or infinity.")
        if (matrix - matrix.T).abs().max() > _ASYMMETRY * matrix.abs().max():
            raise ValueError(f"{origin} is not {kind}: it is not symmetric.")
        variances, directions = torch.linalg.eigh(matrix / 2 + matrix.T / 2)  # halved first, or huge ones overflow
        # rounding makes the least ones of a C negative, which the ridge mends; an inverse has none that are 0
        least = variances.max() * torch.finfo(torch.float32).eps if inverse else -RIDGE * variances.mean()
        if variances.max() <= 0 or variances.min() < least:
            raise ValueError(f"{origin} is not {kind}: it has directions of no or negative variance.")
        covariance = cls(len(matrix))
        covariance.sum = directions * (1 / variances if inverse else variances.clamp(min=0)) @ directions.T
        if not torch.isfinite(covariance.sum).all():
            raise ValueError(f"{origin} is not {kind}: its numbers are too large or too small.")
        covariance.count, covariance.origin = 1, origin
        return covariance

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it atomically and without loss, as safetensors. Raises ValueError when empty, OSError for the disk."""
        self.matrix()  # raises when it is empty
        tensors = {"sum": self.sum.contiguous()}
        metadata = {"format": FORMAT, "count": str(self.count), "ridge": str(self.ridge)}
        write_atomically(Path(path), safetensors_bytes(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Covariance:
        """Reads what ``save`` wrote. Raises ValueError for anything else."""
        name = Path(path).name
        try:
            check_header(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                count = int(metadata["count"]) if metadata.get("format") == FORMAT else 0
                if "sum" in file.keys():  # noqa: SIM118, it is no mapping
                    total = file.get_tensor("sum").to(torch.float64, copy=True)  # or it stays mapped
                else:  # older files have C
                    total = file.get_tensor("covariance").double() * count
            ridge = _checked(float(metadata.get("ridge", RIDGE)))  # older files have none
        except Exception as error:  # damaged headers make the library raise nearly anything
            raise ValueError(f"{name} is not a covariance ({error}). Delete it to have it made anew.") from error
        square = total.ndim == 2 and total.shape[0] == total.shape[1] > 0
        if not 0 < count < 2**53 or not square or not torch.isfinite(total).all():
            raise ValueError(f"{name} is another file or a damaged covariance. Delete it to have it made anew.")
        loaded = cls(total.shape[0], ridge)
        loaded.sum, loaded.count = total, count
        return loaded


def _checked(ridge: float) -> float:
    if not 0 <= ridge < math.inf:
        raise ValueError(f"The ridge is {ridge}. Give a share of the mean variance, at least 0, such as {RIDGE}.")
    return ridge
