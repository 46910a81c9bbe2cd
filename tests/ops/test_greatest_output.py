"""The op NormLinear where it gives the index of each row's greatest output alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from tests.convert.reference_ops import unpack_mixed
from tests.ops.linear_graphs import BLOCK, INSTRUCTION_SETS, TILE, Floats, has, rows_of
from tests.ops.one_graph import Array, node_of, session_of
from tests.ops.test_mixed_head import EPSILON, Head, random_head

OUTPUTS = 1000  # of which the last tile has 8


@dataclass
class Best:
    """A session of such a head that knows how far `fine` can move its outputs."""

    head: Head
    threads: int = 1
    isa: str = "auto"
    changed: dict[str, Array] = field(default_factory=dict)  # constants that are wrong on purpose
    size: float | None = None
    outputs: tuple[str, ...] = ("y", "best")

    @cached_property
    def spread(self) -> Floats:
        head = self.head
        middle = sum(
            unpack_mixed(head.codes, np.full_like(head.fine, byte), head.scales) / 2
            for byte in (0, 255)
        )
        return (np.linalg.norm(head.weights - middle, axis=1) * (1 + 1e-6)).astype(np.float32)

    @cached_property
    def session(self) -> object:
        head = self.head
        names = ["gain", "codes", "scales", "order", "ordered_gain", "fine"]
        constants = {name: getattr(head, name) for name in names}
        constants |= {"spread": self.spread, **self.changed}
        inputs = ["residual", "", "gain", "codes", "scales", "", "order", "ordered_gain", "fine"]
        scales = head.scales.view(np.float16).astype(np.float64)
        scales[:, : head.wide] *= 128 * 2**0.5
        scales[:, head.wide :] *= 90.5
        norms = np.sqrt(BLOCK * np.square(scales).sum(1))
        size = float(norms.max()) if self.size is None else self.size
        attributes = {"bits": 6, "outputs": head.outputs, "epsilon": EPSILON, "isa": self.isa}
        node = node_of(
            "NormLinear",
            [*inputs, "spread" if "spread" in constants else "", "best_only"],
            ["y", "", "", "best" if "best" in self.outputs else ""],
            size=size,
            **attributes,
        )
        shapes = {"residual": [1, "S", head.width], "best_only": [1]}
        types = {"best_only": TensorProto.INT64, "best": TensorProto.INT32}
        return session_of([node], shapes, self.outputs, constants, types, self.threads)

    def run(self, residual: Floats, best_only: int = 1) -> tuple[Floats, NDArray[np.int32]]:
        feeds = {"residual": residual[None], "best_only": np.array([best_only])}
        y, best = self.session.run(None, feeds)  # type: ignore[attr-defined]
        return y[0], best[0]


def argmax(outputs: Floats) -> NDArray[np.int64]:
    return np.asarray(outputs.argmax(1))  # the first of equal ones


@pytest.mark.parametrize("isa", ["auto", "plain", *INSTRUCTION_SETS])
@pytest.mark.parametrize(("blocks", "wide"), [(2, 1), (18, 2), (3, 3), (3, 0)])
def test_it_finds_what_comparing_all_finds(isa: str, blocks: int, wide: int) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    best = Best(random_head(1, blocks, wide, OUTPUTS), isa=isa)
    for rows in (1, 2, 3, 4, 5, 8, 13):
        residual = rows_of(rows, rows, best.head.width)
        exact, _ = best.run(residual, best_only=0)
        bounds, found = best.run(residual)
        np.testing.assert_array_equal(found, argmax(exact))
        if rows <= 4:
            assert (bounds >= exact).all()


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_nothing(threads: int) -> None:
    head = random_head(4, 18, 2, 5000)
    alone, together = Best(head), Best(head, threads=threads)
    for seed in range(20):
        residual = rows_of(seed, 1 + seed % 5, head.width)
        np.testing.assert_array_equal(together.run(residual)[1], alone.run(residual)[1])


def test_of_equal_outputs_the_first_is_found() -> None:
    head = random_head(2, 5, 2, OUTPUTS)
    residual = rows_of(3, 4, head.width)
    for _ in range(2):  # in another tile, then in the same tile as well
        winner = int(argmax(Best(head).run(residual, best_only=0)[0])[0])
        for place in (winner // 2, winner // 4 * 4 + (winner + 1) % 4):
            head = with_copy(head, winner, place)
        exact, _ = Best(head).run(residual, best_only=0)
        assert (exact[0] == exact[0].max()).sum() >= 3
        np.testing.assert_array_equal(Best(head, threads=3).run(residual)[1], argmax(exact))


def with_copy(head: Head, output: int, place: int) -> Head:
    """The head with one more output like ``output``."""
    changed = {name: getattr(head, name).copy() for name in ("codes", "fine", "scales")}
    for name, each in changed.items():
        by_output = 1 if name == "scales" else 4  # bytes, or words, in each 16 or 64
        values = each.reshape(len(each), -1, TILE * by_output)
        source = slice(output % TILE * by_output, (output % TILE + 1) * by_output)
        target = slice(place % TILE * by_output, (place % TILE + 1) * by_output)
        values[place // TILE, :, target] = values[output // TILE, :, source]
    return replace(head, **changed)


def decided_by_fine() -> tuple[Head, Floats]:
    """A head, all of whose outputs are alike but for number 485, and a row.

    Of that one the lower bits are as the row has its signs, so that it is the greatest; without
    them it is the least.
    """
    head = random_head(5, 4, 0, OUTPUTS)
    tiles, rng = len(head.codes), np.random.default_rng(6)
    signs = rng.choice([-1, 1], head.width)
    row = (signs * rng.uniform(1, 1.01, head.width)).astype(np.float32)

    def alike(bytes_: Array) -> Array:
        """The first output's, for all."""
        first = bytes_.reshape(tiles, -1, TILE, 4)[:1, :, :1]
        return np.tile(first, (tiles, 1, TILE, 1))

    codes, fine = alike(head.codes), alike(head.fine)
    # Of an input 16 half + 4 (2 h + odd) + j of a block.
    lower = np.where(signs > 0, 3, 0).reshape(4, 2, 2, 2, 4)
    half, odd = np.arange(2)[:, None, None, None], np.arange(2)[:, None]
    together = (lower << (4 * odd + 2 * half)).sum((1, 3))  # block, h, j
    fine[30, :, 5] = together.reshape(8, 4)
    scales = np.ones((tiles, 4, TILE), np.float16)
    head = replace(
        head,
        codes=codes.reshape(tiles, -1),
        fine=fine.reshape(tiles, -1),
        scales=scales.view(np.uint16),
        order=np.arange(head.width, dtype=np.int32),
        ordered_gain=np.ones(head.width, np.float32),
    )
    scales[30, :, 5] *= np.float16(0.97 if head.weights[0] @ row > 0 else 1.03)
    return head, row[None]


