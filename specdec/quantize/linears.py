"""Methods of quantisation for one linear: from float weights to a kind that the NPU has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from specdec.convert.htp.stats import LinearStats
from specdec.convert.htp.weights import (
    LARGEST_BLOCK_SCALE,
    BlockLinear,
    ChannelLinear,
    Kind,
    MinimaLinear,
    QuantLinear,
)
from specdec.errors import InvalidInputError
from specdec.quantize.gptq import descend, gptq
from specdec.quantize.grid import (
    CodeArray,
    FloatArray,
    Grid,
    SignedArray,
    block_costs,
    fitted_grid,
    fitted_offset_grid,
)

METHODS = ("rtn", "mse", "gptq")
DEFAULT_METHOD = "gptq"

_SAME = 1e-5  # of the largest weight: what single precision may be off


def quantise_linear(
    weights: FloatArray, kind: Kind, stats: LinearStats | None, method: str
) -> QuantLinear:
    """Codes and scales for ``weights``, float32 [inputs, outputs].

    ``"rtn"`` rounds to nearest, scaled by largest magnitudes. ``"mse"`` looks for the scales whose
    rounding errors cost least, counting each input by its second moment. ``"gptq"`` takes scales
    that fit the weights, and chooses codes that make up for each other's errors (``gptq``, then
    ``descend``). Weights that the kind holds as they are, are left so by every method.

    Raises InvalidInputError for an unknown method, or where ``stats`` are needed and missing.
    """
    if method not in METHODS:
        raise InvalidInputError(f"no method '{method}': choose one of {', '.join(METHODS)}")
    if method == "rtn" or kind.bits not in (4, 8) or is_held_as_it_is(weights, kind):
        return kind.round(weights)
    if stats is None:
        raise InvalidInputError(f"method '{method}' needs calibration texts")
    moment = stats.moment
    importance = np.ascontiguousarray(np.diagonal(moment)) if method == "mse" else None
    grid, hold = _grid(weights, kind, importance)
    if method == "mse":
        return hold(grid.round(weights))
    exact = moment.astype(np.float64)
    return hold(descend(weights, exact, grid, gptq(weights, exact, grid)))


def is_held_as_it_is(weights: FloatArray, kind: Kind) -> bool:
    """Whether the checkpoint's weights lie on a grid of the kind already, as those of Q4_1 may."""
    if not kind.minima:
        return False
    linear = kind.round(weights)
    largest = float(np.abs(weights).max())
    return float(np.abs(linear.dequantise() - weights).max()) <= _SAME * largest


def _grid(
    weights: FloatArray, kind: Kind, importance: FloatArray | None
) -> tuple[Grid, Callable[[SignedArray], QuantLinear]]:
    """The grid, and what makes a linear of codes on it."""
    if kind.minima and kind.block is not None:
        grid = fitted_offset_grid(weights, kind.bits, kind.block, importance)
        offsets = np.zeros_like(grid.steps) if grid.offsets is None else grid.offsets
        return grid, lambda codes: MinimaLinear(codes, grid.steps, offsets)
    fitted = fitted_grid(weights, kind.bits, kind.block, importance)
    if kind.block is None:
        return fitted, lambda codes: ChannelLinear(codes, fitted.steps[0], kind.bits)
    scales = fitted.steps.max(axis=0) / np.float32(LARGEST_BLOCK_SCALE)
    numbers = _block_scales(weights, scales, kind.block, importance)
    grid = Grid(numbers * scales, kind.bits)
    return grid, lambda codes: BlockLinear(codes, numbers, scales)


def _block_scales(
    weights: FloatArray, scales: FloatArray, block: int, importance: FloatArray | None
) -> CodeArray:
    """The best of the whole numbers that a block's scale may be, uint8 [B, N]."""
    shape = (len(weights) // block, weights.shape[1])
    best = np.ones(shape, np.uint8)
    least = np.full(shape, np.inf, np.float32)
    for number in range(1, LARGEST_BLOCK_SCALE + 1):
        steps = np.broadcast_to(scales * np.float32(number), shape)
        costs = block_costs(weights, Grid(steps, 4), importance)
        better = costs < least
        best[better] = number
        least[better] = costs[better]
    return best
