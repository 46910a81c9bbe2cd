"""Grids, GPTQ, coordinate descent and the linears made of them, on small matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from specdec.convert.htp.stats import LinearStats
from specdec.convert.htp.weights import (
    KINDS,
    LARGEST_BLOCK_SCALE,
    W4,
    W4_MINIMA,
    W8,
    BlockLinear,
    ChannelLinear,
    Kind,
)
from specdec.errors import InvalidInputError
from specdec.quantize.gptq import damp, descend, gptq, output_error
from specdec.quantize.grid import (
    Grid,
    block_costs,
    fitted_grid,
    fitted_offset_grid,
    nearest_grid,
)
from specdec.quantize.linears import METHODS, is_held_as_it_is, quantise_linear


def random_weights(inputs: int = 64, outputs: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)


def correlated_moment(inputs: int = 64, seed: int = 1) -> np.ndarray:
    """Of inputs with a few strong common directions, as activations have."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((4 * inputs, 6)) @ random.standard_normal((6, inputs))
    rows += 0.3 * random.standard_normal(rows.shape)
    return rows.T @ rows / len(rows)


def stats(inputs: int = 64) -> LinearStats:
    return LinearStats(correlated_moment(inputs).astype(np.float32), 4 * inputs)


@pytest.mark.parametrize("block", [None, 16, 32])
@pytest.mark.parametrize("offsets", [False, True])
def test_rounding_is_exact_on_grid_points(block: int | None, offsets: bool) -> None:
    random = np.random.default_rng(0)
    blocks = 1 if block is None else 64 // block
    steps = random.uniform(0.5, 2, (blocks, 24)).astype(np.float32)
    shift = random.standard_normal((blocks, 24)).astype(np.float32) if offsets else None
    grid = Grid(steps, 4, shift)
    codes = random.integers(-8, 8, (64, 24)).astype(np.int8)
    np.testing.assert_array_equal(grid.round(grid.values(codes)), codes)


def test_rounding_takes_the_nearest_code() -> None:
    grid = Grid(np.full((1, 3), 0.5, np.float32), 4)
    weights = np.array([[0.2, -0.3, 1.3], [9.0, -9.0, 0.0]], np.float32)
    np.testing.assert_array_equal(grid.round(weights), [[0, -1, 3], [7, -8, 0]])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("weighted", [False, True])
def test_fitted_steps_are_never_worse(bits: int, block: int | None, weighted: bool) -> None:
    weights = random_weights() ** 3  # outliers
    importance = np.random.default_rng(2).uniform(0, 5, 64).astype(np.float32)
    measure = importance if weighted else None
    plain = block_costs(weights, nearest_grid(weights, bits, block), measure)
    fitted = block_costs(weights, fitted_grid(weights, bits, block, measure), measure)
    assert (fitted <= plain).all()
    assert bits == 8 or fitted.sum() < plain.sum()  # 8 bits have room for outliers


def test_a_block_of_zeros_has_a_step() -> None:
    grid = fitted_grid(np.zeros((32, 2), np.float32), 4, 16)
    assert (grid.steps > 0).all()
    assert not grid.round(np.zeros((32, 2), np.float32)).any()


@pytest.mark.parametrize("by_activity", [False, True])
def test_gptq_on_independent_inputs_is_rounding(by_activity: bool) -> None:
    # With a diagonal H no input can make up for another one's error, in whatever order.
    weights = random_weights()
    grid = nearest_grid(weights, 4, 16)
    moment = np.diag(np.random.default_rng(3).uniform(0.1, 9, 64))
    codes = gptq(weights, moment, grid, by_activity=by_activity)
    np.testing.assert_array_equal(codes, grid.round(weights))
    np.testing.assert_array_equal(descend(weights, moment, grid, codes), codes)


@pytest.mark.parametrize("block", [None, 16])
def test_gptq_beats_rounding_on_correlated_inputs(block: int | None) -> None:
    weights, moment = random_weights(), correlated_moment()
    grid = fitted_grid(weights, 4, block)
    plain = output_error(weights, moment, grid.values(grid.round(weights)))
    clever = output_error(weights, moment, grid.values(gptq(weights, moment, grid)))
    assert clever < 0.5 * plain


def test_gptq_is_the_published_algorithm() -> None:
    """Against its plain form: after each input, the others move by the inverse of what is left."""
    weights, moment = random_weights(24, 5), correlated_moment(24)
    grid = nearest_grid(weights, 4, None)
    left, hessian = weights.astype(np.float64), damp(moment, 0.01)
    expected = np.empty(weights.shape, np.int8)
    for k in range(24):
        inverse = np.linalg.inv(hessian[k:, k:])
        row = grid.round(left[k : k + 1].astype(np.float32))
        error = (left[k] - grid.values(row)[0]) / inverse[0, 0]
        left[k:] -= np.outer(inverse[:, 0], error)
        expected[k] = row[0]
    np.testing.assert_array_equal(gptq(weights, moment, grid, by_activity=False), expected)


def test_gptq_over_several_chunks_is_the_same_as_over_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, moment = random_weights(96), correlated_moment(96)
    grid = nearest_grid(weights, 4, 32)
    whole = gptq(weights, moment, grid)
    improved = descend(weights, moment, grid, whole)
    monkeypatch.setattr("specdec.quantize.gptq._CHUNK", 20)
    assert (gptq(weights, moment, grid) == whole).mean() > 0.99  # but for ties
    assert (descend(weights, moment, grid, whole) == improved).mean() > 0.99


