"""Linears on ``MatMulNBits``: 4- or 8-bit codes with a scale per block of inputs.

The kernel rounds activations to 8 bits per row and block (accuracy level 4), so rows do not
depend on each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdec.convert.activation import Activation
from specdec.convert.checkpoint import BLOCK
from specdec.convert.graph import MICROSOFT, Graph
from specdec.convert.matrix import BlockMatrix, CodeArray, FloatArray, Matrix

_INT8_ACTIVATIONS = 4
_CHUNK = 4096  # rows that are encoded at a time, so that float copies of them stay small


def nbits8(graph: Graph, name: str, x: Activation, matrix: Matrix) -> str:
    """8-bit codes with a zero point per block: holds Q4_0 and Q8_0 exactly, Q4_1 nearly."""
    codes, scales, zero_points = encode8(matrix)
    rows, columns = codes.shape
    inputs = [
        x.name,
        graph.initializer(f"{name}.codes", codes.reshape(rows, -1, BLOCK)),
        graph.initializer(f"{name}.scales", scales),
    ]
    if np.any(zero_points != 128):
        inputs.append(graph.initializer(f"{name}.zero_points", zero_points))
    return _matmul(graph, name, inputs, columns, rows, bits=8)


def nbits4(graph: Graph, name: str, x: Activation, matrix: Matrix) -> str:
    """4-bit codes with a scale and a minimum per block, both exact; 8-bit matrices use nbits8.

    The kernel multiplies ``scale * (code - 8)``; what is missing to the block's minimum,
    ``minimum + 8 * scale``, is the same for all inputs of the block and so multiplies their sum.
    """
    if not isinstance(matrix, BlockMatrix) or matrix.bits != 4 or matrix.block != BLOCK:
        return nbits8(graph, name, x, matrix)
    rows, columns = matrix.shape
    blocks = columns // BLOCK
    packed = (matrix.codes[:, 0::2] | matrix.codes[:, 1::2] << 4).reshape(rows, blocks, -1)
    inputs = [
        x.name,
        graph.initializer(f"{name}.codes", packed),
        graph.initializer(f"{name}.scales", matrix.scales),
    ]
    rest = matrix.minima + 8 * matrix.scales
    if not np.any(rest):
        return _matmul(graph, name, inputs, columns, rows, bits=4)
    product = _matmul(graph, f"{name}.symmetric", inputs, columns, rows, bits=4)
    minima = graph.initializer(f"{name}.minima", np.ascontiguousarray(rest.T))
    extra = graph.node("MatMul", [_block_sums(graph, x), minima], f"{name}.extra")
    return graph.node("Add", [product, extra], name)


def encode8(matrix: Matrix) -> tuple[CodeArray, FloatArray, CodeArray]:
    """``w = scale * (code - zero_point)``: codes [n, k], scales and zero points [n, k / 32]."""
    starts = range(0, matrix.shape[0], _CHUNK)
    chunks = [_encode8(matrix.take_rows(slice(start, start + _CHUNK))) for start in starts]
    codes, scales, zero_points = zip(*chunks, strict=True)
    return np.concatenate(codes), np.concatenate(scales), np.concatenate(zero_points)


def _encode8(matrix: Matrix) -> tuple[CodeArray, FloatArray, CodeArray]:
    if not isinstance(matrix, BlockMatrix) or matrix.block != BLOCK:
        return _round8(matrix.dequantise())
    if matrix.bits == 8 and np.array_equal(matrix.minima, -128 * matrix.scales):
        return matrix.codes, matrix.scales, np.full(matrix.scales.shape, 128, np.uint8)
    if matrix.bits == 4:
        return _widen4(matrix)
    return _round8(matrix.dequantise())


def _widen4(matrix: BlockMatrix) -> tuple[CodeArray, FloatArray, CodeArray]:
    """Spreads 16 levels over 256: n steps per level, so that the scale stays exact (d / n).

    The minimum must be a whole number of steps; of n = 1..17 the one is taken that leaves the
    least of it over. A block whose minimum is many times its range is rounded like a dense one.
    """
    scale = np.where(matrix.scales == 0, np.float32(1), matrix.scales)
    minimum = matrix.minima / scale
    best = np.full(scale.shape, np.inf, np.float32)
    steps = np.ones(scale.shape, np.int32)
    offsets = np.zeros(scale.shape, np.int32)
    for n in range(1, 18):
        offset = np.clip(np.rint(minimum * n), -255, 255 - 15 * n)
        error = np.abs(minimum - offset / n)
        better = error < best
        best = np.where(better, error, best)
        steps = np.where(better, n, steps)
        offsets = np.where(better, offset, offsets).astype(np.int32)
    # A positive offset shifts the codes up, a negative one is the zero point.
    shift, zero_points = np.maximum(offsets, 0), np.maximum(-offsets, 0)
    codes = matrix.codes.reshape(*scale.shape, BLOCK) * steps.astype(np.uint8)[..., None]
    codes += shift.astype(np.uint8)[..., None]
    scales = (scale / steps).astype(np.float32)
    constant = matrix.scales == 0  # the block is its minimum throughout
    codes[constant] = 1
    scales[constant] = matrix.minima[constant]
    zero_points[constant] = 0
    zero_points = zero_points.astype(np.uint8)
    far = ~constant & (best > (np.abs(minimum) + 15) / 510)  # rounding anew is closer
    if np.any(far):
        values = matrix.dequantise().reshape(codes.shape)[far]
        rounded, steps8, zeros8 = _round8(values)
        codes[far], scales[far], zero_points[far] = rounded, steps8[:, 0], zeros8[:, 0]
    return codes.reshape(matrix.shape), scales, zero_points


def _round8(values: FloatArray) -> tuple[CodeArray, FloatArray, CodeArray]:
    """Rounds a float matrix to 8 bits between each block's least and greatest value (and 0)."""
    rows, columns = values.shape
    blocks = values.reshape(rows, columns // BLOCK, BLOCK)
    low = np.minimum(blocks.min(-1), 0)
    scales = ((np.maximum(blocks.max(-1), 0) - low) / 255).astype(np.float32)
    scales[scales == 0] = 1
    zero_points = np.rint(-low / scales)
    codes = np.rint(blocks / scales[..., None]) + zero_points[..., None]
    codes = np.clip(codes, 0, 255).astype(np.uint8).reshape(rows, columns)
    return codes, scales, zero_points.astype(np.uint8)


def _block_sums(graph: Graph, x: Activation) -> str:
    """[1, S, size / 32]: the sum of each block of the activation."""

    def make() -> str:
        shape: NDArray[np.int64] = np.array([0, 0, x.size // BLOCK, BLOCK], np.int64)
        split = graph.node(
            "Reshape",
            [x.name, graph.initializer(f"shape.blocks.{x.size}", shape)],
            f"{x.name}.blocks",
        )
        axis = graph.constant([-1], np.int64)
        return graph.node("ReduceSum", [split, axis], f"{x.name}.block_sums", keepdims=0)

    return x.derive("block_sums", make)


def _matmul(
    graph: Graph, output: str, inputs: list[str], columns: int, rows: int, *, bits: int
) -> str:
    return graph.node(
        "MatMulNBits",
        inputs,
        output,
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=_INT8_ACTIVATIONS,
    )