def test_bounds_are_needed() -> None:
    """Were they as narrow as nothing, what the lower bits decide would be missed."""
    head, residual = decided_by_fine()
    exact, _ = Best(head).run(residual, best_only=0)
    assert argmax(exact)[0] == 485
    assert Best(head).run(residual)[1][0] == 485
    blind = Best(head, changed={"spread": np.zeros(63 * TILE, np.float32)}, size=0.0)
    assert blind.run(residual)[1][0] != 485


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_has_no_greatest(value: float) -> None:
    head = random_head(1, 5, 2, OUTPUTS)
    residual = rows_of(2, 3, head.width)
    residual[1, 7] = value
    _, found = Best(head, threads=2).run(residual)
    exact, _ = Best(head).run(residual, best_only=0)
    assert found[1] == -1
    np.testing.assert_array_equal(found[[0, 2]], argmax(exact[[0, 2]]))


def test_the_others_outputs_are_as_ever() -> None:
    head = random_head(1, 5, 2, OUTPUTS)
    residual = rows_of(2, 3, head.width)
    np.testing.assert_array_equal(Best(head).run(residual, best_only=0)[0], head.run(residual)[0])


def test_where_nobody_reads_the_best_there_are_outputs() -> None:
    head = random_head(1, 5, 2, OUTPUTS)
    residual = rows_of(2, 3, head.width)
    feeds = {"residual": residual[None], "best_only": np.array([1])}
    session = Best(head, outputs=("y",)).session
    y = session.run(None, feeds)[0][0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(y, head.run(residual)[0])


def test_what_does_not_belong_together() -> None:
    head = random_head(1, 5, 2, OUTPUTS)
    with pytest.raises(Exception, match="spread has shape"):
        Best(head, changed={"spread": np.zeros(16, np.float32)}).run(rows_of(1, 1, head.width))
    feeds = {"residual": rows_of(1, 1, head.width)[None], "best_only": np.array([1, 1])}
    with pytest.raises(Exception, match="best_only"):
        Best(head).session.run(None, feeds)  # type: ignore[attr-defined]
