"""Small quantised graphs, written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_linear(path: Path, *, width: int = 4, size: int = 32, then: str | None = None) -> Path:
    """A graph ``y = x @ w`` with uint16 ``x`` and ``y`` [1, width, size] and int8 weights.

    ``then`` is an operator (of one input) between the product and ``y``.
    """
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
    ]
    last = "product"
    if then is not None:
        nodes.append(helper.make_node(then, [last], ["changed"], "changed"))
        last = "changed"
    nodes.append(helper.make_node("QuantizeLinear", [last, "y_scale", "y_zero"], ["y"], "y.write"))
    shape = [1, width, size]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.UINT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT16, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, path)
    return path
