"""The op NormLinear: its definition, its optional operands, and its bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.ops.linear_graphs import (
    FORMATS,
    INSTRUCTION_SETS,
    Floats,
    Op,
    has,
    norm_linear_op,
    numpy_linear,
    numpy_norm,
    numpy_swiglu,
    random_matrix,
    rows_of,
)

WIDTH = 96


def gain_of(width: int) -> Floats:
    return np.random.default_rng(9).uniform(0.5, 2, width).astype(np.float32)


def run(op: Op, residual: Floats, update: Floats | None = None, threads: int = 1) -> list[Floats]:
    feeds = {"residual": residual[None]}
    if update is not None:
        feeds["update"] = update[None]
    return [y[0] for y in op.session(threads).run(None, feeds)]


def assert_same_bits(a: Floats, b: Floats) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("isa", ["auto", "plain", *INSTRUCTION_SETS])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("update", [True, False])
def test_definition(isa: str, form: int | str, update: bool) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    packed = random_matrix(1, form, 40, WIDTH)
    gain = gain_of(WIDTH)
    residual, added = rows_of(2, 11, WIDTH), rows_of(3, 11, WIDTH) if update else None
    op = norm_linear_op(packed, gain, update=update, isa=isa)
    y, new_residual, normed = run(op, residual, added)
    assert_same_bits(new_residual, residual if added is None else residual + added)
    expected = numpy_norm(new_residual, gain, 1e-5)
    np.testing.assert_allclose(normed, expected, rtol=1e-6)
    # The linear's definition holds for the very values that it rounds.
    linear = numpy_linear(normed, packed)[:, :40]
    np.testing.assert_allclose(y, linear, rtol=1e-6, atol=1e-6 * np.abs(linear).max())


@pytest.mark.parametrize("isa", ["auto", "plain", *INSTRUCTION_SETS])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("ffn", [16, 24, 70])
def test_swiglu(isa: str, form: int | str, ffn: int) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    packed = random_matrix(4, form, 2 * ffn, WIDTH, parts=2)
    gain = gain_of(WIDTH)
    op = norm_linear_op(packed, gain, activation="swiglu", isa=isa)
    # From small sums to those at which exp is clamped.
    factor = np.float32(10.0) ** np.arange(-3, 6, dtype=np.float32)[:, None]
    residual = rows_of(6, 9, WIDTH)
    y, _, normed = run(op, residual, residual * factor)
    assert y.shape == (9, ffn)
    expected = numpy_swiglu(numpy_linear(normed, packed), ffn)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", ["none", "swiglu"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_instruction_set_gives_the_same_bits(
    isa: str, activation: str, form: int | str
) -> None:
    if not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    for width in (32, 96, 576):
        packed = random_matrix(3, form, 72, width, parts=2 if activation == "swiglu" else 1)
        for rows in (1, 2, 8, 13):
            # Small gains too: the gates' sums lie on both sides of zero.
            gain = gain_of(width) * np.float32(10.0 ** (rows % 3 - 2))
            operands = rows_of(rows, rows, width), rows_of(rows + 1, rows, width)
            plain, found = (
                run(norm_linear_op(packed, gain, activation=activation, isa=name), *operands)
                for name in ("plain", isa)
            )
            for a, b in zip(plain, found, strict=True):
                assert_same_bits(a, b)


@pytest.mark.parametrize("activation", ["none", "swiglu"])
def test_a_row_is_computed_by_itself(activation: str) -> None:
    packed = random_matrix(5, 4, 96, WIDTH, parts=2)
    residual, update = rows_of(6, 40, WIDTH)[None], rows_of(7, 40, WIDTH)[None]
    session = norm_linear_op(packed, gain_of(WIDTH), activation=activation).session()

    def rows(begin: int, end: int) -> list[Floats]:
        feeds = {"residual": residual[:, begin:end], "update": update[:, begin:end]}
        return [y[0] for y in session.run(None, feeds)]

    single = [rows(i, i + 1) for i in range(40)]
    alone = [np.concatenate(parts) for parts in zip(*single, strict=True)]
    for count in range(1, 41):
        for a, b in zip(rows(0, count), alone, strict=True):
            assert_same_bits(a, b[:count])


@pytest.mark.parametrize("activation", ["none", "swiglu"])
@pytest.mark.parametrize("rows", [1, 8, 130])
def test_threads_do_not_change_bits(activation: str, rows: int) -> None:
    packed = random_matrix(5, 4, 800, 576, parts=2)
    operands = rows_of(6, rows, 576), rows_of(7, rows, 576)
    op = norm_linear_op(packed, gain_of(576), activation=activation)
    for a, b in zip(run(op, *operands, threads=1), run(op, *operands, threads=3), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize(
    "outputs", [["y"], ["y", "new_residual"], ["y", "", "normed"], ["y", "new_residual", "normed"]]
)
@pytest.mark.parametrize("update", [True, False])
def test_operands_that_may_be_absent(outputs: list[str], update: bool) -> None:
    packed = random_matrix(5, 4, 48, WIDTH)
    gain = gain_of(WIDTH)
    operands = rows_of(6, 3, WIDTH), rows_of(7, 3, WIDTH) if update else None
    names = ("y", "new_residual", "normed")
    whole = run(norm_linear_op(packed, gain, update=update), *operands)
    all_of_them = dict(zip(names, whole, strict=True))
    found = run(norm_linear_op(packed, gain, update=update, outputs=outputs), *operands)
    for name, value in zip(filter(None, outputs), found, strict=True):
        assert_same_bits(value, all_of_them[name])


@pytest.mark.parametrize("isa", ["auto", "plain"])
@pytest.mark.parametrize("first", [0, 3, 19, 20])
def test_rows_before_the_first_are_normalised_and_not_multiplied(isa: str, first: int) -> None:
    packed = random_matrix(5, 8, 48, WIDTH)
    op = norm_linear_op(packed, gain_of(WIDTH), isa=isa)
    residual, update = rows_of(6, 20, WIDTH), rows_of(7, 20, WIDTH)
    y, new_residual, normed = run(op, residual, update)
    from_first = replace(op, inputs={**op.inputs, "first_row": [1]}).session(2)
    feeds = {"residual": residual[None], "update": update[None]}
    found = from_first.run(None, {**feeds, "first_row": np.array([first])})
    for a, b in zip(found, (y[first:], new_residual, normed), strict=True):
        assert_same_bits(a[0], b)
    for wrong in (-1, 21):
        with pytest.raises(Exception, match=rf"first_row is {wrong}; it must be 0 to 20"):
            from_first.run(None, {**feeds, "first_row": np.array([wrong])})


def test_what_does_not_fit_is_refused_by_name() -> None:
    packed = random_matrix(5, 4, 48, WIDTH)
    gain = gain_of(WIDTH)
    op = norm_linear_op(packed, gain)
    refusals: list[tuple[dict[str, object], str]] = [
        ({"activation": "relu"}, r"NormLinear: activation is \"relu\"; it must be"),
        ({"activation": "swiglu", "outputs": 47}, r"outputs is 47; it must be a positive multiple"),
        ({"activation": "swiglu"}, r"48 outputs in 2 parts need \[4, blocks, 256\]"),
        ({"epsilon": -1.0}, r"NormLinear: epsilon must be 0 or more"),
    ]
    for attributes, message in refusals:
        with pytest.raises(Exception, match=message):
            replace(op, attributes={**op.attributes, **attributes}).session()
    with pytest.raises(Exception, match=r"gain has shape \[95\]; these weights need \[96\]"):
        norm_linear_op(packed, gain[:-1]).session()

    free = replace(op, inputs={**op.inputs, "residual": ["a", "b", "c"], "update": ["d", "e", "f"]})
    session = free.session()
    x = np.zeros((1, 2, WIDTH), np.float32)
    with pytest.raises(Exception, match=r"residual has shape \[1, 2, 64\]; .* \[1, S, 96\]"):
        session.run(None, {"residual": x[:, :, :64], "update": x})
    with pytest.raises(Exception, match=r"update has shape \[1, 1, 96\] and residual \[1, 2, 96\]"):
        session.run(None, {"residual": x, "update": x[:, :1]})
