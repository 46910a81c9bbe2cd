"""Writes a part of a model as fixed-shape ONNX graphs for the Hexagon NPU, one for each width.

Inputs and outputs are as ``specdec.htp_plan`` says. The widths' graphs share one data file: weights
are given once and written once. Products of 16-bit queries and probabilities by 8-bit keys and
values are what the NPU has kernels for; rotary halves are sliced and joined; groups of queries that
share a key head are rows of one product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from specdec.convert.checkpoint import ModelConfig
from specdec.convert.float_forward import LINEAR_INPUTS
from specdec.convert.htp.linears import add_linear
from specdec.convert.htp.nodes import QuantisedGraph
from specdec.convert.htp.ranges import HALF
from specdec.convert.htp.weights import QuantLinear
from specdec.convert.matrix import FloatArray
from specdec.htp_plan import Encoding

HTP_GRAPH_VERSION = 1  # raise it with every change of what is written
HTP_OPSET = 23  # the first with RMSNormalization


@dataclass(frozen=True)
class LayerTensors:
    """What one layer's graph is written from."""

    linears: Mapping[str, QuantLinear]
    """By role; the query's divided by the square root of the head's size."""
    norms: Mapping[str, FloatArray]
    encodings: Mapping[str, Encoding]
    """Of the layer's sites, by their names without the layer's prefix; ``input`` is its x."""
    constants: Mapping[str, FloatArray]
    """``key_centre`` and ``value_scale`` of CacheScales; none for float16."""


class _HalfEncodings(dict[str, Encoding]):
    def __missing__(self, site: str) -> Encoding:
        """A dict, whose ``[]`` calls this where nothing is stored: nothing ever is."""
        return HALF


HALF_ENCODINGS: Mapping[str, Encoding] = _HalfEncodings()
"""float16 for whatever site is asked for."""


