"""A tensor that linears read, with whatever they derived from it, so that they can share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from specdec.convert.graph import Graph
from specdec.convert.matrix import Matrix


@dataclass(frozen=True)
class Activation:
    """float32 [1, S, size] under ``name`` in the graph.

    ``bound`` is a value that no element's magnitude exceeds, where one is known beforehand.
    """

    name: str
    size: int
    bound: float | None = None
    _derived: dict[str, str] = field(default_factory=dict)

    def derive(self, what: str, make: Callable[[], str]) -> str:
        """The tensor that ``make`` adds to the graph; made once for all linears that read this."""
        if what not in self._derived:
            self._derived[what] = make()
        return self._derived[what]


class Linear(Protocol):
    """Adds ``x @ matrix.T`` to a graph and returns its name, a float32 [1, S, outputs]."""

    def __call__(self, graph: Graph, name: str, x: Activation, matrix: Matrix) -> str: ...
