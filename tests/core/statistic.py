"""Goodness of fit, shared by the tests that draw."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# The bound for every single test of a distribution.
SMALLEST_P = 0.001

# Below 1, every test draws less: for builds that run the core slowly.
SHARE = float(os.environ.get("SPECDEC_TEST_DRAWS", "1"))


def draws(count: int) -> int:
    return max(int(count * SHARE), 2_000)


def chi_square_p(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """p-value of counts [cells] against their expectation [cells], both with the same sum.

    Cells that should be empty and are not give 0. Cells with a small expectation are pooled.
    """
    observed, expected = observed.ravel(), expected.ravel()
    assert abs(observed.sum() - expected.sum()) < 1e-4 * max(expected.sum(), 1)
    if observed[expected == 0].any():
        return 0.0
    large = expected >= 10
    o = np.append(observed[large], observed[~large].sum())
    e = np.append(expected[large], expected[~large].sum())
    o, e = o[e > 0], e[e > 0]
    if len(e) < 2:
        return 1.0
    return float(stats.chi2.sf(((o - e) ** 2 / e).sum(), len(e) - 1))


def markov_p(counts: NDArray[np.int64], transitions: NDArray[np.float64]) -> float:
    """p-value of transition counts [contexts, V] against probabilities [contexts, V].

    Given how often each context came up, every row is multinomial: the statistics add up.
    """
    statistic, freedom = 0.0, 0
    for row, probabilities in zip(counts, transitions, strict=True):
        expected = probabilities * row.sum()
        if row[expected == 0].any():
            return 0.0
        large = expected >= 10
        o = np.append(row[large], row[~large].sum())
        e = np.append(expected[large], expected[~large].sum())
        o, e = o[e > 0], e[e > 0]
        if len(e) < 2:
            continue
        statistic += float(((o - e) ** 2 / e).sum())
        freedom += len(e) - 1
    return float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0
