"""Small quantised graphs."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from specdec.qnn.check_graph import write_check_graph


def write_linear(path: Path, *, then: str | None = None) -> Path:
    """The graph of ``specdec doctor``, [1, 4, 32]; with an operator ``then`` after the product."""
    write_check_graph(path, 4, 32)
    if then is not None:
        model = onnx.load(path)
        nodes = model.graph.node
        product = next(node for node in nodes if node.op_type == "MatMul")
        place = list(nodes).index(product) + 1
        nodes[place].input[0] = "changed"
        nodes.insert(place, helper.make_node(then, list(product.output), ["changed"], "changed"))
        onnx.save(model, path)
    return path
