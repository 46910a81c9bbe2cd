"""The op NormLinear with a matrix of 8 and 6 bits: its definition, and its bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from tests.convert.reference_ops import unpack_mixed
from tests.ops.linear_graphs import BLOCK, INSTRUCTION_SETS, TILE, Floats, fma, has, rows_of
from tests.ops.one_graph import Array, node_of, session_of

OUTPUTS = 70
EPSILON = 1e-5


@dataclass(frozen=True)
class Head:
    """A random matrix behind a norm."""

    codes: Array  # [tiles, bytes]
    fine: Array  # [tiles, 128 (blocks - wide)]
    scales: NDArray[np.uint16]  # [tiles, blocks, 16]
    order: NDArray[np.int32]
    ordered_gain: Floats
    gain: Floats
    wide: int
    outputs: int

    @property
    def width(self) -> int:
        return len(self.order)

    @property
    def weights(self) -> Array:
        """[outputs, inputs], float64."""
        return unpack_mixed(self.codes, self.fine, self.scales)

    def run(
        self, residual: Floats, update: Floats | None = None, threads: int = 1, isa: str = "auto"
    ) -> list[Floats]:
        """y, new_residual and normed."""
        fed = {"residual": residual, "update": update}
        inputs = ["residual", "update" if update is not None else "", "gain", "codes", "scales"]
        outputs = ["y", "new_residual", "normed"]
        attributes = {"bits": 6, "outputs": self.outputs, "epsilon": EPSILON, "isa": isa}
        inputs += ["", "order", "ordered_gain", "fine"]
        node = node_of("NormLinear", inputs, outputs, **attributes)
        shapes = {name: [1, "S", self.width] for name, x in fed.items() if x is not None}
        constants = {
            name: getattr(self, name)
            for name in ("gain", "codes", "scales", "order", "ordered_gain", "fine")
        }
        session = session_of([node], shapes, outputs, constants, {}, threads)
        feeds = {name: x[None] for name, x in fed.items() if x is not None}
        return [y[0] for y in session.run(None, feeds)]


def random_head(seed: int, blocks: int = 5, wide: int = 2, outputs: int = OUTPUTS) -> Head:
    rng = np.random.default_rng(seed)
    tiles, width = -(-outputs // TILE), blocks * BLOCK
    codes = rng.integers(0, 256, (tiles, 512 * wide + 256 * (blocks - wide)), dtype=np.uint8)
    codes[rng.random(codes.shape) < 0.2] = 0
    codes[rng.random(codes.shape) < 0.2] = 255
    return Head(
        codes,
        rng.integers(0, 256, (tiles, 128 * (blocks - wide)), dtype=np.uint8),
        rng.uniform(-1, 1, (tiles, blocks, TILE)).astype(np.float16).view(np.uint16),
        rng.permutation(width).astype(np.int32),
        rng.uniform(0.5, 2, width).astype(np.float32),
        rng.uniform(0.5, 2, width).astype(np.float32),
        wide,
        outputs,
    )


def round_rows(x: Floats) -> tuple[Floats, Floats]:
    """Codes [rows, blocks, 32] and steps [rows, blocks]."""
    blocks = x.reshape(len(x), -1, BLOCK)
    s = np.abs(blocks).max(axis=2) / np.float32(127)
    return np.rint(blocks / np.where(s == 0, np.float32(np.inf), s)[:, :, None]), s


def numpy_head(x: Floats, head: Head) -> Floats:
    """Of rows that are ordered and scaled, float32, in the order in which the op adds."""
    weights = head.weights
    halves = head.scales.view(np.float16).astype(np.float32)
    scale = halves.transpose(0, 2, 1).reshape(-1, x.shape[1] // BLOCK)
    codes, s = round_rows(x)
    split = head.wide * BLOCK
    rounded = (codes * s[:, :, None]).reshape(x.shape).astype(np.float32)
    left_codes, left_s = round_rows(x[:, :split] - rounded[:, :split])
    parts = [(b, codes[:, b], s[:, b]) for b in range(head.wide)]
    parts += [(b, left_codes[:, b], left_s[:, b]) for b in range(head.wide)]
    parts += [(b, codes[:, b], s[:, b]) for b in range(head.wide, x.shape[1] // BLOCK)]
    total = np.zeros((len(x), len(weights)), np.float32)
    for block, q, step in parts:
        divisor = np.where(scale[:, block] == 0, 1, scale[:, block])[:, None]
        whole = np.rint(weights[:, block * BLOCK : (block + 1) * BLOCK] / divisor)
        dot = (q.astype(np.float64) @ whole.T).astype(np.float32)
        total = fma(step[:, None] * scale[None, :, block], dot, total)
    return total[:, :OUTPUTS]


def assert_same_bits(a: Floats, b: Floats) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("isa", ["auto", "plain", *INSTRUCTION_SETS])
@pytest.mark.parametrize(("blocks", "wide"), [(2, 1), (5, 2), (18, 2), (3, 3), (3, 0)])
@pytest.mark.parametrize("update", [True, False])
def test_definition(isa: str, blocks: int, wide: int, update: bool) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    head = random_head(1, blocks, wide)
    residual = rows_of(2, 11, head.width)
    added = rows_of(3, 11, head.width) if update else None
    y, total, normed = head.run(residual, added, isa=isa)
    assert_same_bits(total, residual if added is None else residual + added)
    factor = 1 / np.sqrt((total.astype(np.float64) ** 2).mean(1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(normed, total * factor * head.gain, rtol=1e-5)
    x = (total * factor.astype(np.float32))[:, head.order] * head.ordered_gain
    expected = numpy_head(x.astype(np.float32), head)
    scale = np.abs(expected).max()
    # The factor's last digit may round a value the other way: what that leaves is rounded again
    # only of the first blocks.
    np.testing.assert_allclose(y, expected, atol=2e-3 * scale)
    assert np.median(np.abs(y - expected)) < 1e-5 * scale


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    if not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    for blocks, wide in ((2, 1), (18, 2)):
        head = random_head(3, blocks, wide)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 13):
            operands = rows_of(rows, rows, head.width), rows_of(rows + 1, rows, head.width)
            for a, b in zip(
                head.run(*operands, isa="plain"), head.run(*operands, isa=isa), strict=True
            ):
                assert_same_bits(a, b)


@pytest.mark.parametrize("rows", [1, 8, 40])
def test_neither_other_rows_nor_threads_change_bits(rows: int) -> None:
    head = random_head(5, 18, 2)
    residual, update = rows_of(6, rows, head.width), rows_of(7, rows, head.width)
    together = head.run(residual, update)
    for a, b in zip(together, head.run(residual, update, threads=3), strict=True):
        assert_same_bits(a, b)
    for row in range(rows):
        alone = head.run(residual[row : row + 1], update[row : row + 1])
        for a, b in zip(together, alone, strict=True):
            assert_same_bits(a[row : row + 1], b)


def test_what_rounding_leaves_of_the_first_blocks_counts() -> None:
    """Its outputs are nearer to those of unrounded rows than a single rounding's would be."""
    head = random_head(8, 2, 2)
    residual = rows_of(9, 20, head.width)
    y, _, normed = head.run(residual)
    x = ((normed / head.gain)[:, head.order] * head.ordered_gain).astype(np.float64)
    weights = head.weights[:OUTPUTS]
    exact = x @ weights.T
    codes, s = round_rows(x.astype(np.float32))
    once = (codes * s[:, :, None]).reshape(x.shape) @ weights.T
    error, of_once = (np.sqrt(np.mean((z - exact) ** 2)) for z in (y, once))
    assert error < 0.02 * of_once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": np.zeros(160, np.int32)}, r"order\[1\] is 0; each input has to be there once"),
        ({"order": np.arange(160, dtype=np.int32) - 1}, r"order\[0\] is -1"),
        ({"order": np.arange(64, dtype=np.int32)}, "order has shape"),
        ({"ordered_gain": np.ones(64, np.float32)}, "ordered_gain"),
        ({"codes": np.zeros((5, 100), np.uint8)}, "6 bits and 70 outputs need"),
        ({"codes": np.zeros((5, 6 * 512), np.uint8)}, "6 bits and 70 outputs need"),
        ({"codes": np.zeros((4, 1792), np.uint8)}, "6 bits and 70 outputs need"),
        ({"fine": np.zeros((5, 128), np.uint8)}, "fine has shape"),
        ({"scales": np.zeros((5, 5, 8), np.uint16)}, "6 bits and 70 outputs need"),
    ],
)
def test_what_does_not_belong_together(change: dict[str, Array], message: str) -> None:
    head = replace(random_head(1), **change)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=message):
        head.run(rows_of(2, 1, 160))


