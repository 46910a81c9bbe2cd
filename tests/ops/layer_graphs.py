"""The op DecoderLayers, and the nodes that it stands for, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from tests.ops import attention_graphs
from tests.ops.attention_graphs import Cache
from tests.ops.linear_graphs import BYTES, Floats, random_matrix, rows_of
from tests.ops.one_graph import Array, node_of, session_of

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
