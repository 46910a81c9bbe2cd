"""Times the op CachedAttention: microseconds per layer, by width and committed length.

    python -m bench.attention_speed

The layers of a model each have a cache of their own, and run one after the other in one graph. The
widths of a length take turns, so that a busy moment does not fall on one of them. The least and the
median of each are printed: warm, and cold, which is behind a walk through other memory, as one
through a model's weights. ``--processor-time`` counts the time that all threads worked and not the
time that passed, for a machine that does other things too; take one thread, since waiting ones work
as well.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from specdec import _core

Floats = NDArray[np.float32]
OTHER_MEMORY = 100_000_000  # bytes, about the weights of a small model


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    capacity: int

    @property
    def cache(self) -> list[int]:
        return [1, self.kv_heads, self.capacity, self.head_dim]

    @property
    def features(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


def make_session(shape: Shape, isa: str, threads: int) -> ort.InferenceSession:
    shared = ["qkv", "rows", "cosine", "sine"]
    inputs, outputs, nodes = list(shared), [], []
    for i in range(shape.layers):
        past = [f"past_key.{i}", f"past_value.{i}"]
        written = [f"mixed.{i}", f"present_key.{i}", f"present_value.{i}"]
        operands = ["qkv", *past, "rows", "cosine", "sine"]
        node = helper.make_node("CachedAttention", operands, written, domain="specdec")
        values = {"heads": shape.heads, "kv_heads": shape.kv_heads, "isa": isa}
        node.attribute.extend(helper.make_attribute(*pair) for pair in values.items())
        nodes.append(node)
        inputs += past
        outputs += written

    def value(name: str) -> object:
        kind = TensorProto.INT32 if name == "rows" else TensorProto.FLOAT
        if name.startswith(("past", "present")):
            kind = TensorProto.FLOAT16
        return helper.make_tensor_value_info(name, kind, None)

    graph = helper.make_graph(nodes, "layers", [*map(value, inputs)], [*map(value, outputs)])
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("specdec", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.register_custom_ops_library(_core.__file__)
    return ort.InferenceSession(model.SerializeToString(), options)


class Caches:
    """Random K/V of all layers, and the tables of angles."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        self.tensors = [
            [rng.standard_normal(shape.cache, np.float32).astype(np.float16) for _ in range(2)]
            for _ in range(shape.layers)
        ]
        steps = 10000.0 ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = np.arange(shape.capacity)[:, None] * steps
        self.tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Step:
    """A chain of some width behind some committed columns, bound to its buffers."""

    def __init__(
        self, session: ort.InferenceSession, shape: Shape, caches: Caches, width: int, length: int
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._kept: list[NDArray[np.generic]] = []
        rng = np.random.default_rng(1)
        chain = np.arange(width, dtype=np.int32)
        rows = np.stack([0 * chain, 0 * chain + length, length + chain, chain - 1])
        self._bind("input", "qkv", rng.standard_normal((1, width, shape.features), np.float32))
        self._bind("input", "rows", rows)
        self._bind("input", "cosine", caches.tables[0])
        self._bind("input", "sine", caches.tables[1])
        for i, (key, value) in enumerate(caches.tensors):
            mixed = np.empty((1, width, shape.heads * shape.head_dim), np.float32)
            self._bind("output", f"mixed.{i}", mixed)
            for name, tensor in (("key", key), ("value", value)):
                self._bind("input", f"past_{name}.{i}", tensor)
                self._bind("output", f"present_{name}.{i}", tensor)

    def _bind(self, kind: str, name: str, array: NDArray[np.generic]) -> None:
        self._kept.append(array)
        bind = self._binding.bind_input if kind == "input" else self._binding.bind_output
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def seconds(self, clock: Callable[[], float]) -> float:
        begin = clock()
        self._session.run_with_iobinding(self._binding)
        return clock() - begin


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--lengths", type=integers, default=[100, 300, 1000, 2000])
    parser.add_argument("--widths", type=integers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args()
    clock = time.process_time if given.processor_time else time.perf_counter
    capacity = max(given.lengths) + max(given.widths)
    shape = Shape(given.layers, given.heads, given.kv_heads, given.head_dim, capacity)
    session = make_session(shape, given.isa, given.threads)
    caches = Caches(shape)
    other = np.zeros(OTHER_MEMORY, np.uint8)
    print("length width   warm: least  median   cold: least  median  (microseconds a layer)")
    for length in given.lengths:
        steps = {width: Step(session, shape, caches, width, length) for width in given.widths}
        warm: dict[int, list[float]] = {width: [] for width in steps}
        cold: dict[int, list[float]] = {width: [] for width in steps}
        for _ in range(given.repeat):
            for width, step in steps.items():
                step.seconds(clock)
                warm[width].append(step.seconds(clock))
                np.add(other, 1, out=other)
                cold[width].append(step.seconds(clock))
        for width in steps:
            figures = [
                1e6 / shape.layers * float(of(times[width]))
                for times in (warm, cold)
                for of in (np.min, np.median)
            ]
            print("{:6} {:5}   {:11.1f} {:7.1f}   {:11.1f} {:7.1f}".format(length, width, *figures))


if __name__ == "__main__":
    main()
