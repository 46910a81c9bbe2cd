"""A small quantised graph, to see whether an NPU computes what the CPU does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

ROWS, SIZE = 8, 256
_OPSET = 23  # as models have


def write_check_graph(path: Path, rows: int = ROWS, size: int = SIZE) -> Path:
    """``y = x @ w``: uint16 ``x`` and ``y`` [1, rows, size], int8 weights with a scale a column."""
    generator = np.random.default_rng(7)
    constants = {
        "x_scale": np.float32(1e-3),
        "x_zero": np.uint16(30_000),
        "w": generator.integers(-127, 128, (size, size)).astype(np.int8),
        "w_scale": np.full(size, 0.01, np.float32),
        "w_zero": np.zeros(size, np.int8),
        "y_scale": np.float32(0.01),
        "y_zero": np.uint16(30_000),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_float"], "x.read"),
        helper.make_node(
            "DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], "w.read", axis=1
        ),
        helper.make_node("MatMul", ["x_float", "w_float"], ["product"], "product"),
        helper.make_node("QuantizeLinear", ["product", "y_scale", "y_zero"], ["y"], "y.write"),
    ]
    shape = [1, rows, size]
    graph = helper.make_graph(
        nodes,
        "check",
        [helper.make_tensor_value_info("x", TensorProto.UINT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT16, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", _OPSET)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=11), path)
    return path


def check_input(
    rows: int = ROWS, size: int = SIZE
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """An ``x`` whose products stay within what ``y`` holds."""
    generator = np.random.default_rng(3)
    return generator.integers(29_000, 31_001, (1, rows, size)).astype(np.uint16)
