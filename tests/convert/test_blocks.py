"""Packing, against the definition byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from specdec.convert.blocks import PackedMatrix, pack_gated, pack_rows
from specdec.convert.matrix import BlockMatrix, DenseMatrix, FloatArray
from specdec.errors import CheckpointError
from tests.convert.reference_ops import TILE, Array, unpack
from tests.convert.test_linears import random_matrix

BLOCK = 32


def four_bits(seed: int = 0) -> BlockMatrix:
    """What a Q4_1 tensor holds: halves."""
    four = random_matrix(4, seed)
    minima = four.minima.astype(np.float16).astype(np.float32)
    return BlockMatrix(four.codes, four.scales, minima, 4)


def symmetric(seed: int = 0) -> BlockMatrix:
    """What a Q4_0 tensor holds."""
    four = random_matrix(4, seed)
    return BlockMatrix(four.codes, four.scales, four.scales * np.float32(-8), 4)


def values(packed: PackedMatrix) -> Array:
    """All rows, with those that fill up the last tile."""
    return unpack(packed.codes, packed.scales, packed.bits)


def exact(matrix: BlockMatrix) -> Array:
    """``matrix`` in float64, in which nothing is rounded."""
    codes = matrix.codes.reshape(*matrix.scales.shape, BLOCK).astype(np.float64)
    found: Array = codes * matrix.scales[..., None] + matrix.minima[..., None]
    return found.reshape(matrix.shape)


def dense(rows: int, columns: int = 64, seed: int = 3) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("matrix", [four_bits(), symmetric(), random_matrix(8)])
@pytest.mark.parametrize("rows", [96, 16, 17, 1])
def test_ggmls_blocks_are_held_exactly(matrix: BlockMatrix, rows: int) -> None:
    matrix = matrix.take_rows(slice(0, rows))
    packed = pack_rows([matrix])
    tiles, blocks = -(-rows // TILE), matrix.shape[1] // BLOCK
    assert (packed.bits, packed.outputs) == (matrix.bits, rows)
    assert (packed.codes.shape, packed.codes.dtype) == ((tiles, blocks, 64 * packed.bits), np.uint8)
    assert packed.scales.shape == (
        (tiles, blocks, TILE) if packed.bits == 8 else (tiles, blocks, 2, TILE)
    )
    assert packed.scales.dtype == np.uint16
    found = values(packed)
    np.testing.assert_array_equal(found[:rows], exact(matrix))
    assert not found[rows:].any()
    assert packed.codes.flags.c_contiguous
    assert packed.scales.flags.c_contiguous


def test_rows_of_several_matrices_follow_one_another() -> None:
    parts = [four_bits(seed).take_rows(slice(0, rows)) for seed, rows in ((0, 20), (1, 7))]
    packed = pack_rows(parts)
    expected = np.concatenate([exact(part) for part in parts])
    assert (packed.bits, packed.outputs) == (4, 27)
    np.testing.assert_array_equal(values(packed)[:27], expected)


def test_four_bits_beside_eight_become_eight_and_eight_stay_exact() -> None:
    four, eight = four_bits(), random_matrix(8)
    packed = pack_rows([four, eight])
    assert packed.bits == 8
    found = values(packed)
    np.testing.assert_array_equal(found[96:], exact(eight))
    largest = np.abs(four.dequantise()).reshape(96, -1, BLOCK).max(-1)
    error = np.abs(found[:96] - four.dequantise()).reshape(96, -1, BLOCK).max(-1)
    assert (error <= largest * (1 / 254 + 1 / 1024)).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [32, 40])
def test_gate_and_up_take_turns(bits: int, rows: int) -> None:
    make = four_bits if bits == 4 else partial(random_matrix, bits)
    gate, up = (make(seed).take_rows(slice(0, rows)) for seed in (0, 1))
    packed = pack_gated(gate, up)
    assert (packed.bits, packed.outputs) == (bits, 2 * rows)
    tiles = values(packed).reshape(-1, 2, TILE, gate.shape[1])
    for index, part in enumerate((gate, up)):
        found = tiles[:, index].reshape(-1, gate.shape[1])
        np.testing.assert_array_equal(found[:rows], exact(part))
        assert not found[rows:].any()


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_other_weights_are_rounded_to_half_a_step(size: float) -> None:
    weights = dense(5000) * np.float32(size)  # more rows than are rounded at a time
    weights[0] = 0
    weights[1, :BLOCK] = 1e-9  # below the least of the halves
    packed = pack_rows([DenseMatrix(weights)])
    assert packed.bits == 8
    blocks = weights.reshape(5000, -1, BLOCK)
    error = np.abs(values(packed)[:5000].reshape(blocks.shape) - blocks).max(-1)
    largest = np.abs(blocks).max(-1)
    assert (error <= largest * (1 / 254 + 1 / 1024) + 1e-9).all()
    assert error.max() > largest.max() / 300


def test_scales_that_halves_do_not_hold_are_rounded() -> None:
    four = random_matrix(4)
    matrix = BlockMatrix(four.codes, four.scales * np.float32(1.0001), four.minima, 4)
    packed = pack_rows([matrix])
    assert packed.bits == 8
    np.testing.assert_allclose(values(packed), matrix.dequantise(), atol=0.01 * 1000 / 127)


@pytest.mark.parametrize("wrong", [np.inf, np.nan, 1e9])
def test_weights_that_are_no_numbers_are_refused(wrong: float) -> None:
    weights = dense(16)
    weights[3, 40] = wrong
    with pytest.raises(CheckpointError, match="no number, or too large") as caught:
        pack_rows([DenseMatrix(weights)])
    assert "\n" not in str(caught.value)


def byte_scales_of(matrix: BlockMatrix) -> Array:
    packed = pack_rows([matrix], byte_scales=True)
    tiles, blocks = -(-matrix.shape[0] // TILE), matrix.shape[1] // BLOCK
    assert (packed.bits, packed.outputs) == (4, matrix.shape[0])
    assert (packed.scales.shape, packed.scales.dtype) == ((tiles, 2 + blocks, TILE), np.uint16)
    found = values(packed)
    assert not found[matrix.shape[0] :].any()
    return found[: matrix.shape[0]]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("make", [four_bits, symmetric])
@pytest.mark.parametrize("rows", [96, 17, 1])
def test_scales_in_bytes_are_within_half_a_step(
    make: Callable[[], BlockMatrix], rows: int, sign: int
) -> None:
    """Q4_0 has scales of both signs: there codes count from the other end."""
    matrix = make().take_rows(slice(0, rows))
    signs = np.where(np.arange(matrix.scales.size) % 3 == 0, sign, 1).astype(np.float32)
    signs = signs.reshape(matrix.scales.shape)
    matrix = BlockMatrix(matrix.codes, matrix.scales * signs, matrix.minima * signs, 4)
    codes = matrix.codes.reshape(*matrix.scales.shape, BLOCK).astype(np.float64)
    error = np.abs(byte_scales_of(matrix).reshape(codes.shape) - exact(matrix).reshape(codes.shape))

    # Steps of a row: of the scale, and of the offset, which is that of code 8, once moved.
    scales, mean = np.abs(matrix.scales), codes.mean(-1)
    step = 1.01 * scales.max(1, keepdims=True) / 255
    middle = np.where(matrix.scales < 0, 7, 8)
    offsets = np.abs(matrix.minima + middle * matrix.scales) + 8 * step
    offset_step = 1.02 * offsets.max(1, keepdims=True) / 127
    bound = step[..., None] / 2 * np.abs(codes - mean[..., None]) + offset_step[..., None] / 2
    assert (error <= bound + 1e-6 * scales.max()).all()
    assert error.max() > 0


def test_scales_in_bytes_keep_the_means_of_blocks() -> None:
    """The offset makes up for the scale: a block's mean is off by half of an offset's step."""
    matrix = four_bits()
    difference = (byte_scales_of(matrix) - exact(matrix)).reshape(*matrix.scales.shape, BLOCK)
    step = np.abs(matrix.minima + 8 * matrix.scales).max(1, keepdims=True) / 127
    assert (np.abs(difference.mean(-1)) <= 0.6 * step + 1e-6).all()


def test_blocks_too_different_for_bytes_keep_halves() -> None:
    """In steps that one large offset asks for, the other blocks of a row are nothing."""
    rng = np.random.default_rng(0)
    scales = np.full((32, 64), 2.0**-7, np.float32)
    minima = -7.5 * scales
    matrix = BlockMatrix(rng.integers(0, 16, (32, 64 * BLOCK)).astype(np.uint8), scales, minima, 4)
    byte_scales_of(matrix)
    minima[:, 0] = 1
    packed = pack_rows([matrix], byte_scales=True)
    np.testing.assert_array_equal(values(packed)[:32], exact(matrix))


def test_rows_of_zeros_and_of_one_value() -> None:
    matrix = four_bits()
    scales, minima = matrix.scales.copy(), matrix.minima.copy()
    scales[2] = minima[2] = 0
    scales[3], minima[3] = 0, np.float32(-0.25)
    found = byte_scales_of(BlockMatrix(matrix.codes, scales, minima, 4))
    assert not found[2].any()
    np.testing.assert_allclose(found[3], -0.25, rtol=0.01)


def test_scales_that_are_infinite_are_not_rounded() -> None:
    matrix = four_bits()
    matrix.scales[1, 0] = np.inf
    packed = pack_rows([matrix], byte_scales=True)
    assert packed.scales.shape == (6, 4, 2, TILE)
