"""Nodes of a linear in a fixed-shape graph, for every kind of weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from specdec.convert.graph import MICROSOFT
from specdec.convert.htp.nodes import QuantisedGraph
from specdec.convert.htp.weights import MinimaLinear, QuantLinear
from specdec.htp_plan import Encoding

# Sites of linears with minima, after the name of the linear's output or input site.
CODES_PRODUCT = ".codes_product"
OFFSETS_PRODUCT = ".offsets_product"
SUMS = ".sums"


def add_linear(
    graph: QuantisedGraph,
    x: str,
    weights: QuantLinear,
    *,
    prefix: str,
    name: str,
    input_site: str,
    encodings: Mapping[str, Encoding],
    output: str | None = None,
) -> str:
    """``x @ weights`` as the tensor ``prefix + name``; ``output`` names its integers.

    ``encodings`` are of the sites ``name``, and with minima of what comes before it.
    """
    full = prefix + name
    if not isinstance(weights, MinimaLinear):
        matrix = weights.weights(graph.graph, full)
        return graph.node("MatMul", [x, matrix], full, encodings[name], output=output)
    sums = _block_sums(graph, x, weights, encodings[input_site + SUMS])
    if encodings[name].type == "float16":
        product = _half_product(graph, x, weights, full + CODES_PRODUCT, encodings[name])
        offsets = graph.constant(f"{full}.offsets", weights.offsets, half=True)
    else:
        matrix = weights.weights(graph.graph, full)
        encoding = encodings[name + CODES_PRODUCT]
        product = graph.node("MatMul", [x, matrix], full + CODES_PRODUCT, encoding)
        offsets = weights.offset_linear().weights(graph.graph, f"{full}.offsets")
    encoding = encodings[name + OFFSETS_PRODUCT]
    correction = graph.node("MatMul", [sums, offsets], full + OFFSETS_PRODUCT, encoding)
    return graph.node("Add", [product, correction], full, encodings[name], output=output)


def _block_sums(graph: QuantisedGraph, x: str, weights: MinimaLinear, encoding: Encoding) -> str:
    """The sums of ``x`` over the blocks, [1, S, blocks]; written once for all that read ``x``."""
    name = f"{x}{SUMS}.{weights.block}"
    if graph.has(name):
        return name
    blocks = [1, -1, weights.shape[0] // weights.block, weights.block]
    split = graph.reshape(x, f"{name}.split", blocks)
    axes = graph.graph.constant([3], np.int64)
    return graph.node("ReduceSum", [split, axes], name, encoding, keepdims=0)


def _half_product(
    graph: QuantisedGraph, x: str, weights: MinimaLinear, name: str, encoding: Encoding
) -> str:
    inputs, outputs = weights.shape
    codes = graph.graph.initializer(f"{name}.codes", weights.packed_codes())
    scales = weights.scales.T.astype(np.float16).reshape(-1)
    return graph.node(
        "MatMulNBits",
        [x, codes, graph.graph.initializer(f"{name}.scales", scales)],
        name,
        encoding,
        domain=MICROSOFT,
        K=inputs,
        N=outputs,
        bits=4,
        block_size=weights.block,
    )
