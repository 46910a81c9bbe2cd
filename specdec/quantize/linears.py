"""Methods of quantisation for one linear: from float weights to a kind that the NPU has."""

from __future__ import annotations

import numpy as np

from specdec.convert.htp_stats import LinearStats
from specdec.convert.htp_weights import (
    LARGEST_BLOCK_SCALE,
    BlockLinear,
    ChannelLinear,
    Kind,
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
)

METHODS = ("rtn", "mse", "gptq")
DEFAULT_METHOD = "gptq"


def quantise_linear(
    weights: FloatArray, kind: Kind, stats: LinearStats | None, method: str
) -> QuantLinear:
    """Codes and scales for ``weights``, float32 [inputs, outputs].

    ``"rtn"`` rounds to nearest, scaled by largest magnitudes. ``"mse"`` looks for the scales whose
    rounding errors cost least, counting each input by its second moment. ``"gptq"`` takes scales
    that fit the weights, and chooses codes that make up for each other's errors (``gptq``, then
    ``descend``). Kinds that keep the weights as they are, or whose codes the checkpoint gives, are
    left to ``Kind.round``.

    Raises InvalidInputError for an unknown method, or where ``stats`` are needed and missing.
    """
    if method not in METHODS:
        raise InvalidInputError(f"no method '{method}': choose one of {', '.join(METHODS)}")
    if method == "rtn" or kind.bits not in (4, 8):
        return kind.round(weights)
    if stats is None:
        raise InvalidInputError(f"method '{method}' needs calibration texts")
    moment = stats.moment
    importance = np.ascontiguousarray(np.diagonal(moment)) if method == "mse" else None
    grid, held = _grid(weights, kind, importance)
    if method == "mse":
        return _linear(grid.round(weights), held, kind)
    exact = moment.astype(np.float64)
    codes = descend(weights, exact, grid, gptq(weights, exact, grid))
    return _linear(codes, held, kind)


def _grid(
    weights: FloatArray, kind: Kind, importance: FloatArray | None
) -> tuple[Grid, tuple[CodeArray | None, FloatArray]]:
    """The grid, and the scales as the linear holds them: of blocks, and of outputs."""
    fitted = fitted_grid(weights, kind.bits, kind.block, importance)
    if kind.block is None:
        return fitted, (None, fitted.steps[0])
    scales = fitted.steps.max(axis=0) / np.float32(LARGEST_BLOCK_SCALE)
    block_scales = _block_scales(weights, scales, kind.block, importance)
    return Grid(block_scales * scales, kind.bits), (block_scales, scales)


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


def _linear(
    codes: SignedArray,
    held: tuple[CodeArray | None, FloatArray],
    kind: Kind,
) -> QuantLinear:
    block_scales, scales = held
    if block_scales is None:
        return ChannelLinear(codes, scales, kind.bits)
    return BlockLinear(codes, block_scales, scales)
