"""The op Linear: its definition, and that a row's bits depend on the row and the matrix alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.ops.linear_graphs import (
    FORMATS,
    INSTRUCTION_SETS,
    Floats,
    Op,
    Packed,
    has,
    linear_op,
    numpy_linear,
    random_matrix,
    rows_of,
)

SHAPES = [(16, 32), (40, 96), (7, 64), (200, 576), (33, 1536)]


def run(op: Op, x: Floats, threads: int = 1) -> Floats:
    return op.session(threads).run(None, {"x": x[None]})[0][0]


def assert_same_bits(a: Floats, b: Floats) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("isa", ["auto", "plain", *INSTRUCTION_SETS])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_definition(isa: str, form: int | str, outputs: int, inputs: int) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    packed = random_matrix(4, form, outputs, inputs)
    x = rows_of(1, 5, inputs)
    expected = numpy_linear(x, packed)[:, :outputs]
    found = run(linear_op(packed, isa=isa), x)
    assert found.shape == (5, outputs)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_instruction_set_gives_the_same_bits(isa: str, form: int | str) -> None:
    if not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    for outputs, inputs in SHAPES:
        packed = random_matrix(3, form, outputs, inputs)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 13):
            x = rows_of(rows, rows, inputs)
            plain = run(linear_op(packed, isa="plain"), x)
            assert_same_bits(run(linear_op(packed, isa=isa), x), plain)


@pytest.mark.parametrize("isa", ["plain", *INSTRUCTION_SETS])
@pytest.mark.parametrize("form", FORMATS)
def test_extremes_do_not_overflow(isa: str, form: int | str) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    packed = random_matrix(3, form, 16, 64)
    ends = 15 if packed.bits == 4 else 255
    for code in (0, ends):
        byte = code * 17 if packed.bits == 4 else code
        whole = np.full_like(packed.whole, code if packed.bits == 4 else code - 128)
        full = replace(packed, codes=np.full_like(packed.codes, byte), whole=whole)
        for sign in (-1, 1):
            x = np.full((2, 64), sign * 3, np.float32)
            expected = numpy_linear(x, full)
            found = run(linear_op(full, isa=isa), x)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_is_computed_by_itself(form: int | str) -> None:
    packed = random_matrix(5, form, 90, 160)
    x = rows_of(6, 40, 160)
    session = linear_op(packed).session()
    alone = np.concatenate([session.run(None, {"x": x[None, i : i + 1]})[0][0] for i in range(40)])
    for rows in range(1, 41):
        assert_same_bits(session.run(None, {"x": x[None, :rows]})[0][0], alone[:rows])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1, 8, 130])
def test_threads_do_not_change_bits(form: int | str, rows: int) -> None:
    packed = random_matrix(5, form, 1000, 576)
    x = rows_of(6, rows, 576)
    op = linear_op(packed)
    assert_same_bits(run(op, x, threads=1), run(op, x, threads=3))


def test_one_session_in_two_threads() -> None:
    packed = random_matrix(5, 4, 500, 320)
    session = linear_op(packed).session(2)
    inputs = [rows_of(seed, 9, 320) for seed in range(2)]
    expected = [run(linear_op(packed), x) for x in inputs]

    def often(i: int) -> bool:
        runs = (session.run(None, {"x": inputs[i][None]})[0][0] for _ in range(50))
        return all(np.array_equal(y, expected[i]) for y in runs)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(often, range(2))) == [True, True]


@pytest.mark.parametrize("isa", ["plain", *INSTRUCTION_SETS])
def test_numbers_that_are_none_stay_in_their_row(isa: str) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    packed = random_matrix(5, 8, 32, 64)
    x = rows_of(6, 4, 64)
    clean = run(linear_op(packed, isa=isa), x)
    for value in (np.nan, np.inf):
        x[1, 40] = value
        found = run(linear_op(packed, isa=isa), x)
        assert not np.isfinite(found[1]).any()
        assert_same_bits(found[[0, 2, 3]], clean[[0, 2, 3]])


def test_tiny_values_and_no_rows() -> None:
    packed = random_matrix(5, 4, 16, 32)
    x = np.zeros((3, 32), np.float32)
    x[1] = np.float32(1e-45)  # max / 127 is no number but zero
    x[2] = np.float32(1e-30)
    found = run(linear_op(packed), x)
    assert not found[:2].any()
    expected = numpy_linear(x, packed)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-32)
    assert run(linear_op(packed), x[:0]).shape == (0, 16)


def altered(packed: Packed, **changes: object) -> Op:
    op = linear_op(packed)
    constants = {k: v for k, v in changes.items() if k in ("codes", "scales")}
    attributes = {k: v for k, v in changes.items() if k not in constants}
    return replace(
        op,
        attributes={**op.attributes, **attributes},
        constants={**op.constants, **constants},  # type: ignore[dict-item]
    )


def test_what_does_not_fit_is_refused_by_name() -> None:
    packed = random_matrix(5, 4, 40, 64)
    eight = random_matrix(5, 8, 40, 64)
    refusals: list[tuple[dict[str, object], str]] = [
        ({"bits": 5}, r"Linear: bits is 5; it must be 4, 6 or 8"),
        ({"outputs": 0}, r"Linear: outputs is 0; it must be a positive"),
        ({"outputs": 60}, r"codes has shape \[3, 2, 256\]; 4 bits and 60 outputs need \[4, bl"),
        ({"bits": 8}, r"codes has shape \[3, 2, 256\]; 8 bits and 40 outputs need \[3, .*512\]"),
        ({"codes": packed.codes[0]}, r"codes has shape \[2, 256\]"),
        ({"codes": packed.codes[:, :1]}, r"scales has shape \[3, 2, 2, 16\]; codes .* need \[3, 1"),
        ({"scales": eight.scales}, r"scales has shape \[3, 2, 16\]; codes of shape"),
        ({"isa": "sse"}, r"isa is \"sse\"; it must be"),
    ]
    for changes, message in refusals:
        with pytest.raises(Exception, match=message):
            altered(packed, **changes).session()
    for missing in ("bits", "outputs"):
        op = linear_op(packed)
        rest = {name: value for name, value in op.attributes.items() if name != missing}
        with pytest.raises(Exception, match=f"attribute {missing} "):
            replace(op, attributes=rest).session()
    op = linear_op(packed)
    fed = {**op.inputs, "codes": list(packed.codes.shape)}
    with pytest.raises(Exception, match=r"Linear: input codes must be an initializer"):
        replace(op, inputs=fed).session()


@pytest.mark.parametrize(
    "shape", [(1, 2, 96), (2, 2, 64), (2, 64), (1, 1, 2, 64), (1, 1, 1, 1, 64)]
)
def test_inputs_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    op = linear_op(random_matrix(5, 4, 40, 64))
    free: list[int | str] = [f"d{i}" for i in range(len(shape))]
    session = replace(op, inputs={**op.inputs, "x": free}).session()
    with pytest.raises(Exception, match=r"the_node.*Linear: (x has shape|an input has 5 dim)"):
        session.run(None, {"x": np.zeros(shape, np.float32)})
