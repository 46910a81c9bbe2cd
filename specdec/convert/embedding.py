"""Kinds of embedding: a table of one row per token, looked up by the input ``tokens``."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from specdec.convert.checkpoint import BLOCK
from specdec.convert.graph import Graph
from specdec.convert.matrix import Matrix
from specdec.convert.nbits import encode8


class Embedding(Protocol):
    """Adds the rows of ``matrix`` that ``tokens`` names; returns float32 [1, S, hidden]."""

    def __call__(self, graph: Graph, name: str, matrix: Matrix) -> str: ...


def float32_embedding(graph: Graph, name: str, matrix: Matrix) -> str:
    """The dequantised rows as they are."""
    table = graph.initializer(f"{name}.table", matrix.dequantise())
    return graph.node("Gather", [table, "tokens"], name, axis=0)


def block8_embedding(graph: Graph, name: str, matrix: Matrix) -> str:
    """8-bit codes, dequantised after the look-up; the codes are those of ``nbits8``."""
    codes, scales, zero_points = encode8(matrix)
    tables: dict[str, NDArray[Any]] = {
        "codes": codes,
        "scales": scales,
        "zero_points": zero_points,
    }
    found = [
        graph.node(
            "Gather",
            [graph.initializer(f"{name}.table.{part}", table), "tokens"],
            f"{name}.{part}",
            axis=0,
        )
        for part, table in tables.items()
    ]
    return graph.node("DequantizeLinear", found, name, axis=-1, block_size=BLOCK)
