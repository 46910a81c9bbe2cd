"""Nodes between quantised tensors: each operator between DequantizeLinear and QuantizeLinear.

A tensor is known by its name after DequantizeLinear, which is added when something first reads it.
Graph inputs and outputs are the integers themselves. With float16 encodings the same calls write a
plain float16 graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specdec.convert.graph import Graph
from specdec.convert.htp.ranges import encode16, quantise
from specdec.convert.matrix import FloatArray
from specdec.htp_plan import Encoding


class QuantisedGraph:
    """Writes operators with the encodings of their results to ``graph``."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._encodings: dict[str, Encoding] = {}
        self._unread: dict[str, str] = {}  # tensor -> its integers, until something reads it

    def input(self, name: str, shape: Sequence[int], encoding: Encoding) -> str:
        """A graph input; returns the tensor to compute with."""
        self.graph.input(name, np.dtype(encoding.type), list(shape))
        return self._tensor(name, f"{name}.value", encoding)

    def output(self, tensor: str, name: str, shape: Sequence[int]) -> None:
        """Makes ``name`` a graph output: the integers of ``tensor``, to which ``node`` gave it."""
        self.graph.output(name, np.dtype(self._encodings[tensor].type), list(shape))

    def has(self, tensor: str) -> bool:
        """Whether that tensor was written."""
        return tensor in self._encodings

    def read(self, tensor: str) -> str:
        """The real values of ``tensor``; names that this graph did not quantise are left alone."""
        codes = self._unread.pop(tensor, None)
        if codes is None:
            return tensor
        parameters = self._parameters(self._encodings[tensor])
        return self.graph.node("DequantizeLinear", [codes, *parameters], tensor)

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        encoding: Encoding,
        *,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Adds ``operator``; ``output`` names the integers of its result."""
        read = [self.read(tensor) for tensor in inputs]
        if encoding.type == "float16":
            result = self.graph.node(operator, read, output or name, **attributes)
            return self._tensor(result, result, encoding)
        value = self.graph.node(operator, read, f"{name}.real", **attributes)
        return self.quantise(value, name, encoding, output=output)

    def quantise(
        self, tensor: str, name: str, encoding: Encoding, *, output: str | None = None
    ) -> str:
        """``tensor`` rounded to ``encoding``."""
        inputs = [self.read(tensor), *self._parameters(encoding)]
        codes = self.graph.node("QuantizeLinear", inputs, output or f"{name}.codes")
        return self._tensor(codes, name, encoding)

    def convert(
        self, tensor: str, name: str, encoding: Encoding, *, output: str | None = None
    ) -> str:
        """``tensor`` in another encoding; float16 stays, only perhaps under another name."""
        if encoding.type != "float16":
            return self.quantise(tensor, name, encoding, output=output)
        return tensor if output is None else self.same("Identity", [tensor], name, output=output)

    def same(self, operator: str, inputs: Sequence[str], name: str, **options: Any) -> str:
        """Adds an operator that only moves elements: the result is encoded as its first input."""
        return self.node(operator, inputs, name, self._encodings[inputs[0]], **options)

    def reshape(self, tensor: str, name: str, shape: Sequence[int]) -> str:
        """The same elements in another shape."""
        target = self.graph.constant(list(shape), np.int64)
        return self.same("Reshape", [tensor, target], name)

    def slice(self, tensor: str, name: str, start: int, end: int) -> str:
        """Elements ``start`` to ``end - 1`` of the last axis."""
        bounds = [self.graph.constant([number], np.int64) for number in (start, end, -1)]
        return self.same("Slice", [tensor, *bounds], name)

    def norm(
        self, tensor: str, name: str, gain: FloatArray, epsilon: float, encoding: Encoding
    ) -> str:
        """The root-mean-square norm over the last axis."""
        gains = self.constant(f"{name}.gain", gain, half=encoding.type == "float16")
        return self.node(
            "RMSNormalization", [tensor, gains], name, encoding, axis=-1, epsilon=epsilon
        )

    def constant(self, name: str, values: FloatArray, *, half: bool = False) -> str:
        """A constant of 16 bits: quantised, or ``half``."""
        if half:
            return self.graph.initializer(name, values.astype(np.float16))
        encoding = encode16(float(values.min()), float(values.max()))
        codes = self.graph.initializer(f"{name}.codes", quantise(values, encoding))
        return self._tensor(codes, name, encoding)

    def _tensor(self, codes: str, name: str, encoding: Encoding) -> str:
        if encoding.type == "float16":
            name = codes
        else:
            self._unread[name] = codes
        self._encodings[name] = encoding
        return name

    def _parameters(self, encoding: Encoding) -> list[str]:
        return [
            self.graph.constant(encoding.scale, np.float32),
            self.graph.constant(encoding.zero_point, np.dtype(encoding.type)),
        ]
