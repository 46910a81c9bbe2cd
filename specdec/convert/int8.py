"""Linears on 8-bit integer products with one weight scale per output.

Activations are rounded row by row, so that rows do not depend on each other: either to 8 bits
against the row's own largest value, or to 16 bits as two bytes that are stacked as further rows of
the same product, which reads the weights once. Bytes are unsigned with zero point 128: the runtime
has its fast kernels for unsigned activations and signed weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from specdec.convert.activation import Activation
from specdec.convert.graph import MICROSOFT, Graph
from specdec.convert.matrix import FloatArray, Matrix

_ZERO_POINT = 128
_LARGEST16 = 32639  # 256 * (high - 128) + (low - 128) of two bytes is at most this
_HALVES: FloatArray = np.array([1, 256], np.float32).reshape(2, 1, 1)  # high byte, low byte
_TINY = 1e-20  # keeps a row of zeros from being divided by zero


def int8_rowwise(graph: Graph, name: str, x: Activation, matrix: Matrix) -> str:
    """8-bit activations, scaled by each row's largest magnitude."""
    scale = x.derive("row_scale8", lambda: _row_scale(graph, x, 127))
    codes = x.derive("codes8", lambda: _codes8(graph, x, scale))
    product = _product(graph, f"{name}.product", codes, matrix, scale=1.0)
    return graph.node("Mul", [product, scale], name)


def int8_split16(graph: Graph, name: str, x: Activation, matrix: Matrix) -> str:
    """16-bit activations as two bytes; scaled by a bound known beforehand, or else row by row."""
    if x.bound is not None:
        step = x.bound / _LARGEST16
        factors = graph.initializer(f"{x.name}.factors", _HALVES / np.float32(step * 256))
        codes = x.derive("codes16", lambda: _codes16(graph, x, factors))
        return _sum_halves(
            graph, name, _product(graph, f"{name}.product", codes, matrix, step), matrix
        )
    scale = x.derive("row_scale16", lambda: _row_scale(graph, x, _LARGEST16))
    codes = x.derive("codes16", lambda: _codes16(graph, x, _row_factors(graph, x, scale)))
    product = _product(graph, f"{name}.product", codes, matrix, scale=1.0)
    return graph.node("Mul", [_sum_halves(graph, f"{name}.steps", product, matrix), scale], name)


def _sum_halves(graph: Graph, name: str, product: str, matrix: Matrix) -> str:
    """256 * high + low, [2, S, n] to [1, S, n]; a product because a sum over an axis is slower."""
    rows = graph.initializer("shape.halves", np.array([2, -1], np.int64))
    back = graph.initializer(
        f"shape.{matrix.shape[0]}", np.array([1, -1, matrix.shape[0]], np.int64)
    )
    flat = graph.node("Reshape", [product, rows], f"{name}.halves")
    weights = graph.initializer("halves", np.array([[256, 1]], np.float32))
    summed = graph.node("MatMul", [weights, flat], f"{name}.flat")
    return graph.node("Reshape", [summed, back], name)


def encode_rows(matrix: Matrix) -> tuple[NDArray[np.int8], FloatArray]:
    """``w[n, k] = scale[n] * code[k, n]``: codes [inputs, outputs], scales [outputs]."""
    values = matrix.dequantise()
    scales = np.abs(values).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1
    codes = np.rint(values / scales[:, None]).astype(np.int8)
    return np.ascontiguousarray(codes.T), scales.astype(np.float32)


def _product(graph: Graph, name: str, codes: str, matrix: Matrix, scale: float) -> str:
    weights, scales = encode_rows(matrix)
    return graph.node(
        "MatMulIntegerToFloat",
        [
            codes,
            graph.initializer(f"{name}.codes", weights),
            graph.constant(scale, np.float32),
            graph.initializer(f"{name}.scales", scales),
            graph.constant(_ZERO_POINT, np.uint8),
        ],
        name,
        domain=MICROSOFT,
    )


def _row_scale(graph: Graph, x: Activation, largest: int) -> str:
    """[1, S, 1]: the size of one step when a row's largest magnitude becomes ``largest``."""
    name = f"{x.name}.row_scale.{largest}"
    magnitude = graph.node("Abs", [x.name], f"{name}.magnitude")
    top = graph.node("ReduceMax", [magnitude, graph.constant([-1], np.int64)], f"{name}.top")
    kept = graph.node("Max", [top, graph.constant(_TINY, np.float32)], f"{name}.top.positive")
    step = graph.constant(1 / largest, np.float32)
    return graph.node("Mul", [kept, step], name)


def _codes8(graph: Graph, x: Activation, scale: str) -> str:
    """uint8 [1, S, size]."""
    shifted = graph.node("Div", [x.name, scale], f"{x.name}.steps")
    one = graph.constant(1.0, np.float32)
    zero_point = graph.constant(_ZERO_POINT, np.uint8)
    return graph.node("QuantizeLinear", [shifted, one, zero_point], f"{x.name}.codes8")


def _row_factors(graph: Graph, x: Activation, scale: str) -> str:
    """[2, S, 1]: what a value is multiplied by to count steps of the high byte, and of the low."""
    halves = graph.initializer("row_halves", _HALVES / 256)
    return graph.node("Div", [halves, scale], f"{x.name}.factors")


def _codes16(graph: Graph, x: Activation, factors: str) -> str:
    """uint8 [2, S, size]: high bytes, then low bytes, of the value in steps plus an offset.

    The two factors are a power of two apart, so both rows hold the same rounded number: the first
    drops its low byte when it becomes an integer, the second its high byte when it becomes a byte.
    """
    offset = 256 * _ZERO_POINT + _ZERO_POINT + 0.5
    offsets = graph.initializer("offsets16", (offset * _HALVES / 256).astype(np.float32))
    steps = graph.node("Mul", [x.name, factors], f"{x.name}.steps16")
    shifted = graph.node("Add", [steps, offsets], f"{x.name}.shifted16")
    whole = graph.node("Cast", [shifted], f"{x.name}.whole16", to=TensorProto.INT32)
    return graph.node("Cast", [whole], f"{x.name}.codes16", to=TensorProto.UINT8)
