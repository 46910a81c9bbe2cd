"""The op Bridge: its definition, its bits, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.ops.linear_graphs import (
    FORMATS,
    INSTRUCTION_SETS,
    Floats,
    Op,
    bridge_op,
    fma,
    has,
    numpy_linear,
    numpy_norm,
    random_matrix,
    rows_of,
)

HIDDEN = 96
ONES = np.ones(HIDDEN, np.float32)


def op_of(form: int | str = 4, **attributes: object) -> Op:
    rng = np.random.default_rng(1)
    scale, bias = rng.standard_normal((2, HIDDEN)).astype(np.float32)
    return bridge_op(random_matrix(2, form, 40, 2 * HIDDEN), scale, bias, **attributes)


def run(op: Op, rows: int, *, threads: int = 1, **changed: Floats) -> list[Floats]:
    feeds = {name: rows_of(i, 20, HIDDEN) for i, name in enumerate(op.inputs) if i < 3 and name}
    feeds |= changed
    session = op.session(threads)
    return [y[0] for y in session.run(None, {k: v[None, :rows] for k, v in feeds.items()})]


@pytest.mark.parametrize("isa", ["auto", "plain", *INSTRUCTION_SETS])
@pytest.mark.parametrize("form", FORMATS)
def test_definition(isa: str, form: int | str) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    op, packed = op_of(form, isa=isa), random_matrix(2, form, 40, 2 * HIDDEN)
    y, new_residual = run(op, 11)
    residual, update, features = (rows_of(i, 20, HIDDEN)[:11] for i in range(3))
    total = residual + update
    scale, bias = (op.constants[name].astype(np.float32) for name in ("scale", "bias"))
    np.testing.assert_array_equal(new_residual, fma(total, scale, bias))
    read = np.concatenate([numpy_norm(x, ONES, 1e-5) for x in (total, features)], axis=1)
    expected = numpy_linear(read, packed)[:, :40]
    # A value between two of 8 bits may be rounded either way: one step of one weight.
    np.testing.assert_allclose(y, expected, atol=2e-2 * np.abs(expected).max())
    assert np.median(np.abs(y - expected)) < 1e-6 * np.abs(expected).max()
    without = replace(op, inputs={("" if n == "update" else n): s for n, s in op.inputs.items()})
    for a, b in zip(run(without, 11), run(op, 11, update=np.zeros_like(update)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMATS)
def test_bits_depend_on_the_row_alone(form: int | str) -> None:
    alone = [run(op_of(form), 20)] + [
        run(op_of(form, isa=isa), 20) for isa in ("plain", *INSTRUCTION_SETS) if has(isa)
    ]
    alone.append(run(op_of(form), 20, threads=3))
    for found in alone[1:]:
        for a, b in zip(found, alone[0], strict=True):
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
    for rows in (1, 7, 9):
        for a, b in zip(run(op_of(form), rows), alone[0], strict=True):
            np.testing.assert_array_equal(a.view(np.uint32), b[:rows].view(np.uint32))


def test_what_does_not_fit_is_refused_by_name() -> None:
    op = op_of()
    scale = op.constants["scale"][:-1]
    with pytest.raises(Exception, match=r"Bridge: scale has shape \[95\]; .* \[96\]"):
        replace(op, constants={**op.constants, "scale": scale}).session()
    odd = random_matrix(2, 4, 40, 96)
    with pytest.raises(Exception, match=r"codes have 3 blocks; two norms .* even number"):
        bridge_op(odd, ONES, ONES).session()
    free = replace(op, inputs={**op.inputs, "residual": [1, "a", "b"], "features": [1, "c", "d"]})
    with pytest.raises(Exception, match=r"features has shape \[1, 4, 64\] and residual"):
        run(free, 4, features=rows_of(2, 4, 64))
    with pytest.raises(Exception, match=r"residual has shape \[1, 4, 64\]; .* \[1, S, 96\]"):
        run(free, 4, residual=rows_of(2, 4, 64))
