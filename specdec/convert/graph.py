"""A small builder of ONNX graphs: nodes in order, initializers by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from specdec.convert.external_data import ExternalData

MICROSOFT = "com.microsoft"
_IR_VERSIONS = {21: 10, 23: 11}  # of the opsets that are used


class Graph:
    """Collects nodes and initializers; ``model()`` is the finished ONNX model."""

    def __init__(self, name: str, data: ExternalData, *, opset: int = 21) -> None:
        self._name = name
        self._data = data
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[ValueInfoProto] = []
        self._defaults: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []

    def input(self, name: str, dtype: Any, shape: list[int | str]) -> str:
        self._inputs.append(_value(name, dtype, shape))
        return name

    def optional_input(self, name: str, default: NDArray[Any]) -> str:
        """An input that whoever runs the graph may leave out."""
        self._defaults.append(_value(name, default.dtype, list(default.shape)))
        return self.initializer(name, default)

    def output(self, name: str, dtype: Any, shape: list[int | str]) -> str:
        self._outputs.append(_value(name, dtype, shape))
        return name

    def initializer(self, name: str, values: NDArray[Any]) -> str:
        if name not in self._initializers:
            self._initializers[name] = self._data.store(name, values)
        return name

    def constant(self, value: float | int | list[int], dtype: Any) -> str:
        """A small constant; equal ones are shared."""
        array = np.array(value, dtype)
        name = f"constant.{array.dtype}.{'x'.join(map(str, array.flatten().tolist()))}"
        return self.initializer(name if array.ndim else name + ".scalar", array)

    def node(
        self,
        operator: str,
        inputs: list[str],
        output: str,
        /,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Adds a node with one output and returns the output's name."""
        self.nodes(operator, inputs, [output], domain=domain, **attributes)
        return output

    def nodes(
        self,
        operator: str,
        inputs: list[str],
        outputs: list[str],
        /,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Adds a node with several outputs; unused ones are empty names."""
        name = next(output for output in outputs if output)
        node = helper.make_node(operator, inputs, outputs, name=name, domain=domain)
        # Not as arguments of make_node, whose own names an attribute may have.
        node.attribute.extend(helper.make_attribute(*each) for each in sorted(attributes.items()))
        self._nodes.append(node)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs + self._defaults,
            self._outputs,
            initializer=list(self._initializers.values()),
        )
        domains = sorted({MICROSOFT} | {node.domain for node in self._nodes} - {""})
        opsets = [helper.make_opsetid("", self._opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in domains]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=_IR_VERSIONS[self._opset],
            producer_name="specdec",
        )


def _value(name: str, dtype: Any, shape: list[int | str]) -> ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
