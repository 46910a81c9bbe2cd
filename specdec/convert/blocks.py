"""Packs matrices for the core's own operators: tiles of 16 outputs, blocks of 32 inputs.

``codes`` uint8 [tiles, blocks, 256] in 4 bits or [tiles, blocks, 512] in 8, where tile t holds
outputs 16 t to 16 t + 15 and block b inputs 32 b to 32 b + 31. In 8 bits, byte 64 g + 4 c + j is
output 16 t + c, input 32 b + 4 g + j, and ``w = scale * (code - 128)``; in 4 bits its lower half is
that input and its upper half the one 16 further on, and ``w = scale * code + minimum``. ``scales``
are the bits of IEEE halves, uint16 [tiles, blocks, 16], and [tiles, blocks, 2, 16] (scale, minimum)
in 4 bits. Outputs that fill up the last tile are zeros throughout.

What ggml holds as Q8_0, Q4_1 and Q4_0 is held exactly; all else is rounded to Q8_0's blocks. On
request, 4-bit blocks have their scales in bytes (``byte_scales``): [tiles, 2 + blocks, 16].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from specdec.convert.byte_scales import WordArray, in_bytes
from specdec.convert.checkpoint import BLOCK
from specdec.convert.matrix import BlockMatrix, CodeArray, FloatArray, Matrix
from specdec.errors import CheckpointError

TILE = 16  # outputs
CHUNK = 4096  # rows that are rounded at a time, so that float copies of them stay small

HalfArray: TypeAlias = NDArray[np.float16]


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix as the operators read it."""

    codes: CodeArray  # [tiles, blocks, 64 * bits]
    scales: NDArray[np.uint16]  # [tiles, blocks, 16]; in 4 bits [tiles, blocks, 2, 16], or bytes'
    bits: int
    outputs: int


@dataclass(frozen=True)
class Blocks:
    """Rows of whole blocks before they are packed."""

    codes: CodeArray  # [rows, columns], below 16 in 4 bits
    words: WordArray  # [rows, blocks], [rows, blocks, 2] or [rows, 2 + blocks]: scales' bits
    bits: int


def pack_rows(matrices: Sequence[Matrix], *, byte_scales: bool = False) -> PackedMatrix:
    """The outputs of all of ``matrices``, in order."""
    return pack(_encode(matrices, byte_scales))


def pack_gated(gate: Matrix, up: Matrix, *, byte_scales: bool = False) -> PackedMatrix:
    """Two matrices of one shape whose tiles take turns: 16 outputs of ``gate``, 16 of ``up``."""
    first, second = (pack([part]) for part in _encode([gate, up], byte_scales))
    tiles = 2 * len(first.codes)

    def interleave(a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.stack([a, b], axis=1).reshape(tiles, *a.shape[1:])

    return PackedMatrix(
        interleave(first.codes, second.codes).view(np.uint8),
        interleave(first.scales, second.scales).view(np.uint16),
        first.bits,
        first.outputs + second.outputs,
    )


def _encode(matrices: Sequence[Matrix], byte_scales: bool) -> list[Blocks]:
    """Blocks of 4 bits where all of ``matrices`` have them, or else of 8 bits; of one kind."""
    four = [matrix for matrix in matrices if is_exact4(matrix)]
    if len(four) < len(matrices):
        return [eight_bits(matrix) for matrix in matrices]
    found = [in_bytes(matrix) for matrix in four] if byte_scales else []
    short = [Blocks(*blocks, 4) for blocks in found if blocks is not None]
    return short if len(short) == len(four) else [_four_bits(matrix) for matrix in four]


def is_exact4(matrix: Matrix) -> TypeGuard[BlockMatrix]:
    """Whether these are blocks of Q4_0 or Q4_1: 4 bits, and what halves hold."""
    return (
        isinstance(matrix, BlockMatrix)
        and (matrix.bits, matrix.block) == (4, BLOCK)
        and _exact_halves(matrix.scales) is not None
        and _exact_halves(matrix.minima) is not None
    )


def _four_bits(matrix: BlockMatrix) -> Blocks:
    halves = np.stack([matrix.scales, matrix.minima], axis=2).astype(np.float16)
    return Blocks(matrix.codes, halves.view(np.uint16), 4)


def eight_bits(matrix: Matrix) -> Blocks:
    """Q8_0's blocks: those of the matrix, or what is nearest to its values."""
    if isinstance(matrix, BlockMatrix) and (matrix.bits, matrix.block) == (8, BLOCK):
        scales = _exact_halves(matrix.scales)
        if scales is not None and np.array_equal(matrix.minima, -128 * matrix.scales):
            return Blocks(matrix.codes, scales.view(np.uint16), 8)
    starts = range(0, matrix.shape[0], CHUNK)
    parts = [_round(matrix.take_rows(slice(start, start + CHUNK))) for start in starts]
    codes, halves = zip(*parts, strict=True)
    return Blocks(np.concatenate(codes), np.concatenate(halves).view(np.uint16), 8)


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


def pack(parts: Sequence[Blocks]) -> PackedMatrix:
    """The rows of all ``parts``, which are of one kind."""
    codes, words = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "words")
    )
    bits = parts[0].bits
    outputs, columns = codes.shape
    tiles = -(-outputs // TILE)

    def tiled(rows: NDArray[Any]) -> NDArray[Any]:
        # [tiles, 16, ...]
        missing = [(0, tiles * TILE - outputs)] + [(0, 0)] * (rows.ndim - 1)
        return np.pad(rows, missing).reshape(tiles, TILE, *rows.shape[1:])

    count = columns // BLOCK
    if bits == 8:
        groups = tiled(codes).reshape(tiles, TILE, count, 8, 4)
    else:
        split = tiled(codes).reshape(tiles, TILE, count, 2, 4, 4)
        groups = split[:, :, :, 0] | split[:, :, :, 1] * np.uint8(16)
    packed = np.ascontiguousarray(groups.transpose(0, 2, 3, 1, 4))  # tile, block, g, c, j
    scales = np.ascontiguousarray(np.moveaxis(tiled(words), 1, -1))
    return PackedMatrix(packed.reshape(tiles, count, 64 * bits), scales, bits, outputs)
