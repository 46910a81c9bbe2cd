"""The op DecoderLayers: the bits of the nodes that it stands for, in any number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from tests.ops import attention_graphs
from tests.ops.attention_graphs import Cache, chain
from tests.ops.linear_graphs import BYTES, Floats, has, random_matrix, rows_of
from tests.ops.one_graph import INSTRUCTION_SETS, Array, node_of, session_of

Ints = NDArray[np.int32]
FIXED = ("residual", "update", "rows", "cosine", "sine", "features")


@dataclass(frozen=True)
class Sizes:
    layers: int = 2
    hidden: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 24
    ffn: int = 160
    # Of qkv, attention_output, gated, down
    forms: tuple[int | str, ...] = (4, 4, 4, 4)
    sequences: int = 1
    capacity: int = 224
    bridges: tuple[int, ...] = ()
    cache_layers: tuple[int, ...] = ()  # of each layer; none: its own

    @property
    def mixed(self) -> int:
        return self.heads * self.head_dim

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attention(self) -> attention_graphs.Shape:
        return attention_graphs.Shape(
            *(self.heads, self.kv_heads, self.head_dim),
            *(self.sequences, self.capacity, self.capacity),
        )

    def weights(self) -> dict[str, Array]:
        """By name and layer, in the order of the op's inputs."""
        found: dict[str, Array] = {}
        rng = np.random.default_rng(5)

        def matrix(name: str, form: int | str, outputs: int, inputs: int, parts: int = 1) -> None:
            packed = random_matrix(len(found), form, outputs, inputs, parts)
            # Of a size that leaves the residual stream as it was, roughly.
            if form == BYTES:
                scales = packed.scales.copy()
                units = (scales[:, 0].astype(np.uint32) << 16).view(np.float32)
                units = units * np.float32(0.0001 / np.sqrt(inputs))
                scales[:, 0] = units.view(np.uint32) >> 16
            else:
                halves = packed.scales.view(np.float16) * np.float16(0.1 / np.sqrt(inputs))
                scales = halves.view(np.uint16)
            found[f"{name}.codes"], found[f"{name}.scales"] = packed.codes, scales

        def gain(name: str) -> None:
            found[name] = rng.uniform(0.5, 2, self.hidden).astype(np.float32)

        for layer in range(self.layers):
            gain(f"attention_gain.{layer}")
            matrix(f"qkv.{layer}", self.forms[0], self.qkv, self.hidden)
            matrix(f"attention_output.{layer}", self.forms[1], self.hidden, self.mixed)
            gain(f"ffn_gain.{layer}")
            matrix(f"gated.{layer}", self.forms[2], 2 * self.ffn, self.hidden, parts=2)
            matrix(f"down.{layer}", self.forms[3], self.hidden, self.ffn)
            if layer in self.bridges:
                for name in (f"bridge_scale.{layer}", f"bridge_bias.{layer}"):
                    found[name] = rng.standard_normal(self.hidden).astype(np.float32)
                matrix(f"bridge.{layer}", self.forms[0], self.hidden, 2 * self.hidden)
        return found


def caches_of(sizes: Sizes, kind: str) -> list[str]:
    return [f"{kind}_{part}.{layer}" for layer in range(sizes.layers) for part in ("key", "value")]


def one_node(sizes: Sizes, update: bool, **attributes: object) -> list[NodeProto]:
    absent = {"update": not update, "features": not sizes.bridges}
    inputs = ["" if absent.get(name) else name for name in FIXED]
    inputs += ["past", "cache_layers" if sizes.cache_layers else "", *sizes.weights()]
    outputs = ["new_residual", "new_update", "present"]
    values = {"layers": sizes.layers, "heads": sizes.heads, "kv_heads": sizes.kv_heads}
    values |= {"epsilon": 1e-5, "bridges": sum(1 << layer for layer in sizes.bridges)}
    return [node_of("DecoderLayers", inputs, outputs, **values | attributes)]


