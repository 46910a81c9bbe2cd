"""Rounding that makes up for its own errors: GPTQ, and coordinate descent from where it ends.

Both look for codes on a given grid with a small ``trace((w - v)^T H (w - v))``, the squared error
of the linear's outputs, where ``H = E[x x^T]`` [K, K] is the second moment of its inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdec.quantize.grid import FloatArray, Grid, SignedArray

DAMPING = 0.01
_CHUNK = 128  # inputs between two updates of all the weights that are still to come


def gptq(
    weights: FloatArray,
    moment: NDArray[np.float64],
    grid: Grid,
    *,
    damping: float = DAMPING,
    by_activity: bool = True,
) -> SignedArray:
    """Rounds input after input; the weights of those still to come take up the error.

    Frantar et al. 2210.17323, algorithm 1. ``damping`` times the mean of H's diagonal is added to
    the diagonal. ``by_activity`` takes the inputs with the largest second moments first.

    Args:
        weights: float32 [K, N].
        moment: H, [K, K].
        grid: Fixed beforehand.

    Returns:
        int8 [K, N].
    """
    inputs = len(weights)
    activity = np.diagonal(moment)
    order = np.argsort(-activity, kind="stable") if by_activity else np.arange(inputs)
    damped = damp(moment, damping)[np.ix_(order, order)]
    # The Cholesky factor of the inverse: row k holds what input k's error does to those after it.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    steps, offsets = grid.rows(0, inputs, inputs)
    steps = steps[order]
    offsets = np.broadcast_to(np.float32(0) if grid.offsets is None else offsets, weights.shape)[
        order
    ]
    left = weights[order]
    codes = np.empty(weights.shape, np.int8)
    for first in range(0, inputs, _CHUNK):
        end = min(first + _CHUNK, inputs)
        errors = np.empty((end - first, weights.shape[1]), np.float32)
        for k in range(first, end):
            code = np.clip(
                np.rint((left[k] - offsets[k]) / steps[k]), grid.lowest, -grid.lowest - 1
            )
            error = (left[k] - offsets[k] - code * steps[k]) / factor[k, k]
            left[k + 1 : end] -= np.outer(factor[k, k + 1 : end], error)
            errors[k - first] = error
            codes[order[k]] = code
        left[end:] -= factor[first:end, end:].T @ errors
    return codes


def descend(
    weights: FloatArray,
    moment: NDArray[np.float64],
    grid: Grid,
    codes: SignedArray,
    *,
    sweeps: int = 3,
    damping: float = DAMPING,
) -> SignedArray:
    """Sets one input's codes at a time to the best ones given all others; never gets worse.

    Cyclic coordinate descent (Behdin et al. 2309.01885): with ``G = H (w - v)``, the best value of
    input k is ``v[k] + G[k] / H[k, k]``, rounded to the grid.
    """
    inputs = len(weights)
    damped = damp(moment, damping).astype(np.float32)
    diagonal = np.diagonal(damped).copy()
    steps, offsets = grid.rows(0, inputs, inputs)
    offsets = np.broadcast_to(np.float32(0) if grid.offsets is None else offsets, weights.shape)
    values = grid.values(codes)
    result = codes.copy()
    for _ in range(sweeps):
        pull = damped @ (weights - values)
        for first in range(0, inputs, _CHUNK):
            end = min(first + _CHUNK, inputs)
            changes = np.empty((end - first, weights.shape[1]), np.float32)
            for k in range(first, end):
                wanted = values[k] + pull[k] / diagonal[k]
                code = np.clip(
                    np.rint((wanted - offsets[k]) / steps[k]), grid.lowest, -grid.lowest - 1
                )
                change = offsets[k] + code * steps[k] - values[k]
                values[k] += change
                pull[k:end] -= np.outer(damped[k:end, k], change)
                changes[k - first] = change
                result[k] = code
            outside = np.r_[0:first, end:inputs]
            pull[outside] -= damped[outside, first:end] @ changes
    return result


def damp(moment: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """H with ``damping`` times the mean of its diagonal added to the diagonal."""
    mean = float(np.diagonal(moment).mean())
    return moment + np.eye(len(moment)) * max(damping * mean, 1e-12)


def output_error(weights: FloatArray, moment: NDArray[np.float64], values: FloatArray) -> float:
    """``trace((w - v)^T H (w - v)) / trace(w^T H w)``: the relative squared error of outputs."""
    difference = (weights - values).astype(np.float64)
    exact = weights.astype(np.float64)
    size = float(np.vdot(exact, moment @ exact))
    return float(np.vdot(difference, moment @ difference)) / max(size, 1e-300)
