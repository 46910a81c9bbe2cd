"""Rounding that makes up for its own errors: GPTQ, and coordinate descent from where it ends.

Both look for codes on a given grid with a small ``trace((w - v)^T H (w - v))``, the squared error
of the linear's outputs, where ``H = E[x x^T]`` [K, K] is the second moment of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from specdec.quantize.grid import FloatArray, Grid, SignedArray

DAMPING = 0.01
_CHUNK = 128  # inputs between two updates of all the weights that are still to come
_OUTPUTS = 2048  # that are worked on at a time


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
    activity = np.diagonal(moment)
    order = np.argsort(-activity, kind="stable") if by_activity else np.arange(len(weights))
    damped = damp(moment, damping)[np.ix_(order, order)]
    # The Cholesky factor of the inverse: row k holds what input k's error does to those after it.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    codes = np.empty(weights.shape, np.int8)
    for columns in _columns(weights):
        part = grid.columns(columns)
        codes[order, columns] = _compensate(weights[order, columns], factor, part, order)
    return codes


def _compensate(
    left: FloatArray, factor: FloatArray, grid: Grid, order: NDArray[np.intp]
) -> SignedArray:
    """Codes in the order of ``left``, whose row i is input ``order[i]``; changes ``left``."""
    steps, offsets = grid.rows(order)
    codes = np.empty(left.shape, np.int8)
    for first in range(0, len(left), _CHUNK):
        end = min(first + _CHUNK, len(left))
        errors = np.empty((end - first, left.shape[1]), np.float32)
        for k in range(first, end):
            wanted = left[k] - offsets[k]
            code = np.clip(np.rint(wanted / steps[k]), grid.lowest, -grid.lowest - 1)
            error = (wanted - code * steps[k]) / factor[k, k]
            left[k + 1 : end] -= np.outer(factor[k, k + 1 : end], error)
            errors[k - first] = error
            codes[k] = code
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
    damped = damp(moment, damping).astype(np.float32)
    result = codes.copy()
    for columns in _columns(weights):
        for _ in range(sweeps):
            _sweep(weights[:, columns], damped, grid.columns(columns), result[:, columns])
    return result


def _sweep(weights: FloatArray, damped: FloatArray, grid: Grid, codes: SignedArray) -> None:
    """One sweep of ``descend``; changes ``codes``."""
    inputs = len(weights)
    steps, offsets = grid.rows(np.arange(inputs))
    values = grid.values(codes)
    pull = damped @ (weights - values)
    for first in range(0, inputs, _CHUNK):
        end = min(first + _CHUNK, inputs)
        changes = np.empty((end - first, weights.shape[1]), np.float32)
        for k in range(first, end):
            wanted = values[k] + pull[k] / damped[k, k] - offsets[k]
            code = np.clip(np.rint(wanted / steps[k]), grid.lowest, -grid.lowest - 1)
            change = offsets[k] + code * steps[k] - values[k]
            values[k] += change
            pull[k:end] -= np.outer(damped[k:end, k], change)
            changes[k - first] = change
            codes[k] = code
        # What lies before is not read again in this sweep.
        pull[end:] -= damped[end:, first:end] @ changes


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


def _columns(weights: FloatArray) -> Iterator[slice]:
    """Outputs do not depend on each other: a few at a time stay in the processor's cache."""
    for first in range(0, weights.shape[1], _OUTPUTS):
        yield slice(first, first + _OUTPUTS)
