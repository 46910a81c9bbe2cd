"""Which kind of linear each part of the model gets: the named layouts, and the default ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from specdec.convert.activation import Activation, Linear
from specdec.convert.embedding import Embedding, block8_embedding, float32_embedding
from specdec.convert.graph import Graph
from specdec.convert.int8 import int8_rowwise, int8_split16
from specdec.convert.matrix import Matrix
from specdec.convert.nbits import nbits4, nbits8
from specdec.convert.packed_linear import packed_embedding, packed_linear


def float32(graph: Graph, name: str, x: Activation, matrix: Matrix) -> str:
    """The dequantised weights as they are: the reference for the other layouts."""
    weights = graph.initializer(f"{name}.weights", np.ascontiguousarray(matrix.dequantise().T))
    return graph.node("MatMul", [x.name, weights], name)


@dataclass(frozen=True)
class Layout:
    """The kind of linear of each part of the model, and of the embedding."""

    qkv: Linear
    attention_output: Linear
    gate_up: Linear
    down: Linear
    head: Linear
    embedding: Embedding = block8_embedding
    fused: bool = False  # norms, attention and gating are the core's operators: ``FusedGraph``
    byte_scales: bool = False  # of 4-bit blocks in ``FusedGraph``
    mixed_head: bool = False  # most of a head in 6 bits in ``FusedGraph``


def _uniform(linear: Linear, *, head: Linear) -> Layout:
    return Layout(linear, linear, linear, linear, head)


def _fused(*, byte_scales: bool, mixed_head: bool) -> Layout:
    linear = partial(packed_linear, byte_scales=byte_scales)
    embedding = partial(packed_embedding, byte_scales=byte_scales)
    layout = replace(_uniform(linear, head=linear), embedding=embedding)
    return replace(layout, fused=True, byte_scales=byte_scales, mixed_head=mixed_head)


LAYOUTS: Mapping[str, Layout] = {
    "float32": replace(_uniform(float32, head=float32), embedding=float32_embedding),
    "fused": _fused(byte_scales=True, mixed_head=True),
    "fused-exact": _fused(byte_scales=False, mixed_head=False),
    "nbits8": _uniform(nbits8, head=nbits8),
    "nbits4": _uniform(nbits4, head=nbits8),
    "int8": _uniform(int8_rowwise, head=nbits8),
    "int8-split16": _uniform(int8_split16, head=nbits8),
    "split16-nbits8": Layout(int8_split16, nbits8, int8_split16, nbits8, nbits8),
}

# The one place where the defaults are chosen; docs/layouts.md has the figures behind them.
DEFAULT_LAYOUT = "fused"
DEFAULT_DRAFTER_LAYOUT = "fused"
