"""Grids of integers that a weight may be rounded to, and the choice of their steps.

Weights are [K, N]: rows are inputs, columns are outputs, so ``y = x @ w``. A grid gives each block
of ``K / B`` successive inputs of each output a step and, where it has minima, an offset:
``w[k, n] ~ offsets[b, n] + steps[b, n] * code[k, n]`` with ``b = k // block``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
CodeArray: TypeAlias = NDArray[np.uint8]
SignedArray: TypeAlias = NDArray[np.int8]

_TINY = 1e-12  # a block of zeros still needs a step
_SHRINKS = np.linspace(1.0, 0.5, 26, dtype=np.float32)  # of the largest magnitude


@dataclass(frozen=True)
class Grid:
    """What a weight matrix [K, N] may be rounded to."""

    steps: FloatArray  # [B, N], positive; B = 1 is one step per output
    bits: int
    offsets: FloatArray | None = None  # [B, N]; None: zero

    @property
    def lowest(self) -> int:
        """The least code; the greatest is ``-lowest - 1``."""
        return -(1 << (self.bits - 1))

    def columns(self, columns: slice) -> Grid:
        """The grid of some of the outputs."""
        offsets = None if self.offsets is None else self.offsets[:, columns]
        return Grid(self.steps[:, columns], self.bits, offsets)

    def rows(self, inputs: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        """Steps and offsets of ``inputs``, which are all of them in some order, each [K, N]."""
        blocks = inputs // (len(inputs) // len(self.steps))
        steps = self.steps[blocks]
        if self.offsets is None:
            return steps, np.broadcast_to(np.float32(0), steps.shape)
        return steps, self.offsets[blocks]

    def round(self, weights: FloatArray) -> SignedArray:
        """The nearest codes, int8 [K, N]."""
        steps, offsets = self.rows(np.arange(len(weights)))
        codes = np.rint((weights - offsets) / steps).clip(self.lowest, -self.lowest - 1)
        result: SignedArray = codes.astype(np.int8)
        return result

    def values(self, codes: SignedArray) -> FloatArray:
        """What the codes stand for, float32 [K, N]."""
        steps, offsets = self.rows(np.arange(len(codes)))
        return (codes * steps + offsets).astype(np.float32)


def nearest_grid(weights: FloatArray, bits: int, block: int | None) -> Grid:
    """Steps from the largest magnitude of each block (None: of each output): round to nearest."""
    largest = np.abs(_blocks(weights, block)).max(axis=1)
    return Grid(np.maximum(largest / ((1 << (bits - 1)) - 1), _TINY).astype(np.float32), bits)


def fitted_grid(
    weights: FloatArray, bits: int, block: int | None, importance: FloatArray | None = None
) -> Grid:
    """The steps with the least ``sum_k importance[k] * (w - rounded)^2`` in each block.

    ``importance`` is what an error at an input costs: the second moment of that input, [K]; None
    counts all the same. Steps are sought among fractions of ``nearest_grid``'s, itself one of them,
    so that by this measure the result is never worse.
    """
    widest = nearest_grid(weights, bits, block).steps
    best = widest.copy()
    least = np.full(widest.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        grid = Grid(widest * shrink, bits)
        costs = block_costs(weights, grid, importance)
        better = costs < least
        best[better] = grid.steps[better]
        least[better] = costs[better]
    return Grid(best, bits)


def fitted_offset_grid(
    weights: FloatArray, bits: int, block: int, importance: FloatArray | None = None
) -> Grid:
    """The same for grids with offsets: fractions of the span from least to greatest, centred.

    Offsets are rounded to 8 bits with one scale per output, as the graphs hold them. A matrix whose
    blocks are on such a grid already, from end to end, keeps its steps.
    """
    blocks = _blocks(weights, block)
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    widest = np.maximum((high - low) / np.float32((1 << bits) - 1), _TINY)
    steps = widest
    least = np.full(widest.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        narrower = widest * shrink
        costs = block_costs(weights, Grid(narrower, bits, (low + high + narrower) / 2), importance)
        steps = np.where(costs < least, narrower, steps)
        least = np.minimum(costs, least)
    # Codes reach one step further down than up: the middle of the span is half a step below 0.
    return Grid(steps, bits, _rounded_offsets((low + high + steps) / 2))


def _rounded_offsets(offsets: FloatArray) -> FloatArray:
    scales = np.maximum(np.abs(offsets).max(axis=0) / np.float32(127), _TINY)
    result: FloatArray = np.rint(offsets / scales) * scales
    return result.astype(np.float32)


def block_costs(weights: FloatArray, grid: Grid, importance: FloatArray | None) -> FloatArray:
    """``sum_k importance[k] * (w - rounded)^2`` of each block, [B, N]."""
    blocks = weights.reshape(len(grid.steps), -1, weights.shape[1])
    if grid.offsets is not None:
        blocks = blocks - grid.offsets[:, None]
    steps = grid.steps[:, None]
    error = np.clip(np.rint(blocks / steps), grid.lowest, -grid.lowest - 1) * steps - blocks
    error *= error
    if importance is not None:
        error *= importance.reshape(len(blocks), -1, 1)
    costs: FloatArray = error.sum(axis=1)
    return costs


def _blocks(weights: FloatArray, block: int | None) -> FloatArray:
    """[B, block, N]."""
    return weights.reshape(-1, block or len(weights), weights.shape[1])
