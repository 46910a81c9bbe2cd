"""Kinds of linear weights for the NPU: what they round to, and what a graph makes of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest

from specdec.convert.external_data import ExternalData
from specdec.convert.graph import Graph
from specdec.convert.htp.weights import F16, KINDS, LARGEST_BLOCK_SCALE, BlockLinear, Kind
from specdec.errors import InvalidInputError
from tests.convert.htp.chain import open_on_cpu

WEIGHTS = np.random.default_rng(0).standard_normal((128, 40)).astype(np.float32)
LARGEST_ERRORS = {"w8": 0.007, "w4": 0.12, "w4-b64": 0.11, "w4-b32": 0.10, "w4-b16": 0.09}


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_a_graph_multiplies_by_what_dequantise_says(tmp_path: Path, kind: Kind) -> None:
    linear = kind.round(WEIGHTS)
    dtype = np.float16 if kind == F16 else np.float32
    with ExternalData(tmp_path / "x.data") as data:
        graph = Graph("linear", data, opset=23)
        graph.input("x", dtype, [1, 8, 128])
        graph.output("y", dtype, [1, 8, 40])
        graph.node("MatMul", ["x", linear.weights(graph, "linear")], "y")
    onnx.save(graph.model(), tmp_path / "x.onnx")
    x = np.random.default_rng(1).standard_normal((1, 8, 128)).astype(dtype)
    (found,) = open_on_cpu(tmp_path / "x.onnx").run(None, {"x": x})
    expected = x.astype(np.float32) @ linear.dequantise()
    if kind.minima:
        sums = x.reshape(8, 4, 32).sum(axis=-1)
        found = found + sums @ linear.offset_linear().dequantise()  # type: ignore[attr-defined]
    tolerance = {True: 0.02, False: 1e-4}[kind == F16] + 0.1 * kind.minima
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_rounding_errors_and_scaled_outputs(kind: Kind) -> None:
    linear = kind.round(WEIGHTS)
    error = np.sqrt(np.mean((linear.dequantise() - WEIGHTS) ** 2))
    assert error < LARGEST_ERRORS.get(str(kind), 0.09)
    factors = np.linspace(0.5, 2, 40, dtype=np.float32)
    scaled = linear.scale_outputs(factors).dequantise()
    np.testing.assert_allclose(scaled, linear.dequantise() * factors, rtol=2e-3)
    assert Kind.parse(str(kind)) == kind
    assert linear.shape == WEIGHTS.shape
    assert (kind.round(WEIGHTS * 0).dequantise() == 0).all()


def test_block_scales_stay_within_what_the_kernel_multiplies_rightly() -> None:
    uneven = WEIGHTS * np.geomspace(1e-4, 1, 128, dtype=np.float32)[:, None]
    linear = Kind(4, 16).round(uneven)
    assert isinstance(linear, BlockLinear)
    assert linear.block_scales.min() >= 1
    assert linear.block_scales.max() == LARGEST_BLOCK_SCALE
    assert np.abs(linear.codes.astype(int)).max() * LARGEST_BLOCK_SCALE <= 128


def test_minima_hold_the_weights_of_a_q4_1_file_exactly() -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    stored = gguf.dequantize(gguf.quantize(np.ascontiguousarray(WEIGHTS.T), kind), kind)
    held = KINDS["w4-b32m"].round(np.ascontiguousarray(stored.T)).dequantise()
    np.testing.assert_allclose(held, stored.T, atol=1e-6)


def test_kinds_that_cannot_be() -> None:
    for bits, block, minima in ((5, None, False), (8, 32, False), (4, 48, False), (4, 16, True)):
        with pytest.raises(InvalidInputError):
            Kind(bits, block, minima)
    with pytest.raises(InvalidInputError, match="w4-b32"):
        Kind.parse("w3")
    with pytest.raises(InvalidInputError, match="no whole blocks of 64"):
        Kind(4, 64).round(WEIGHTS[:96])