class LayersWriter:
    """Consecutive layers in one width."""

    def __init__(
        self,
        graph: QuantisedGraph,
        config: ModelConfig,
        width: int,
        past: int,
        encodings: Mapping[str, Encoding],
    ) -> None:
        """Declares the inputs; ``encodings`` are the first layer's."""
        self._graph = graph
        self._config = config
        self._width = width
        self._past = past
        half = config.head_dim // 2
        self._x = graph.input("x", [1, width, config.hidden], encodings["input"])
        rotary = encodings["rotary"]
        self._cosine = graph.input("cos", [1, 1, width, half], rotary)
        self._sine = graph.input("sin", [1, 1, width, half], rotary)
        mask = graph.input("mask", [1, 1, width, past + width], encodings["mask"])
        group = config.heads // config.kv_heads
        if group > 1:  # a row for every query head that shares a key head
            mask = graph.same("Concat", [mask] * group, "mask.grouped", axis=2)
        self._mask = mask

    def layer(self, layer: int, tensors: LayerTensors, *, last: bool) -> None:
        """Adds a layer; the ``last`` of a part gives its output ``hidden``."""
        prefix = f"layers.{layer}."
        middle = self._attention(layer, prefix, tensors)
        output = "hidden" if last else None
        self._x = self._feed_forward(prefix, middle, tensors, output)
        if last:
            self._graph.output(self._x, "hidden", [1, self._width, self._config.hidden])

    def _attention(self, layer: int, prefix: str, tensors: LayerTensors) -> str:
        graph, config, width = self._graph, self._config, self._width
        encodings = tensors.encodings
        group = config.heads // config.kv_heads
        x = self._norm("attention_norm", prefix, self._x, tensors)
        query, key, value = (
            self._linear(role, prefix, x, tensors) for role in ("query", "key", "value")
        )
        query = self._heads(query, prefix + "query", config.heads)
        key = self._heads(key, prefix + "key", config.kv_heads)
        value = self._heads(value, prefix + "value", config.kv_heads)
        query = self._rotate("query", prefix, query, encodings)
        key = self._rotate("key", prefix, key, encodings)
        if "key_centre" in tensors.constants:
            centre = graph.constant(prefix + "key_centre", tensors.constants["key_centre"])
            name = prefix + "key_centred"
            key = graph.node("Sub", [key, centre], name, encodings["key_centred"])
        keys, values = self._extend_cache(layer, prefix, key, value, encodings)
        rows = [1, config.kv_heads, group * width, config.head_dim]
        query = graph.reshape(query, prefix + "query_grouped", rows)
        scores = graph.node("MatMul", [query, keys], prefix + "scores", encodings["scores"])
        masked = graph.node(
            "Add", [scores, self._mask], prefix + "masked_scores", encodings["masked_scores"]
        )
        weights = graph.node("Softmax", [masked], prefix + "weights", encodings["weights"], axis=-1)
        mixed = graph.node("MatMul", [weights, values], prefix + "mixed", encodings["mixed"])
        if "value_scale" in tensors.constants:
            scale = graph.constant(prefix + "value_scale", tensors.constants["value_scale"])
            name = prefix + "attention"
            mixed = graph.node("Mul", [mixed, scale], name, encodings["attention"])
        heads = [1, config.heads, width, config.head_dim]
        mixed = graph.reshape(mixed, prefix + "attention_heads", heads)
        mixed = graph.same("Transpose", [mixed], prefix + "attention_rows", perm=[0, 2, 1, 3])
        joined = [1, width, config.heads * config.head_dim]
        mixed = graph.reshape(mixed, prefix + "attention_joined", joined)
        update = self._linear("attention_output", prefix, mixed, tensors)
        return graph.node("Add", [self._x, update], prefix + "middle", encodings["middle"])

    def _feed_forward(
        self, prefix: str, middle: str, tensors: LayerTensors, output: str | None
    ) -> str:
        graph, encodings = self._graph, tensors.encodings
        x = self._norm("ffn_norm", prefix, middle, tensors)
        gate = self._linear("gate", prefix, x, tensors)
        up = self._linear("up", prefix, x, tensors)
        sigmoid = graph.node("Sigmoid", [gate], prefix + "sigmoid", encodings["sigmoid"])
        silu = graph.node("Mul", [gate, sigmoid], prefix + "silu", encodings["silu"])
        gated = graph.node("Mul", [silu, up], prefix + "gated", encodings["gated"])
        down = self._linear("down", prefix, gated, tensors)
        return graph.node(
            "Add", [middle, down], prefix + "residual", encodings["residual"], output=output
        )

    def _linear(self, role: str, prefix: str, x: str, tensors: LayerTensors) -> str:
        return add_linear(
            self._graph,
            x,
            tensors.linears[role],
            prefix=prefix,
            name=role,
            input_site=LINEAR_INPUTS[role],
            encodings=tensors.encodings,
        )

    def _norm(self, name: str, prefix: str, x: str, tensors: LayerTensors) -> str:
        gain, epsilon = tensors.norms[name], self._config.norm_eps
        return self._graph.norm(x, prefix + name, gain, epsilon, tensors.encodings[name])

    def _heads(self, tensor: str, name: str, heads: int) -> str:
        """[1, S, heads * head_dim] to [1, heads, S, head_dim]."""
        shape = [1, self._width, heads, self._config.head_dim]
        split = self._graph.reshape(tensor, f"{name}.split", shape)
        return self._graph.same("Transpose", [split], f"{name}.heads", perm=[0, 2, 1, 3])

    def _rotate(self, role: str, prefix: str, x: str, encodings: Mapping[str, Encoding]) -> str:
        """Turns each pair of values half a head apart by its position's angle."""
        graph, half = self._graph, self._config.head_dim // 2
        product, rotated = encodings[f"{role}_product"], encodings[f"{role}_rotated"]
        name = prefix + role

        def times(half_name: str, table: str) -> str:
            part = first if half_name == "first" else second
            angle = self._cosine if table == "cosine" else self._sine
            return graph.node("Mul", [part, angle], f"{name}.{half_name}.{table}", product)

        first = graph.slice(x, f"{name}.first", 0, half)
        second = graph.slice(x, f"{name}.second", half, 2 * half)
        left = graph.node(
            "Sub",
            [times("first", "cosine"), times("second", "sine")],
            f"{name}.first.rotated",
            rotated,
        )
        right = graph.node(
            "Add",
            [times("second", "cosine"), times("first", "sine")],
            f"{name}.second.rotated",
            rotated,
        )
        return graph.same("Concat", [left, right], f"{name}_rotated", axis=-1)

    def _extend_cache(
        self, layer: int, prefix: str, key: str, value: str, encodings: Mapping[str, Encoding]
    ) -> tuple[str, str]:
        """Gives out new columns; returns all keys [1, kv, D, P + S], values [1, kv, P + S, D]."""
        graph, config = self._graph, self._config
        size, past, width = config.head_dim, self._past, self._width
        shape = [1, config.kv_heads, size, past]
        old = graph.input(f"past_key.{layer}", shape, encodings["key_cache"])
        output = f"new_key.{layer}"
        new = graph.convert(key, f"{prefix}key_cache", encodings["key_cache"])
        new = graph.same("Transpose", [new], f"{prefix}key_t", output=output, perm=[0, 1, 3, 2])
        graph.output(new, output, [*shape[:3], width])
        keys = graph.same("Concat", [old, new], f"{prefix}keys", axis=3)
        shape = [1, config.kv_heads, past, size]
        old = graph.input(f"past_value.{layer}", shape, encodings["value_cache"])
        output = f"new_value.{layer}"
        new = graph.convert(value, f"{prefix}value_cache", encodings["value_cache"], output=output)
        graph.output(new, output, [1, config.kv_heads, width, size])
        return keys, graph.same("Concat", [old, new], f"{prefix}values", axis=2)


def write_head(
    graph: QuantisedGraph,
    config: ModelConfig,
    width: int,
    gain: FloatArray,
    weights: QuantLinear,
    encodings: Mapping[str, Encoding],
    *,
    best: bool,
) -> None:
    """The final norm and the head; the output is ``best``, or else ``logits``."""
    x = graph.input("x", [1, width, config.hidden], encodings["input"])
    x = graph.norm(x, "final_norm", gain, config.norm_eps, encodings["final_norm"])
    output = None if best else "logits"
    logits = add_linear(
        graph,
        x,
        weights,
        prefix="head.",
        name="logits",
        input_site="final_norm",
        encodings=encodings,
        output=output,
    )
    if not best:
        graph.output(logits, "logits", [1, width, weights.shape[1]])
        return
    index = graph.graph.node("ArgMax", [graph.read(logits)], "best.index", axis=-1, keepdims=0)
    graph.graph.node("Cast", [index], "best", to=TensorProto.INT32)
    graph.graph.output("best", np.int32, [1, width])
