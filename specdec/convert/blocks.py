"""Packs matrices for the core's own operators: tiles of 16 outputs, blocks of 32 inputs.

``codes`` uint8 [tiles, blocks, 256] in 4 bits or [tiles, blocks, 512] in 8, where tile t holds
outputs 16 t to 16 t + 15 and block b inputs 32 b to 32 b + 31. In 8 bits, byte 64 g + 4 c + j is
output 16 t + c, input 32 b + 4 g + j, and ``w = scale * (code - 128)``; in 4 bits its lower half is
that input and its upper half the one 16 further on, and ``w = scale * code + minimum``. ``scales``
are the bits of IEEE halves, uint16 [tiles, blocks, 16], and [tiles, blocks, 2, 16] (scale, minimum)
in 4 bits. Outputs that fill up the last tile are zeros throughout.

What ggml holds as Q8_0, Q4_1 and Q4_0 is held exactly; all else is rounded to Q8_0's blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import BLOCK
from specdec.convert.matrix import BlockMatrix, CodeArray, FloatArray, Matrix
from specdec.errors import CheckpointError

TILE = 16  # outputs
_CHUNK = 4096  # rows that are rounded at a time, so that float copies of them stay small

HalfArray: TypeAlias = NDArray[np.float16]


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix as the operators read it."""

    codes: CodeArray  # [tiles, blocks, 64 * bits]
    scales: NDArray[np.uint16]  # [tiles, blocks, 16], or [tiles, blocks, 2, 16] in 4 bits
    bits: int
    outputs: int


@dataclass(frozen=True)
class Blocks:
    """Rows of whole blocks before they are packed; ``minima`` are 4-bit blocks' alone."""

    codes: CodeArray  # [rows, columns], below 16 in 4 bits
    scales: HalfArray  # [rows, columns / 32]
    minima: HalfArray | None  # [rows, columns / 32]


def pack_rows(matrices: Sequence[Matrix]) -> PackedMatrix:
    """The outputs of all of ``matrices``, in order."""
    parts = encode(matrices)
    minima = [part.minima for part in parts if part.minima is not None]
    whole = Blocks(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(minima) if minima else None,
    )
    return _pack(whole)


def pack_gated(gate: Matrix, up: Matrix) -> PackedMatrix:
    """Two matrices of one shape whose tiles take turns: 16 outputs of ``gate``, 16 of ``up``."""
    first, second = map(_pack, encode([gate, up]))
    tiles = 2 * len(first.codes)

    def interleave(a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.stack([a, b], axis=1).reshape(tiles, *a.shape[1:])

    return PackedMatrix(
        interleave(first.codes, second.codes).view(np.uint8),
        interleave(first.scales, second.scales).view(np.uint16),
        first.bits,
        first.outputs + second.outputs,
    )


def encode(matrices: Sequence[Matrix]) -> list[Blocks]:
    """Blocks of 4 bits where all of ``matrices`` have them, or else of 8 bits."""
    four = [_four_bits(matrix) for matrix in matrices]
    exact = [blocks for blocks in four if blocks is not None]
    return exact if len(exact) == len(four) else [eight_bits(matrix) for matrix in matrices]


def _four_bits(matrix: Matrix) -> Blocks | None:
    """The blocks of Q4_0 or Q4_1; None for a matrix that halves do not hold exactly."""
    if not isinstance(matrix, BlockMatrix) or (matrix.bits, matrix.block) != (4, BLOCK):
        return None
    scales, minima = _exact_halves(matrix.scales), _exact_halves(matrix.minima)
    if scales is None or minima is None:
        return None
    return Blocks(matrix.codes, scales, minima)


def eight_bits(matrix: Matrix) -> Blocks:
    """Q8_0's blocks: those of the matrix, or what is nearest to its values."""
    if isinstance(matrix, BlockMatrix) and (matrix.bits, matrix.block) == (8, BLOCK):
        scales = _exact_halves(matrix.scales)
        if scales is not None and np.array_equal(matrix.minima, -128 * matrix.scales):
            return Blocks(matrix.codes, scales, None)
    starts = range(0, matrix.shape[0], _CHUNK)
    parts = [_round(matrix.take_rows(slice(start, start + _CHUNK))) for start in starts]
    codes, halves = zip(*parts, strict=True)
    return Blocks(np.concatenate(codes), np.concatenate(halves), None)


def _round(matrix: Matrix) -> tuple[CodeArray, HalfArray]:
    rows, columns = matrix.shape
    values = matrix.dequantise().reshape(rows, columns // BLOCK, BLOCK)
    with np.errstate(over="ignore"):
        scales = (np.abs(values).max(-1) / 127).astype(np.float16)
    if not np.isfinite(scales).all():
        raise CheckpointError(
            "a weight is no number, or too large for layout 'fused': convert with another layout"
        )
    # A block too small for the least of the halves becomes zeros.
    steps = np.where(scales == 0, 1, scales).astype(np.float32)
    codes = np.clip(np.rint(values / steps[..., None]), -128, 127) + 128
    return codes.astype(np.uint8).reshape(rows, columns), scales


def _exact_halves(values: FloatArray) -> HalfArray | None:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return halves if np.array_equal(halves.astype(np.float32), values) else None


def _pack(blocks: Blocks) -> PackedMatrix:
    outputs, columns = blocks.codes.shape
    tiles = -(-outputs // TILE)
    count = columns // BLOCK

    def tiled(rows: NDArray[np.generic]) -> NDArray[np.generic]:
        missing = tiles * TILE - outputs
        return np.pad(rows, ((0, missing), (0, 0))) if missing else rows

    def halves(rows: HalfArray) -> NDArray[np.uint16]:
        # [tiles, blocks, 16]
        bits = tiled(rows).view(np.uint16).reshape(tiles, TILE, count)
        return np.ascontiguousarray(bits.swapaxes(1, 2))

    codes = tiled(blocks.codes).view(np.uint8)
    if blocks.minima is None:
        groups = codes.reshape(tiles, TILE, count, 8, 4)
        scales = halves(blocks.scales)
    else:
        split = codes.reshape(tiles, TILE, count, 2, 4, 4)
        groups = split[:, :, :, 0] | split[:, :, :, 1] * np.uint8(16)
        scales = np.stack([halves(blocks.scales), halves(blocks.minima)], axis=2)
    packed = np.ascontiguousarray(groups.transpose(0, 2, 3, 1, 4))  # tile, block, g, c, j
    bits = 8 if blocks.minima is None else 4
    return PackedMatrix(packed.reshape(tiles, count, 64 * bits), scales, bits, outputs)
