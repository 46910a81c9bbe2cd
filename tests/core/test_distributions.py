"""Logits to distributions, against numpy in double precision, and the race's noise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference
from scipy import special, stats
from statistic import SMALLEST_P, chi_square_p, draws

from specdec import _core
from specdec.errors import ModelRunError


def sampling(**options: Any) -> Any:
    result = _core.SamplingOptions()
    for name, value in options.items():
        setattr(result, name, value)
    return result


def core_distribution(
    logits: Any, prompt: list[int] | None = None, generated: list[int] | None = None, **options: Any
) -> Any:
    row = np.asarray(logits, np.float32)
    return _core.distribution_of(row, sampling(**options), prompt or [0], generated or [])


# Sizes around the loops' blocks of 16 and 1024.
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 1023, 1024, 1025, 49_152])
def test_softmax(size: int) -> None:
    rng = np.random.default_rng(size)
    for spread, temperature in itertools.product((0.1, 3, 20), (0.3, 1, 2)):
        logits = rng.normal(0, spread, size).astype(np.float32)
        # In the single-precision steps the core documents: the error that counts is exp's own.
        scaled = (logits - logits.max()) * (np.float32(1 / temperature) * np.float32(1.44269504))
        exact = special.softmax(scaled.astype(np.float64) * np.log(2))
        mine = core_distribution(logits, temperature=temperature)
        seen = scaled > -125
        np.testing.assert_allclose(mine[seen], exact[seen], rtol=1e-6)
        assert (mine[scaled < -126] == 0).all()


def test_minus_infinity_has_no_mass() -> None:
    logits = np.array([-np.inf, 1, -np.inf, 2, 3], np.float32)
    for options in ({}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 1e-6}, {"temperature": 5}):
        mine = core_distribution(logits, **options)
        assert mine[0] == mine[2] == 0
        assert mine.sum() == pytest.approx(1)


@pytest.mark.parametrize("where", [0, 5, 1024, 1500, 2047])
def test_nan_is_found_or_never_chosen(where: int) -> None:
    logits = np.random.default_rng(1).normal(0, 1, 2048).astype(np.float32)
    logits[1030] = 9
    logits[where] = np.nan
    assert core_distribution(logits, temperature=0)[1030] == 1
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        with pytest.raises(ModelRunError):
            core_distribution(logits, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_finite_logits(bad: float, temperature: float) -> None:
    with pytest.raises(ModelRunError):
        core_distribution([bad] * 40, temperature=temperature)


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-40, 1e-310])
def test_temperatures_near_zero_are_greedy(temperature: float) -> None:
    mine = core_distribution([0.5, 3.0, 2.0, -1.0], temperature=temperature)
    assert mine.tolist() == [0, 1, 0, 0]


OPTIONS: dict[str, list[Any]] = {
    "temperature": [0.7, 1.0, 1.6],
    "top_k": [0, 1, 7, 40],
    "top_p": [1.0, 0.9, 0.31, 1e-9],
    "min_p": [0.0, 0.08, 1.0],
}


@pytest.mark.parametrize("size", [30, 3000])
def test_truncation(size: int) -> None:
    rng = np.random.default_rng(size)
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True))
        logits = rng.normal(0, 2, size).astype(np.float32)
        expected = reference.distribution(logits, **options)
        mine = core_distribution(logits, **options)
        assert ((mine > 0) == (expected > 0)).all(), options
        np.testing.assert_allclose(mine, expected, rtol=1e-5)


# Rows that are sure of their token and rows that are not, one after the other: none depends on the
# one before it, and the larger a nucleus is, the further the search for it goes.
@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.95, "temperature": 0.8},
        {"top_p": 0.9, "min_p": 0.001},
        {"top_p": 0.99999, "temperature": 0.3},
        {"top_p": 0.8, "top_k": 300},
        {"top_k": 50, "min_p": 0.3},
        {"top_k": 1000},
        {"top_k": 5000, "top_p": 0.97},
        {"min_p": 1e-5},
        {"min_p": 1e-30},
    ],
)
def test_truncation_of_many_rows(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    spreads = (0.3, 6, 1, 12, 0.01, 30, 2, 60)
    rows = np.stack([rng.normal(0, spread, 20_011) for spread in spreads]).astype(np.float32)
    rows[2::4] = rows[2::4].round()  # many equals
    rows[:, rng.integers(0, 20_011, 500)] = -np.inf
    mine = core_distribution(rows, **options)
    for row, kept in zip(rows, mine, strict=True):
        # The weights as the core documents them, so that rounding makes the same tokens equal.
        scale = np.float32(1 / options.get("temperature", 1)) * np.float32(1.44269504)
        exponents = ((row - row.max()) * scale).astype(np.float64)
        weights = core_distribution(row, temperature=options.get("temperature", 1.0))
        exact = np.where(exponents > -126, np.exp2(exponents), 0.0)
        np.testing.assert_allclose(weights * exact.sum(), exact, rtol=2e-6)
        truncation = {name: value for name, value in options.items() if name != "temperature"}
        with np.errstate(divide="ignore"):
            expected = reference.distribution(np.log(weights.astype(np.float64)), **truncation)
        wrong = (kept > 0) != (expected > 0)
        if "top_p" in options:  # sums round: the last of a large nucleus is hard to tell
            assert wrong.sum() <= 1 + 2e-7 * (expected > 0).sum() / (1 - options["top_p"])
            np.testing.assert_allclose(kept, expected, rtol=1e-4, atol=1e-7)
        else:
            assert not wrong.any()
            np.testing.assert_allclose(kept, expected, rtol=1e-5)


def test_truncation_keeps_the_first_of_equals() -> None:
    logits = np.zeros(200, np.float32)
    for options, kept in (({"top_k": 3}, 3), ({"top_p": 0.1}, 20), ({"min_p": 1.0}, 200)):
        mine = core_distribution(logits, **options)
        assert np.flatnonzero(mine).tolist() == list(range(kept)), options


# Sizes around the search's blocks of 8 and 64.
@pytest.mark.parametrize("size", [1, 7, 8, 63, 65, 1030])
def test_truncation_at_a_temperature_that_makes_all_equal(size: int) -> None:
    logits = np.random.default_rng(size).normal(0, 2, size).astype(np.float32)
    half = (size + 1) // 2
    for options, kept in (({"top_p": 0.5}, half), ({"top_k": 3}, 3), ({"min_p": 0.5}, size)):
        mine = core_distribution(logits, temperature=1e300, **options)
        assert np.flatnonzero(mine).tolist() == list(range(min(kept, size))), options


def test_penalties_and_bias() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        size = int(rng.integers(2, 50))
        logits = rng.normal(0, 2, size).astype(np.float32)
        prompt = rng.integers(0, size, rng.integers(1, 9)).tolist()
        generated = rng.integers(0, size, rng.integers(0, 9)).tolist()
        options: dict[str, Any] = {
            "temperature": float(rng.choice([0.0, 0.8, 1.0])),
            "repetition_penalty": float(rng.choice([1.0, 0.7, 1.3])),
            "presence_penalty": float(rng.choice([0.0, -0.4, 0.6])),
            "frequency_penalty": float(rng.choice([0.0, -0.2, 0.3])),
            "logit_bias": [(int(rng.integers(0, size)), 1.5), (size - 1, float("-inf"))],
        }
        expected = reference.distribution(logits, prompt, generated, **options)
        mine = core_distribution(logits, prompt, generated, **options)
        np.testing.assert_allclose(mine, expected, rtol=2e-5, atol=1e-12)


def test_bias_of_tokens_that_do_not_exist_is_ignored() -> None:
    plain = core_distribution([1.0, 2.0])
    assert (core_distribution([1.0, 2.0], logit_bias=[(-1, 5.0), (2, 5.0)]) == plain).all()


# --- the race ---


def test_race_over_many_tokens() -> None:
    # Several of the loops' blocks, and weights over nine orders of magnitude.
    rng = np.random.default_rng(3)
    size, count = 2500, draws(20_000)
    weights = np.exp(rng.normal(0, 3, size))
    p = (weights / weights.sum()).astype(np.float32)
    seeds = np.arange(count, dtype=np.uint64)
    rows = np.broadcast_to(p, (1000, size))
    winners = np.concatenate(
        [
            _core.race_batch(rows[: len(part)], part, 7)
            for part in np.array_split(seeds, count // 1000)
        ]
    )
    # Tokens in groups of about equal mass.
    exact = p.astype(np.float64) / p.sum(dtype=np.float64)
    group = np.minimum((np.cumsum(exact) * 50).astype(int), 49)
    expected = np.bincount(group, exact, 50) * count
    observed = np.bincount(group[winners], minlength=50)
    assert chi_square_p(observed, expected) > SMALLEST_P


def test_race_over_two_tokens_is_exponential() -> None:
    # Token 1 wins at weight w when E1 / E0 < w: the winners over a grid of weights are the
    # distribution function of that ratio, which is w / (1 + w).
    count = draws(100_000)
    seeds = np.arange(count, dtype=np.uint64)
    grid = np.exp(np.linspace(-9, 9, 400))
    low, high = np.zeros(count, np.int64), np.full(count, len(grid))
    for _ in range(9):  # bisection of every draw's own ratio
        middle = (low + high) // 2
        w = grid[np.minimum(middle, len(grid) - 1)]
        p = np.stack([np.ones(count), w], axis=1)
        wins = _core.race_batch((p / p.sum(1, keepdims=True)).astype(np.float32), seeds, 3) == 1
        open_ = low < high
        low = np.where(open_ & ~wins, middle + 1, low)
        high = np.where(open_ & wins, middle, high)
    edges = grid / (1 + grid)
    expected = np.diff(np.concatenate([[0.0], edges, [1.0]])) * count
    observed = np.bincount(low, minlength=len(grid) + 1)
    assert chi_square_p(observed, expected) > SMALLEST_P


def test_noise_differs_by_seed_and_position() -> None:
    p = np.full((4000, 8), 1 / 8, np.float32)
    seeds = np.arange(4000, dtype=np.uint64)
    texts = np.stack(
        [
            _core.race_batch(p, seeds + np.uint64(s), at)
            for s in (0, 1 << 32)
            for at in (0, 1, 2**32)
        ]
    )
    for a, b in itertools.combinations(texts, 2):
        table = np.bincount(a * 8 + b, minlength=64).reshape(8, 8)
        assert stats.chi2_contingency(table).pvalue > SMALLEST_P


def test_subnormal_and_tiny_weights_do_not_win_by_accident() -> None:
    p = np.full((20_000, 64), 1e-38, np.float32)
    p[:, 17] = 1
    winners = _core.race_batch(p, np.arange(20_000, dtype=np.uint64), 0)
    assert (winners == 17).all()


@pytest.mark.parametrize("spread", [0.05, 3, 40])
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 4099])
def test_a_race_of_logits_has_the_winner_of_their_weights(size: int, spread: float) -> None:
    rng = np.random.default_rng(size)
    rows = rng.normal(0, spread, (400, size)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = -np.inf
    rows[:, 0] = 0
    weights = np.stack([core_distribution(row) for row in rows]).astype(np.float32)
    seeds = np.arange(len(rows), dtype=np.uint64)
    assert_array = np.testing.assert_array_equal
    assert_array(_core.race_batch(rows, seeds, 5, logits=True), _core.race_batch(weights, seeds, 5))