def test_no_linear_takes_it() -> None:
    head = random_head(1)
    node = node_of("Linear", ["x", "codes", "scales"], ["y"], bits=6, outputs=OUTPUTS)
    constants = {"codes": head.codes, "scales": head.scales}
    with pytest.raises(Exception, match="6 bits are for the head that NormLinear computes"):
        session_of([node], {"x": [1, "S", head.width]}, ["y"], constants, {}, 1)


def look_up(head: Head, tokens: NDArray[np.int64]) -> Floats:
    node = node_of(
        "Embedding",
        ["tokens", "codes", "scales", "order", "factors", "fine"],
        ["y"],
        bits=6,
        outputs=OUTPUTS,
    )
    constants = {
        "codes": head.codes,
        "scales": head.scales,
        "order": head.order,
        "factors": head.ordered_gain,
        "fine": head.fine,
    }
    types = {"tokens": TensorProto.INT64}
    session = session_of([node], {"tokens": [1, "S"]}, ["y"], constants, types, 1)
    found: Floats = session.run(None, {"tokens": tokens[None]})[0][0]
    return found


@pytest.mark.parametrize(("blocks", "wide"), [(2, 1), (5, 2), (3, 3), (3, 0)])
def test_an_embedding_that_is_tied_to_it(blocks: int, wide: int) -> None:
    head = random_head(4, blocks, wide)
    expected = np.zeros((OUTPUTS, head.width))
    expected[:, head.order] = head.weights[:OUTPUTS] * head.ordered_gain
    tokens = np.random.default_rng(2).permutation(OUTPUTS)
    np.testing.assert_allclose(look_up(head, tokens), expected[tokens], rtol=1e-6)
    with pytest.raises(Exception, match=r"order\[1\] is 0; each input has to be there once"):
        look_up(replace(head, order=np.zeros(head.width, np.int32)), tokens)
