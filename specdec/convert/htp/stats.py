"""What a method of quantisation is given about a linear, and how it is gathered."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from specdec.convert.htp.weights import Kind, QuantLinear
from specdec.convert.matrix import FloatArray


@dataclass(frozen=True)
class LinearStats:
    """Second moments of a linear's inputs over the calibration texts, without position 0."""

    moment: FloatArray
    """``E[x x^T]``, float32 [inputs, inputs]."""
    rows: int
    """Inputs that were averaged."""


class Quantiser(Protocol):
    """A method of quantisation."""

    def __call__(
        self, name: str, weights: FloatArray, kind: Kind, stats: LinearStats | None
    ) -> QuantLinear:
        """Codes and scales of ``kind`` for the linear ``name``, float32 [inputs, outputs].

        ``stats`` is None where they were not asked for.
        """
        ...


def round_linear(
    name: str, weights: FloatArray, kind: Kind, stats: LinearStats | None
) -> QuantLinear:
    """A ``Quantiser``: round to nearest."""
    return kind.round(weights)


class StatsGatherer:
    """Sums second moments of the sites that linears read. ``observe`` fits FloatForward."""

    def __init__(self, sites: Collection[str]) -> None:
        """``sites`` are names without a layer's prefix."""
        self._sites = frozenset(sites)
        self._sums: dict[str, FloatArray] = {}
        self._rows: dict[str, int] = {}

    def observe(self, site: str, values: FloatArray) -> None:
        if site.rpartition(".")[2] not in self._sites:
            return
        product = values.T @ values
        if site in self._sums:
            self._sums[site] += product
        else:
            self._sums[site] = product
        self._rows[site] = self._rows.get(site, 0) + len(values)

    def stats(self, site: str) -> LinearStats:
        """What was gathered at ``site``."""
        rows = self._rows[site]
        return LinearStats(self._sums[site] / np.float32(rows), rows)

    def clear(self) -> None:
        """Forgets everything: a layer is done."""
        self._sums.clear()
        self._rows.clear()
