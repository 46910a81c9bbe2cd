"""Each kind of linear against the product with the dequantised weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bench.graph_runner import session_options
from specdec.convert.activation import Activation, Linear
from specdec.convert.external_data import ExternalData
from specdec.convert.gguf_reader import GgufFile
from specdec.convert.graph import Graph
from specdec.convert.int8 import encode_rows, int8_rowwise, int8_split16
from specdec.convert.layouts import float32
from specdec.convert.matrix import (
    BlockMatrix,
    CodeArray,
    DenseMatrix,
    FloatArray,
    Matrix,
    stack_rows,
)
from specdec.convert.nbits import encode8, nbits4, nbits8

ROWS, COLUMNS, BLOCK = 96, 128, 32


def random_matrix(bits: int, seed: int = 0) -> BlockMatrix:
    """What a Q4_1 (4 bits) or Q8_0 (8 bits) tensor holds, with a few odd blocks."""
    rng = np.random.default_rng(seed)
    blocks = (ROWS, COLUMNS // BLOCK)
    codes = rng.integers(0, 2**bits, (ROWS, COLUMNS)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, blocks).astype(np.float16).astype(np.float32)
    if bits == 8:
        return BlockMatrix(codes, scales, scales * np.float32(-128), bits)
    minima = (-scales * rng.uniform(5, 10, blocks)).astype(np.float16).astype(np.float32)
    scales[0, 0], minima[0, 0] = 0, 0.25  # a constant block
    scales[1, 0], minima[1, 0] = 0, 0  # a block of zeros
    minima[2, 0] = 0.125  # a block of positive weights
    minima[3, 0] = -scales[3, 0] * 15  # a block of negative weights
    minima[4, 0] = 1000 * scales[4, 0]  # blocks whose weights are nearly the same
    minima[5, 0] = -1000 * scales[5, 0]
    return BlockMatrix(codes, scales, minima, bits)


def run(
    tmp_path: Path, linear: Linear, matrix: Matrix, x: FloatArray, bound: float | None = None
) -> FloatArray:
    """``linear`` alone in a graph, applied to x [S, COLUMNS]."""
    with ExternalData(tmp_path / "data") as data:
        graph = Graph("linear", data)
        graph.input("x", np.float32, [1, "S", COLUMNS])
        graph.output("y", np.float32, [1, "S", matrix.shape[0]])
        linear(graph, "y", Activation("x", COLUMNS, bound), matrix)
        onnx.save(graph.model(), tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), session_options(2))
    result: FloatArray = session.run(["y"], {"x": x[None]})[0][0]
    return result


def inputs(rows: int) -> FloatArray:
    return np.random.default_rng(9).standard_normal((rows, COLUMNS)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("linear", "bound", "tolerance"),
    [
        (float32, None, 1e-6),
        (nbits8, None, 0.01),
        (nbits4, None, 0.01),
        (int8_rowwise, None, 0.02),
        (int8_split16, None, 0.01),
        (int8_split16, 6.0, 0.01),
    ],
)
def test_products_are_near_those_of_the_dequantised_weights(
    tmp_path: Path, linear: Linear, bound: float | None, tolerance: float, bits: int
) -> None:
    matrix, x = random_matrix(bits), inputs(7)
    expected = x @ matrix.dequantise().T
    found = run(tmp_path, linear, matrix, x, bound)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert error < tolerance


@pytest.mark.parametrize("bound", [None, 6.0])
def test_16_bit_activations_lose_nothing_but_the_rounding_of_weights(
    tmp_path: Path, bound: float | None
) -> None:
    matrix, x = random_matrix(4), inputs(5)
    x[0] = 0
    x[1, 3] = 5.9  # 6 is the bound
    x[1, 4] = -5.9
    codes, scales = encode_rows(matrix)
    expected = x @ (codes.astype(np.float32) * scales)
    np.testing.assert_allclose(
        run(tmp_path, int8_split16, matrix, x, bound), expected, atol=2e-3 * np.abs(expected).max()
    )


@pytest.mark.parametrize("linear", [nbits8, nbits4, int8_rowwise, int8_split16, float32])
def test_rows_do_not_depend_on_each_other(tmp_path: Path, linear: Linear) -> None:
    x = inputs(16)
    matrix = random_matrix(4)
    whole = run(tmp_path, linear, matrix, x)
    for width in range(2, 16):
        changed = x[:width].copy()
        changed[-1] *= 100
        np.testing.assert_array_equal(
            run(tmp_path, linear, matrix, changed)[:-1], whole[: width - 1]
        )


def dequantise8(codes: CodeArray, scales: FloatArray, zero_points: CodeArray) -> FloatArray:
    blocks = codes.reshape(len(codes), -1, BLOCK).astype(np.float32)
    values: FloatArray = (blocks - zero_points[..., None]) * scales[..., None]
    return values.reshape(codes.shape)


def test_q8_0_and_q4_0_are_held_exactly() -> None:
    eight = random_matrix(8)
    np.testing.assert_array_equal(dequantise8(*encode8(eight)), eight.dequantise())
    four = random_matrix(4)
    symmetric = BlockMatrix(four.codes, four.scales, four.scales * np.float32(-8), 4)
    np.testing.assert_allclose(
        dequantise8(*encode8(symmetric)), symmetric.dequantise(), rtol=1e-6, atol=1e-9
    )


def test_q4_1_is_held_to_a_small_part_of_its_own_step() -> None:
    matrix = random_matrix(4)
    error = np.abs(dequantise8(*encode8(matrix)) - matrix.dequantise())
    steps = np.repeat(matrix.scales, BLOCK, axis=1)
    assert error[:2, :BLOCK].max() == 0  # constant blocks
    assert (error[2:4, :BLOCK] / steps[2:4, :BLOCK]).max() < 1 / 20
    narrow = np.s_[4:6, :BLOCK]
    assert (error[narrow] / np.abs(matrix.dequantise()[narrow])).max() < 1 / 250
    assert (error[6:] / steps[6:]).max() < 1 / 34
    assert (error[6:] / steps[6:]).mean() < 1 / 150


def test_dense_weights_are_rounded_to_half_a_step() -> None:
    values = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    values[0, :BLOCK] = 0
    values[1, :BLOCK] = np.abs(values[1, :BLOCK])
    codes, scales, zero_points = encode8(DenseMatrix(values))
    error = np.abs(dequantise8(codes, scales, zero_points) - values)
    assert np.all(error <= np.repeat(scales, BLOCK, axis=1) * 1.01)
    assert error[0, :BLOCK].max() == 0


def test_stacked_rows_keep_their_blocks() -> None:
    four, other = random_matrix(4), random_matrix(4, seed=1)
    stacked = stack_rows([four, other])
    assert isinstance(stacked, BlockMatrix)
    expected = np.concatenate([four.dequantise(), other.dequantise()])
    np.testing.assert_array_equal(stacked.dequantise(), expected)
    mixed = stack_rows([four, random_matrix(8)])
    assert isinstance(mixed, DenseMatrix)
    assert mixed.shape == (2 * ROWS, COLUMNS)


def test_reading_back_what_ggml_wrote(tmp_path: Path) -> None:
    """Q4_1 of a random matrix, through the 8-bit codes, is what ggml dequantises."""
    values = np.random.default_rng(4).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("w", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = dequantise8(*encode8(GgufFile(tmp_path / "one.gguf").matrix("w")))
    expected = gguf.dequantize(gguf.quantize(values, kind), kind)
    assert np.abs(found - expected).max() < 0.01
