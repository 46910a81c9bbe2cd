"""Sessions of small graphs of the core's operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from specdec import _core

INSTRUCTION_SETS = ("avx512", "avx2", "neon")  # beside "plain"

Array = NDArray[np.generic]


def node_of(op: str, inputs: Sequence[str], outputs: Sequence[str], /, **values: Any) -> NodeProto:
    node = helper.make_node(
        op, inputs, outputs, domain="specdec", name=f"the_node.{next(filter(None, outputs))}"
    )
    # Not as arguments of make_node, whose own names an attribute may have.
    node.attribute.extend(helper.make_attribute(*pair) for pair in values.items())
    return node


def session_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str] | None],
    outputs: Sequence[str],
    constants: Mapping[str, Array],
    types: Mapping[str, int],
    threads: int,
) -> ort.InferenceSession:
    """``inputs`` by name, with their shapes; what ``types`` does not name is float32."""
    graph = helper.make_graph(
        nodes,
        "one",
        [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None)
            for name in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("specdec", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(_core.__file__)
    return ort.InferenceSession(model.SerializeToString(), options)