def test_descent_never_gets_worse_and_ends_where_no_single_code_helps() -> None:
    weights, moment = random_weights(12, 3), correlated_moment(12)
    grid = nearest_grid(weights, 4, None)
    damped = damp(moment, 0.01)
    codes = gptq(weights, moment, grid)
    error = output_error(weights, damped, grid.values(codes))
    for _ in range(8):
        codes = descend(weights, moment, grid, codes, sweeps=1)
        now = output_error(weights, damped, grid.values(codes))
        assert now <= error + 1e-9
        error = now
    for k, n, code in itertools.product(range(12), range(3), range(-8, 8)):
        other = codes.copy()
        other[k, n] = code
        assert output_error(weights, damped, grid.values(other)) >= error - 1e-9


def test_descent_comes_near_the_best_codes() -> None:
    weights, moment = random_weights(5, 1), correlated_moment(5)
    grid = Grid(np.full((1, 1), 0.7, np.float32), 4)
    damped = damp(moment, 0.01)
    nearest = grid.round(weights).astype(int)[:, 0]
    best = min(
        output_error(weights, damped, grid.values((nearest + shift)[:, None].astype(np.int8)))
        for shift in itertools.product((-2, -1, 0, 1, 2), repeat=5)
    )
    codes = descend(weights, moment, grid, gptq(weights, moment, grid), sweeps=10)
    plain = output_error(weights, damped, grid.values(grid.round(weights)))
    found = output_error(weights, damped, grid.values(codes))
    assert best - 1e-9 <= found <= best + 0.5 * (plain - best)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].bits in (4, 8)])
def test_linears_hold_what_their_kind_can(name: str, method: str) -> None:
    kind = Kind.parse(name)
    weights = random_weights(128)
    linear = quantise_linear(weights, kind, stats(128), method)
    assert linear.shape == weights.shape
    assert output_error(weights, np.eye(128), linear.dequantise()) < (
        0.1 if kind.bits == 4 else 1e-3
    )
    if isinstance(linear, BlockLinear):
        assert linear.block == kind.block
        assert linear.block_scales.min() >= 1
        assert linear.block_scales.max() <= LARGEST_BLOCK_SCALE
    if isinstance(linear, ChannelLinear):
        assert (linear.scales > 0).all()


@pytest.mark.parametrize("kind", [W4, W8, Kind(4, 32), Kind(4, 16), W4_MINIMA], ids=str)
def test_methods_in_order_of_quality(kind: Kind) -> None:
    weights, moment = random_weights(128), stats(128)
    exact = moment.moment.astype(np.float64)
    errors = [
        output_error(weights, exact, quantise_linear(weights, kind, moment, method).dequantise())
        for method in METHODS
    ]
    assert errors[1] < errors[0] or kind.bits == 8  # in 8 bits only the codes matter
    assert errors[2] < errors[1]


def test_block_scales_survive_the_round_trip() -> None:
    random = np.random.default_rng(4)
    scales = random.uniform(0.01, 0.02, 24).astype(np.float32)
    numbers = random.integers(8, LARGEST_BLOCK_SCALE + 1, (4, 24)).astype(np.uint8)
    numbers[0] = LARGEST_BLOCK_SCALE
    codes = random.integers(-7, 8, (64, 24)).astype(np.int8)
    codes[::16] = 7  # every block uses its whole range
    weights = BlockLinear(codes, numbers, scales).dequantise()
    found = quantise_linear(weights, Kind(4, 16), stats(), "mse")
    np.testing.assert_allclose(found.dequantise(), weights, atol=1e-6)


def q4_1_weights() -> np.ndarray:
    """What a Q4_1 file may hold: every block of 32 uses its 16 codes from end to end."""
    random = np.random.default_rng(5)
    codes = random.integers(0, 16, (4, 32, 24))
    codes[:, 3], codes[:, 17] = 0, 15
    scales = random.uniform(0.01, 0.02, (4, 1, 24)).astype(np.float16).astype(np.float32)
    minima = -random.uniform(0.05, 0.2, (4, 1, 24)).astype(np.float16).astype(np.float32)
    weights: np.ndarray = (codes * scales + minima).reshape(128, 24).astype(np.float32)
    return weights


@pytest.mark.parametrize("method", METHODS)
def test_minima_hold_q4_1_weights_as_they_are(method: str) -> None:
    weights = q4_1_weights()
    assert is_held_as_it_is(weights, W4_MINIMA)
    linear = quantise_linear(weights, W4_MINIMA, None, method)
    np.testing.assert_allclose(linear.dequantise(), weights, atol=2e-6)
    assert not is_held_as_it_is(random_weights(128), W4_MINIMA)
    assert not is_held_as_it_is(weights, Kind(4, 32))


def test_an_offset_grid_finds_q4_1_steps_and_rounds_offsets_to_8_bits() -> None:
    weights = q4_1_weights()
    grid = fitted_offset_grid(weights, 4, 32)
    assert grid.offsets is not None
    blocks = weights.reshape(4, 32, 24)
    np.testing.assert_allclose(grid.steps, (blocks.max(1) - blocks.min(1)) / 15, rtol=1e-5)
    wanted = blocks.min(1) + 8 * grid.steps
    step = np.abs(wanted).max(0) / 127
    assert (np.abs(grid.offsets - wanted) <= 0.51 * step).all()
    values = grid.values(grid.round(weights))
    assert (np.abs(values - weights) <= 0.51 * step + 1e-6).all()


def test_unknown_methods_and_missing_statistics() -> None:
    with pytest.raises(InvalidInputError, match="no method 'awq': choose one of rtn, mse, gptq"):
        quantise_linear(random_weights(), W8, stats(), "awq")
    with pytest.raises(InvalidInputError, match="'gptq' needs calibration texts"):
        quantise_linear(random_weights(), W8, None, "gptq")
