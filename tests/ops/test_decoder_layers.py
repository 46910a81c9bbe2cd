"""The op DecoderLayers: the bits of the nodes that it stands for, in any number of threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.ops.attention_graphs import Cache, chain
from tests.ops.layer_graphs import (
    FIXED,
    Sizes,
    a_node_each,
    caches,
    one_node,
    one_past,
    session,
    step,
)
from tests.ops.linear_graphs import BYTES, Floats, has, rows_of
from tests.ops.one_graph import INSTRUCTION_SETS, Array


def assert_same_bits(found: list[Floats], expected: list[Floats]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def compare(sizes: Sizes, *, update: bool, threads: int, isa: str = "auto") -> None:
    weights = sizes.weights()
    whole = session(sizes, one_node(sizes, update, isa=isa), weights, threads)
    apart = session(sizes, a_node_each(sizes, update, isa=isa), weights)
    for past, width in ((0, 1), (7, 1), (130, 3), (40, 8), (3, 17), (60, 130)):
        before = caches(sizes, [past])
        found = step(whole, sizes, chain(past, width), before, update)
        assert np.isfinite(found[0]).all()
        assert np.isfinite(found[1]).all()
        assert_same_bits(found, step(apart, sizes, chain(past, width), before, update))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize(
    "forms", [(4, 4, 4, 4), (8, 4, 4, 8), (4, 8, 8, 4), (BYTES,) * 4, (4, BYTES, 8, BYTES)], ids=str
)
def test_the_bits_of_the_nodes_it_stands_for(
    forms: tuple[int | str, ...], update: bool, threads: int
) -> None:
    compare(Sizes(layers=3, forms=forms), update=update, threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("bridges", [(1,), (0, 2), (0, 1, 2)], ids=str)
def test_the_bits_of_bridges_between(bridges: tuple[int, ...], threads: int) -> None:
    compare(Sizes(layers=3, bridges=bridges), update=True, threads=threads)


def test_a_bridge_before_all_layers_takes_what_there_is() -> None:
    compare(Sizes(layers=1, bridges=(0,)), update=False, threads=2)


def test_bridges_need_features() -> None:
    sizes = Sizes(layers=2, bridges=(1,))
    (node,) = one_node(sizes, False)
    node.input[FIXED.index("features")] = ""
    run = session(sizes, [node], sizes.weights())
    with pytest.raises(Exception, match="bridges read features, and there are none"):
        step(run, replace(sizes, bridges=()), chain(5, 2), caches(sizes, [5]), False)


@pytest.mark.parametrize("isa", ["plain", *INSTRUCTION_SETS])
def test_on_every_instruction_set(isa: str) -> None:
    if isa in INSTRUCTION_SETS and not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    compare(Sizes(layers=1, heads=4, kv_heads=4, head_dim=32), update=True, threads=2, isa=isa)


def test_weights_that_fill_huge_pages() -> None:
    """From 4 MB on they are copied, where the system gives such pages."""
    sizes = Sizes(hidden=640, heads=10, kv_heads=5, head_dim=64, ffn=1600)
    weights = sizes.weights()
    assert sum(value.nbytes for value in weights.values()) > 5 << 20
    compare(sizes, update=True, threads=2)


def test_rows_of_several_sequences() -> None:
    sizes = Sizes(sequences=3)
    rows = np.concatenate([chain(50, 4, 2), chain(9, 1, 0), chain(0, 6, 1)], axis=1)
    rows[3] += np.where(rows[3] < 0, 0, [0] * 5 + [5] * 6)  # parents are rows of the step
    weights, before = sizes.weights(), caches(sizes, [9, 0, 50])
    whole = session(sizes, one_node(sizes, False), weights, 2)
    apart = session(sizes, a_node_each(sizes, False), weights)
    found = step(whole, sizes, rows, before, False)
    assert_same_bits(found, step(apart, sizes, rows, before, False))


def test_layers_of_a_longer_cache() -> None:
    """As an attached drafter reads some of its target's: the others are left alone."""
    sizes = Sizes(layers=2, cache_layers=(3, 1))
    weights, longer = sizes.weights(), [Cache(sizes.attention).fill(i, [40]) for i in range(5)]
    whole = session(sizes, one_node(sizes, False), weights, 2)
    apart = session(sizes, a_node_each(sizes, False), weights)
    residual, update, *present = step(whole, sizes, chain(40, 3), longer, False)
    expected = step(apart, sizes, chain(40, 3), [longer[3], longer[1]], False)
    found = [residual, update, *present[6:8], *present[2:4]]
    assert_same_bits(found, expected)
    for layer in (0, 2, 4):
        np.testing.assert_array_equal(present[2 * layer], longer[layer].tiles)
        np.testing.assert_array_equal(present[2 * layer + 1], longer[layer].value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0,), r"cache_layers is \[1\], not \[2\]"),
        ((0, -1), "cache_layers has -1"),
    ],
    ids=str,
)
def test_layers_of_the_cache_that_are_none(given: tuple[int, ...], message: str) -> None:
    sizes = Sizes(cache_layers=given)
    with pytest.raises(Exception, match=message):
        session(sizes, one_node(sizes, True), sizes.weights())


