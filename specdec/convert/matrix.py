"""Weight matrices as checkpoints hold them: dense, or blocks of codes with a scale and a minimum.

Rows are outputs and columns are inputs: a linear computes ``y[n] = sum_k w[n, k] * x[k]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
CodeArray: TypeAlias = NDArray[np.uint8]
IndexArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class DenseMatrix:
    """A float matrix."""

    values: FloatArray  # [rows, columns]

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def dequantise(self) -> FloatArray:
        return self.values

    def take_rows(self, rows: IndexArray | slice) -> DenseMatrix:
        return DenseMatrix(self.values[rows])


@dataclass(frozen=True)
class BlockMatrix:
    """``w[n, k] = scales[n, b] * codes[n, k] + minima[n, b]`` with ``b = k // block``."""

    codes: CodeArray  # [rows, columns], each below 2 ** bits
    scales: FloatArray  # [rows, columns / block]
    minima: FloatArray  # [rows, columns / block]
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def block(self) -> int:
        return int(self.codes.shape[1] // self.scales.shape[1])

    def dequantise(self) -> FloatArray:
        rows, columns = self.shape
        values = self.codes.reshape(rows, -1, self.block).astype(np.float32)
        values *= self.scales[..., None]
        values += self.minima[..., None]
        return values.reshape(rows, columns)

    def take_rows(self, rows: IndexArray | slice) -> BlockMatrix:
        return BlockMatrix(self.codes[rows], self.scales[rows], self.minima[rows], self.bits)


Matrix: TypeAlias = DenseMatrix | BlockMatrix


def stack_rows(matrices: Sequence[Matrix]) -> Matrix:
    """One matrix whose outputs are those of all of ``matrices``, in order."""
    if len(matrices) == 1:
        return matrices[0]
    blocks = [matrix for matrix in matrices if isinstance(matrix, BlockMatrix)]
    if len(blocks) == len(matrices) and len({(m.bits, m.block) for m in blocks}) == 1:
        return BlockMatrix(
            np.concatenate([m.codes for m in blocks]),
            np.concatenate([m.scales for m in blocks]),
            np.concatenate([m.minima for m in blocks]),
            blocks[0].bits,
        )
    return DenseMatrix(np.concatenate([matrix.dequantise() for matrix in matrices]))
