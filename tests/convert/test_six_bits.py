"""A head in 8 and 6 bits: what is kept, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from specdec.convert.matrix import BlockMatrix, DenseMatrix, FloatArray
from specdec.convert.six_bits import MixedMatrix, pack_mixed
from tests.convert.reference_ops import Array, unpack_mixed, wide_blocks

ROWS, COLUMNS = 5000, 288  # more rows than are rounded at a time; nine blocks, one of them wide


def weights(seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    columns = rng.uniform(0.3, 3, COLUMNS)
    return (rng.standard_normal((ROWS, COLUMNS)) * columns).astype(np.float32)


def gains(seed: int = 1) -> FloatArray:
    gain = np.random.default_rng(seed).uniform(0.5, 2, COLUMNS).astype(np.float32)
    gain[[3, 100, 200]] *= 20
    return gain


def weights_of(packed: MixedMatrix) -> Array:
    return unpack_mixed(packed.codes, packed.fine, packed.scales)


def as_read(packed: MixedMatrix, gain: FloatArray) -> Array:
    """The weights behind the norm's own gain, float64, in its order."""
    found = np.zeros((packed.outputs, len(gain)))
    unpacked = weights_of(packed)[: packed.outputs]
    found[:, packed.order] = unpacked * packed.gain / gain[packed.order]
    return found


def test_values() -> None:
    matrix, gain = weights(), gains()
    packed = pack_mixed(DenseMatrix(matrix), gain)
    assert packed is not None
    assert (packed.bits, packed.outputs) == (6, ROWS)
    tiles = -(-ROWS // 16)
    assert packed.codes.shape == (tiles, 512 + 8 * 256)
    assert packed.fine.shape == (tiles, 8 * 128)
    assert packed.scales.shape == (tiles, 9, 16)
    assert wide_blocks(packed.codes, packed.scales) == 1
    assert sorted(packed.order) == list(range(COLUMNS))
    assert {3, 100, 200} < set(packed.order[:32].tolist())
    error = np.square((as_read(packed, gain) - matrix) * gain).mean(0)
    size = np.square(matrix * gain).mean(0)
    wide, others = packed.order[:32], packed.order[32:]
    assert np.sqrt(error[wide].sum() / size[wide].sum()) < 0.006
    assert 0.01 < np.sqrt(error[others].sum() / size[others].sum()) < 0.025
    assert not weights_of(packed)[ROWS:].any()
    again = pack_mixed(DenseMatrix(matrix), gain)
    assert again is not None
    assert np.array_equal(again.codes, packed.codes)


def test_what_is_known_without_the_lower_bits() -> None:
    packed = pack_mixed(DenseMatrix(weights()), gains())
    assert packed is not None
    exact = weights_of(packed)
    least, most = (
        weights_of(replace(packed, fine=np.full_like(packed.fine, byte))) for byte in (0, 255)
    )
    beyond = np.linalg.norm(exact - (least + most) / 2, axis=1)
    np.testing.assert_allclose(packed.spread, beyond, rtol=2e-6)
    assert (packed.spread[:ROWS] >= beyond[:ROWS]).all()
    scales = packed.scales.view(np.float16).astype(np.float64)
    largest = 32 * np.square(scales * np.where(np.arange(9) < 1, 128 * 2**0.5, 90.5)[None, :, None])
    assert packed.size == pytest.approx(np.sqrt(largest.sum(1).max()), rel=2e-6)


def test_no_order_of_inputs_would_have_less_error() -> None:
    """In the order that it chose, less is lost than in the given one, and than in the reverse."""
    matrix, gain = weights(), gains()

    def lost(columns: Array) -> float:
        # A gain of ones but for what the order is made by: inputs as they come.
        packed = pack_mixed(DenseMatrix(matrix[:, columns]), np.linspace(99, 1, COLUMNS) ** 3)
        assert packed is not None
        found = as_read(packed, (np.linspace(99, 1, COLUMNS) ** 3).astype(np.float32))
        return float(np.square((found - matrix[:, columns]) * gain[columns]).sum())

    chosen = pack_mixed(DenseMatrix(matrix), gain)
    assert chosen is not None
    least = float(np.square((as_read(chosen, gain) - matrix) * gain).sum())
    assert least < 0.6 * lost(np.arange(COLUMNS))
    assert least < 0.6 * lost(chosen.order[::-1])


def test_a_block_of_zeros_and_tiny_weights() -> None:
    matrix = weights()
    matrix[7], matrix[8] = 0, np.float32(1e-9)
    packed = pack_mixed(DenseMatrix(matrix), np.ones(COLUMNS, np.float32))
    assert packed is not None
    assert not as_read(packed, np.ones(COLUMNS, np.float32))[7:9].any()


def test_blocks_of_codes_are_taken_by_value() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 256, (64, COLUMNS), dtype=np.uint8)
    scales = rng.uniform(0.5, 1, (64, COLUMNS // 32)).astype(np.float32)
    matrix = BlockMatrix(codes, scales, -128 * scales, 8)
    first, second = (
        pack_mixed(each, gains()) for each in (matrix, DenseMatrix(matrix.dequantise()))
    )
    assert first is not None
    assert second is not None
    assert np.array_equal(first.codes, second.codes)


@pytest.mark.parametrize("problem", ["narrow", "not a number", "infinite", "large", "one outlier"])
def test_what_keeps_its_8_bits(problem: str) -> None:
    matrix = weights()
    if problem == "narrow":
        matrix = matrix[:, :32]
    elif problem == "not a number":
        matrix[3, 40] = np.nan
    elif problem == "infinite":
        matrix[3, 40] = np.inf
    elif problem == "large":
        matrix[3] = 1e8
    else:
        # Blocks whose largest weight is far above the others lose those.
        matrix[np.random.default_rng(5).random(matrix.shape) < 0.05] *= 30
    assert pack_mixed(DenseMatrix(matrix), np.ones(matrix.shape[1], np.float32)) is None