def test_a_step_again_and_again() -> None:
    """Threads that come late, or not at all, change nothing: 400 steps of the same bits."""
    sizes = Sizes(layers=4)
    weights, before = sizes.weights(), caches(sizes, [20])
    run = session(sizes, one_node(sizes, True), weights, 4)
    first = step(run, sizes, chain(20, 2), before, True)
    for _ in range(400):
        assert_same_bits(step(run, sizes, chain(20, 2), before, True), first)


def test_no_rows() -> None:
    sizes = Sizes()
    run = session(sizes, one_node(sizes, True), sizes.weights())
    before = caches(sizes, [20])
    feeds = {
        "residual": np.zeros((1, 0, sizes.hidden), np.float32),
        "update": np.zeros((1, 0, sizes.hidden), np.float32),
        "rows": np.zeros((4, 0), np.int32),
        **dict(zip(("cosine", "sine"), sizes.attention.tables(), strict=True)),
    }
    feeds["past"] = one_past(before)
    residual, update, present = run.run(None, feeds)
    assert residual.shape == update.shape == (1, 0, sizes.hidden)
    np.testing.assert_array_equal(present, feeds["past"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"bridges": 2}, "bridges is 2; bit i is for layer i of 1"),
        ({"bridges": -1}, "bridges is -1"),
        ({"heads": 3}, "heads is 3 and kv_heads 2; heads must be a positive multiple"),
        ({"heads": 16}, "head_dim is 6; it must be a multiple of 8, at most 256"),
        ({"heads": 10}, "attention_output has 96 inputs, which are not 10 heads"),
        ({"heads": 2}, "codes has shape .* need"),
        ({"epsilon": -1.0}, "epsilon must be 0 or more"),
        ({"isa": "sse9"}, "sse9"),
    ],
    ids=str,
)
def test_attributes_that_do_not_fit(attributes: dict[str, object], message: str) -> None:
    sizes = Sizes(layers=1)
    with pytest.raises(Exception, match=message):
        session(sizes, one_node(sizes, True, **attributes), sizes.weights())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("attention_gain.0", (64,), r"codes has shape|inputs, not"),
        ("ffn_gain.1", (64,), r"ffn_gain is \[64\], not \[96\]"),
        ("down.1.codes", (6, 2, 256), r"codes has shape|scales has shape"),
    ],
)
def test_weights_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    sizes = Sizes()
    weights = sizes.weights()
    weights[name] = np.zeros(shape, weights[name].dtype)
    with pytest.raises(Exception, match=message):
        session(sizes, one_node(sizes, True), weights)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("residual", (1, 2, 64), r"residual has shape \[1, 2, 64\]; these weights need"),
        ("update", (1, 3, 96), r"update is \[1, 3, 96\], not \[1, 2, 96\]"),
        ("past", (2, 2, 1, 3, 224, 24), r"past is \[2, 2, 1, 3, 224, 24\], not \[2 or more"),
        ("past", (1, 2, 1, 2, 224, 24), r"past is \[1, 2, 1, 2, 224, 24\], not \[2 or more"),
        ("past", (2, 2, 1, 2, 224, 16), r"past is .*, head_dim 24\]"),
        ("past", (2, 2, 2, 224, 24), r"past is \[2, 2, 2, 224, 24\], not \[2 or more"),
        ("past", (2, 2, 1, 2, 100, 24), r"the cache has room for 100 columns"),
        ("sine", (10, 12), r"sine is \[10, 12\], not \[224, 12\]"),
        ("cosine", (224, 10), r"cosine is \[224, 10\], not \[224, 12\]"),
        ("rows", (3, 2), r"rows is \[3, 2\], not \[4, 2\]"),
    ],
)
def test_inputs_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    sizes = Sizes()
    run = session(sizes, one_node(sizes, True), sizes.weights())
    cosine, sine = sizes.attention.tables()
    feeds: dict[str, Array] = {
        "residual": rows_of(2, 2, sizes.hidden)[None],
        "update": rows_of(3, 2, sizes.hidden)[None],
        "rows": chain(5, 2),
        "cosine": cosine,
        "sine": sine,
    }
    feeds["past"] = one_past(caches(sizes, [5]))
    feeds[name] = np.zeros(shape, feeds[name].dtype)
    with pytest.raises(Exception, match=f"DecoderLayers: {message}"):
        run.run(None, feeds)


def test_a_row_that_is_wrong_is_named() -> None:
    sizes = Sizes()
    run = session(sizes, one_node(sizes, False), sizes.weights())
    rows = chain(5, 2)
    rows[3, 1] = 1  # its own parent
    with pytest.raises(Exception, match="row 1"):
        step(run, sizes, rows, caches(sizes, [5]), False)