def a_node_each(sizes: Sizes, update: bool, **attributes: object) -> list[NodeProto]:
    nodes: list[NodeProto] = []

    def node(op: str, inputs: list[str], results: list[str], /, **values: object) -> None:
        nodes.append(node_of(op, inputs, results, **values | attributes))

    def packed(name: str) -> list[str]:
        return [f"{name}.codes", f"{name}.scales"]

    x, added = "residual", "update" if update else ""
    for i in range(sizes.layers):
        end = i == sizes.layers - 1
        if i in sizes.bridges:
            node(
                "Bridge",
                [
                    *(x, added, "features", f"bridge_scale.{i}", f"bridge_bias.{i}"),
                    *packed(f"bridge.{i}"),
                ],
                [f"bridged_update.{i}", f"bridged.{i}"],
                bits=8 if sizes.forms[0] == 8 else 4,
                outputs=sizes.hidden,
                epsilon=1e-5,
            )
            x, added = f"bridged.{i}", f"bridged_update.{i}"
        node(
            "NormLinear",
            [x, added, f"attention_gain.{i}", *packed(f"qkv.{i}")],
            [f"qkv_out.{i}", f"first.{i}"],
            bits=8 if sizes.forms[0] == 8 else 4,
            outputs=sizes.qkv,
            epsilon=1e-5,
        )
        node(
            "CachedAttention",
            [f"qkv_out.{i}", f"past_key.{i}", f"past_value.{i}", "rows", "cosine", "sine"],
            [f"mixed.{i}", f"present_key.{i}", f"present_value.{i}"],
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
        )
        node(
            "Linear",
            [f"mixed.{i}", *packed(f"attention_output.{i}")],
            [f"attended.{i}"],
            bits=8 if sizes.forms[1] == 8 else 4,
            outputs=sizes.hidden,
        )
        x, added = "new_residual" if end else f"second.{i}", "new_update" if end else f"fed.{i}"
        node(
            "NormLinear",
            [f"first.{i}", f"attended.{i}", f"ffn_gain.{i}", *packed(f"gated.{i}")],
            [f"gated_out.{i}", x],
            bits=8 if sizes.forms[2] == 8 else 4,
            outputs=2 * sizes.ffn,
            epsilon=1e-5,
            activation="swiglu",
        )
        node(
            "Linear",
            [f"gated_out.{i}", *packed(f"down.{i}")],
            [added],
            bits=8 if sizes.forms[3] == 8 else 4,
            outputs=sizes.hidden,
        )
    return nodes


def session(
    sizes: Sizes, nodes: list[NodeProto], weights: Mapping[str, Array], threads: int = 1
) -> ort.InferenceSession:
    used = {name for node in nodes for name in node.input}
    past, present = ["past"], ["present"]
    if "past" not in used:
        past, present = caches_of(sizes, "past"), caches_of(sizes, "present")
    fed = {name: None for name in (*FIXED, *past) if name in used}
    outputs = ["new_residual", "new_update", *present]
    types = {"rows": TensorProto.INT32}
    types |= dict.fromkeys([*past, *present], TensorProto.FLOAT16)
    if "cache_layers" in used:
        weights = {**weights, "cache_layers": np.array(sizes.cache_layers, np.int32)}
    return session_of(nodes, fed, outputs, weights, types, threads)


def step(
    run: ort.InferenceSession,
    sizes: Sizes,
    rows: Ints,
    caches: list[Cache],
    update: bool,
) -> list[Floats]:
    """A step on copies of the caches; returns all outputs."""
    n = rows.shape[1]
    cosine, sine = sizes.attention.tables()
    feeds = {"residual": rows_of(2, n, sizes.hidden)[None], "rows": rows}
    feeds |= {"cosine": cosine, "sine": sine}
    if update:
        feeds["update"] = rows_of(3, n, sizes.hidden)[None]
    if sizes.bridges:
        feeds["features"] = rows_of(4, n, sizes.hidden)[None]
    if any(given.name == "past" for given in run.get_inputs()):
        feeds["past"] = one_past(caches)
        residual, new, present = run.run(None, feeds)
        return [residual, new, *present.reshape(-1, *present.shape[2:])]
    for layer, cache in enumerate(caches):
        feeds |= {f"past_key.{layer}": cache.tiles, f"past_value.{layer}": cache.value}
    results: list[Floats] = run.run(None, feeds)
    return results


def one_past(caches: list[Cache]) -> NDArray[np.float16]:
    return np.stack([np.stack([cache.tiles, cache.value]) for cache in caches])


def caches(sizes: Sizes, lengths: list[int]) -> list[Cache]:
    return [Cache(sizes.attention).fill(layer, lengths) for layer in range(sizes.layers)]


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
