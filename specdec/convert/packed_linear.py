"""Linears of the domain ``specdec``: operators of the core on packed matrices (``blocks``).

The activations of each row are rounded to 8 bits per block of 32, and a row is computed by itself,
so its bits do not depend on how many rows there are.
"""

from __future__ import annotations

from specdec.convert.activation import Activation
from specdec.convert.blocks import PackedMatrix, pack_rows
from specdec.convert.graph import Graph
from specdec.convert.matrix import Matrix
from specdec.convert.six_bits import MixedMatrix

DOMAIN = "specdec"


def packed_linear(
    graph: Graph, name: str, x: Activation, matrix: Matrix, *, byte_scales: bool = False
) -> str:
    """4- or 8-bit blocks: without ``byte_scales`` Q4_1, Q4_0 and Q8_0 are held exactly."""
    packed = pack_rows([matrix], byte_scales=byte_scales)
    inputs = [x.name, *weights(graph, name, packed)]
    return graph.node(
        "Linear", inputs, name, domain=DOMAIN, bits=packed.bits, outputs=packed.outputs
    )


def packed_embedding(graph: Graph, name: str, matrix: Matrix, *, byte_scales: bool = False) -> str:
    """Looks rows up in a matrix that is packed as a head is: a tied one is in the file once."""
    packed = pack_rows([matrix], byte_scales=byte_scales)
    inputs = ["tokens", *weights(graph, name, packed)]
    return graph.node(
        "Embedding", inputs, name, domain=DOMAIN, bits=packed.bits, outputs=packed.outputs
    )


def weights(graph: Graph, name: str, packed: PackedMatrix | MixedMatrix) -> list[str]:
    """The inputs of an operator that hold ``packed``."""
    codes = graph.initializer(f"{name}.codes", packed.codes)
    return [codes, graph.initializer(f"{name}.scales", packed.scales)]
