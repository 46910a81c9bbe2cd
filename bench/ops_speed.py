"""Microseconds of the ops Linear and NormLinear at SmolLM2's shapes, by width.

    python -m bench.ops_speed [--threads 2] [--isa avx2] [--scales halves] [--json FILE]

Each op is a chain of nodes with weights of their own, more than the caches hold, as in a model's
step; the time of a node is that of the chain divided by its length. Widths take turns. Printed are
the median, the least, and the gigabytes of weights per second that the least amounts to.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from specdec import _core

WIDTHS = (1, 2, 4, 8, 16, 128)
CHAIN_BYTES = 100_000_000


@dataclass(frozen=True)
class Op:
    part: str
    name: str
    bits: int
    outputs: int
    inputs: int
    activation: str = "none"

    @property
    def tiles(self) -> int:
        return -(-self.outputs // 16)

    @property
    def blocks(self) -> int:
        return self.inputs // 32

    def scales(self, byte_scales: bool) -> tuple[int, ...]:
        """The shape of the 16-bit words that hold them."""
        if self.bits == 8:
            return self.tiles, self.blocks, 16
        if byte_scales:
            return self.tiles, 2 + self.blocks, 16
        return self.tiles, self.blocks, 2, 16

    @property
    def columns(self) -> int:
        """Of what the op gives."""
        return self.outputs // 2 if self.activation == "swiglu" else self.outputs


OPS = (
    Op("query, key, value", "NormLinear", 4, 960, 576),
    Op("attention output", "Linear", 4, 576, 576),
    Op("gate and up", "NormLinear", 4, 3072, 576, "swiglu"),
    Op("down", "Linear", 4, 576, 1536),
    Op("head", "NormLinear", 8, 49152, 576),
)


class Chain:
    """A session of nodes that all read the same input, each with its own weights."""

    def __init__(self, op: Op, threads: int, isa: str, byte_scales: bool) -> None:
        self.op = op
        shape = op.scales(byte_scales)
        self.bytes = op.tiles * op.blocks * 64 * op.bits + 2 * math.prod(shape)
        self.length = max(2, -(-CHAIN_BYTES // self.bytes))
        rng = np.random.default_rng(0)
        operands = ["residual", "update"] if op.name == "NormLinear" else ["x"]
        nodes, initializers = [], []
        for i in range(self.length):
            codes = rng.integers(0, 256, (op.tiles, op.blocks, 64 * op.bits), dtype=np.uint8)
            scales = rng.uniform(-0.01, 0.01, shape).astype(np.float16).view(np.uint16)
            weights = {f"codes{i}": codes, f"scales{i}": scales}
            node = helper.make_node(op.name, [], [f"y{i}"], domain="specdec", bits=op.bits, isa=isa)
            node.attribute.append(helper.make_attribute("outputs", op.outputs))
            node.input.extend(operands)
            if op.name == "NormLinear":
                weights = {f"gain{i}": np.ones(op.inputs, np.float32), **weights}
                node.attribute.append(helper.make_attribute("epsilon", 1e-5))
                node.attribute.append(helper.make_attribute("activation", op.activation))
            node.input.extend(weights)
            nodes.append(node)
            initializers += [numpy_helper.from_array(v, name) for name, v in weights.items()]

        def value(name: str, columns: int) -> object:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "S", columns])

        graph = helper.make_graph(
            nodes,
            "chain",
            [value(name, op.inputs) for name in operands],
            [value(f"y{i}", op.columns) for i in range(self.length)],
            initializers,
        )
        versions = [helper.make_opsetid("", 17), helper.make_opsetid("specdec", 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=9)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.register_custom_ops_library(_core.__file__)
        self.operands = operands
        self.session = ort.InferenceSession(model.SerializeToString(), options)

    def bind(self, width: int) -> ort.IOBinding:
        binding = self.session.io_binding()
        shape = (1, width, self.op.inputs)
        for name in self.operands:
            x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
            binding.bind_cpu_input(name, x)
        # One memory for what all nodes give: nobody reads it.
        y = ort.OrtValue.ortvalue_from_shape_and_type(
            [1, width, self.op.columns], np.float32, "cpu"
        )
        for i in range(self.length):
            binding.bind_ortvalue_output(f"y{i}", y)
        return binding

    def microseconds(self, binding: ort.IOBinding) -> float:
        start = time.perf_counter()
        self.session.run_with_iobinding(binding)
        return (time.perf_counter() - start) / self.length * 1e6


def main() -> None:
    arguments = _parse_arguments()
    print(f"{'':20}" + "".join(f"{width:>26d}" for width in arguments.widths))
    table: dict[str, dict[int, tuple[float, float]]] = {}
    for op in OPS:
        chain = Chain(op, arguments.threads, arguments.isa, arguments.scales == "bytes")
        bindings = {width: chain.bind(width) for width in arguments.widths}
        times: dict[int, list[float]] = {width: [] for width in bindings}
        for turn in range(arguments.turns + 1):
            for width, binding in bindings.items():
                taken = chain.microseconds(binding)
                if turn > 0:  # the first touches memory anew
                    times[width].append(taken)
        row = {width: (float(np.median(us)), min(us)) for width, us in times.items()}
        table[op.part] = row
        cells = (
            f"{median:10.1f}{least:9.1f} ({chain.bytes / least / 1e3:4.1f})"
            for median, least in row.values()
        )
        print(f"{op.part:20}" + "".join(cells), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto", help="avx512, avx2, neon or plain")
    parser.add_argument("--scales", choices=("halves", "bytes"), default="bytes", help="in 4 bits")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write median and least there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
