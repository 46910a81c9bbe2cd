"""Scales and minima of 4-bit blocks as one byte each, in steps that a row has for all its blocks.

A weight becomes ``unit * (16 * a * (code - 8) + ratio * b)``: a byte a of 0 to 255 and b of -127 to
127 for each block, the float unit and the whole number ratio for each row. The offset at code 8 is
held and not the minimum: it is small, and so are its steps. It is moved so that the block's mean
stays where it was. Ratios are so small that ``ratio * b`` fits 16 bits: what an operator adds up
for a block is then one product of 16-bit integers.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import BLOCK
from specdec.convert.matrix import BlockMatrix, CodeArray, FloatArray

WordArray: TypeAlias = NDArray[np.uint16]

_MIDDLE = 8  # the code whose weight is the offset
_LARGEST_RATIO = 258  # times 127 it fits 16 bits
_LOSS = 0.01  # of a matrix's root mean square: what more is lost is worth more than bytes save


def in_bytes(matrix: BlockMatrix) -> tuple[CodeArray, WordArray] | None:
    """The nearest blocks with scales in bytes to those of a matrix of 4 bits.

    Returns codes [rows, columns] and, uint16 [rows, 2 + columns / 32], the upper half of a row's
    unit, its ratio, and then a word ``256 * b + a`` for each block; None for a matrix that would
    lose too much.
    """
    if not (np.isfinite(matrix.scales).all() and np.isfinite(matrix.minima).all()):
        return None
    rows, blocks = matrix.scales.shape
    codes = matrix.codes.reshape(rows, blocks, BLOCK)
    # Where a scale is negative, codes count from the other end.
    negative = matrix.scales < 0
    codes = np.where(negative[..., None], 15 - codes, codes)
    minima = np.where(negative, matrix.minima + 15 * matrix.scales, matrix.minima)
    scales = np.abs(matrix.scales)

    mean = codes.mean(-1, dtype=np.float32)
    offsets = minima + _MIDDLE * scales
    # What moves offsets below is half a step of the scale for each code that the mean is off 8.
    largest = np.abs(offsets).max(1) + scales.max(1) / 64
    unit = _upper_half(np.maximum(scales.max(1) / (16 * 255), largest / (_LARGEST_RATIO * 127)))
    a = _steps(scales, 16 * unit)
    offsets += (scales - a * (16 * unit)[:, None]) * (mean - _MIDDLE)
    step = np.abs(offsets).max(1) / 127
    ratio = np.ceil(np.divide(step, unit, out=np.zeros_like(step), where=unit != 0))
    ratio = np.minimum(ratio, _LARGEST_RATIO)
    b = np.clip(_steps(offsets, ratio * unit), -127, 127)

    # Of a block: errors of the scale weigh as far as codes are from their mean.
    lost_scale, lost_offset = (
        scales - a * (16 * unit)[:, None],
        offsets - b * (ratio * unit)[:, None],
    )
    spread = codes.var(-1, dtype=np.float32)
    centre = scales * mean + minima
    lost = np.square(lost_scale) * spread + np.square(lost_offset)
    energy = np.square(scales) * spread + np.square(centre)
    if not lost.sum(dtype=np.float64) <= _LOSS**2 * energy.sum(dtype=np.float64):
        return None
    words = a.astype(np.uint16) | (b.astype(np.int16).view(np.uint16) << 8)
    halves = unit.view(np.uint32) >> 16
    found = np.column_stack([halves.astype(np.uint16), ratio.astype(np.uint16), words])
    return codes.astype(np.uint8).reshape(rows, -1), found


def _upper_half(values: FloatArray) -> FloatArray:
    """The least numbers not below ``values``, none negative, whose lower half is zeros."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0xFFFF) >> 16 << 16).astype(np.uint32).view(np.float32)


def _steps(values: FloatArray, step: FloatArray) -> FloatArray:
    """Whole steps of each row, as floats."""
    steps = np.divide(values, step[:, None], out=np.zeros_like(values), where=step[:, None] != 0)
    rounded: FloatArray = np.rint(steps)
    return rounded
