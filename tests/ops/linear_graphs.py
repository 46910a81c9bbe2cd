"""Graphs of one op each, and the ops' definitions in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from tests.ops.one_graph import INSTRUCTION_SETS as INSTRUCTION_SETS
from tests.ops.one_graph import Array, node_of, session_of

Floats = NDArray[np.float32]

BLOCK = 32
TILE = 16
BYTES = "4, scales in bytes"
FORMATS: tuple[int | str, ...] = (4, 8, BYTES)


@dataclass(frozen=True)
class Packed:
    """A random matrix as the ops take it. ``low`` is the minimum of 4 bits, else zeros.

    With scales in bytes these are 16 a and ``ratio * b - 128 * a``, and sums times ``unit``.
    """

    bits: int
    outputs: int
    codes: Array  # [tiles, blocks, 256 or 512]
    scales: Array  # [tiles, blocks, (2,) 16]
    whole: NDArray[np.int64]  # [16 * tiles, blocks, 32], codes less 128 in 8 bits
    scale: Floats  # [16 * tiles, blocks]
    low: Floats
    unit: Floats  # [16 * tiles]

    @property
    def by_bytes(self) -> bool:
        return self.bits == 4 and self.scales.ndim == 3


def random_matrix(seed: int, form: int | str, outputs: int, inputs: int, parts: int = 1) -> Packed:
    rng = np.random.default_rng(seed)
    bits = 4 if isinstance(form, str) else form
    tiles, blocks = parts * -(-(outputs // parts) // TILE), inputs // BLOCK
    codes = rng.integers(0, 256, (tiles, blocks, 64 * bits), dtype=np.uint8)
    codes[rng.random(codes.shape) < 0.2] = 0
    codes[rng.random(codes.shape) < 0.2] = 255
    scale = rng.uniform(-1, 1, (tiles, blocks, TILE)).astype(np.float16)
    scale[:, :, 3] = 6e-8 * rng.integers(0, 900)  # a subnormal half
    low = rng.uniform(-8, 1, scale.shape).astype(np.float16)
    halves = np.stack([scale, low], axis=2) if bits == 4 else scale
    # [tile, block, g, c, j] -> output 16 t + c, input 4 g + j
    grouped = codes.reshape(tiles, blocks, -1, TILE, 4).astype(np.int64)
    halves_of_bytes = np.concatenate([grouped & 15, grouped >> 4], axis=2)
    grouped = halves_of_bytes if bits == 4 else grouped - 128
    whole = grouped.transpose(0, 3, 1, 2, 4).reshape(tiles * TILE, blocks, BLOCK)

    def by_output(values: Array) -> Floats:
        return values.astype(np.float32).transpose(0, 2, 1).reshape(tiles * TILE, blocks)

    if form == BYTES:
        upper = rng.uniform(-1, 1, (tiles, 1, TILE)).astype(np.float32).view(np.uint32) >> 16
        unit = (upper << 16).view(np.float32).reshape(-1)
        ratio = rng.integers(0, 259, (tiles, 1, TILE))
        a = rng.integers(0, 256, (tiles, blocks, TILE))
        b = rng.integers(-127, 128, (tiles, blocks, TILE))
        words = np.concatenate([upper, ratio, 256 * (b & 255) + a], axis=1).astype(np.uint16)
        scale, low = by_output(16 * a), by_output(ratio * b - 128 * a)
        return Packed(4, outputs, codes, words, whole, scale, low, unit)

    return Packed(
        bits=bits,
        outputs=outputs,
        codes=codes,
        scales=halves.view(np.uint16),
        whole=whole,
        scale=by_output(scale),
        low=by_output(low) if bits == 4 else np.zeros((tiles * TILE, blocks), np.float32),
        unit=np.ones(tiles * TILE, np.float32),
    )


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    product = a.astype(np.float64) * b.astype(np.float64)  # exact
    return (product + c).astype(np.float32)


def numpy_linear(x: Floats, packed: Packed) -> Floats:
    """x[rows, inputs] -> [rows, 16 * tiles], the padding included."""
    blocks = x.reshape(len(x), -1, BLOCK)
    s = np.abs(blocks).max(axis=2) / np.float32(127)
    divisor = np.where(s == 0, np.float32(np.inf), s)[:, :, None]
    q = np.rint(blocks / divisor).astype(np.int64)
    total = np.zeros((len(x), len(packed.whole)), np.float32)
    for b in range(blocks.shape[1]):
        dot = (q[:, b] @ packed.whole[:, b].T).astype(np.float32)
        if packed.by_bytes:
            sums = q[:, b].sum(axis=1)[:, None]
            added = (
                packed.scale[None, :, b] * dot.astype(np.float64) + packed.low[None, :, b] * sums
            )
            total = fma(s[:, b, None], added.astype(np.float32), total)
            continue
        total = fma(s[:, b, None] * packed.scale[None, :, b], dot, total)
        if packed.bits == 4:
            scaled_sum = s[:, b] * q[:, b].sum(axis=1).astype(np.float32)
            total = fma(packed.low[None, :, b], scaled_sum[:, None], total)
    return total * packed.unit


def numpy_norm(x: Floats, gain: Floats, epsilon: float) -> Floats:
    mean = (x.astype(np.float64) ** 2).mean(axis=1, keepdims=True)
    return (x / np.sqrt(mean + epsilon) * gain).astype(np.float32)


def numpy_swiglu(sums: Floats, ffn: int) -> Floats:
    """[rows, 16 * tiles], gate and up by turns -> [rows, ffn]."""
    tiles = sums.reshape(len(sums), -1, 2, TILE).astype(np.float64)
    gate, up = tiles[:, :, 0], tiles[:, :, 1]
    with np.errstate(over="ignore"):
        silu = gate / (1 + np.exp(-gate))
    return (silu * up).reshape(len(sums), -1)[:, :ffn].astype(np.float32)


@dataclass
class Op:
    """A graph of one op; what is not among its inputs is an initializer."""

    name: str
    inputs: Mapping[str, Sequence[int | str] | None]  # shape, or None: the constant of that name
    outputs: Sequence[str]
    attributes: Mapping[str, object]
    constants: Mapping[str, Array] = field(default_factory=dict)

    def session(self, threads: int = 1) -> ort.InferenceSession:
        node = node_of(self.name, list(self.inputs), list(self.outputs), **self.attributes)
        fed = {name: shape for name, shape in self.inputs.items() if name and shape is not None}
        types = {
            "codes": TensorProto.UINT8,
            "scales": TensorProto.UINT16,
            "tokens": TensorProto.INT64,
            "first_row": TensorProto.INT64,
        }
        constants = {
            name: value
            for name, value in self.constants.items()
            if name in self.inputs and name not in fed
        }
        wanted = [name for name in self.outputs if name]
        return session_of([node], fed, wanted, constants, types, threads)


def linear_op(packed: Packed, **attributes: object) -> Op:
    return Op(
        "Linear",
        {"x": [1, "S", packed.codes.shape[1] * BLOCK], "codes": None, "scales": None},
        ["y"],
        {"bits": packed.bits, "outputs": packed.outputs, **attributes},
        {"codes": packed.codes, "scales": packed.scales},
    )


def norm_linear_op(
    packed: Packed,
    gain: Floats,
    *,
    update: bool = True,
    outputs: Sequence[str] = ("y", "new_residual", "normed"),
    **attributes: object,
) -> Op:
    width = packed.codes.shape[1] * BLOCK
    return Op(
        "NormLinear",
        {
            "residual": [1, "S", width],
            "update" if update else "": [1, "S", width],
            "gain": None,
            "codes": None,
            "scales": None,
        },
        outputs,
        {"bits": packed.bits, "outputs": packed.outputs, "epsilon": 1e-5, **attributes},
        {"codes": packed.codes, "scales": packed.scales, "gain": gain},
    )


def bridge_op(packed: Packed, scale: Floats, bias: Floats, **attributes: object) -> Op:
    hidden = packed.codes.shape[1] * BLOCK // 2
    rows = [1, "S", hidden]
    fed = {"residual": rows, "update": rows, "features": rows}
    return Op(
        "Bridge",
        {**fed, "scale": None, "bias": None, "codes": None, "scales": None},
        ["y", "new_residual"],
        {"bits": packed.bits, "outputs": packed.outputs, "epsilon": 1e-5, **attributes},
        {"scale": scale, "bias": bias, "codes": packed.codes, "scales": packed.scales},
    )


def embedding_op(packed: Packed) -> Op:
    return Op(
        "Embedding",
        {"tokens": [1, "S"], "codes": None, "scales": None},
        ["y"],
        {"bits": packed.bits, "outputs": packed.outputs},
        {"codes": packed.codes, "scales": packed.scales},
    )


def has(instruction_set: str) -> bool:
    """Whether this CPU has it: an op that asks for another one is refused."""
    try:
        linear_op(random_matrix(0, 4, 16, 32), isa=instruction_set).session()
    except Exception as error:
        if "which this CPU has not" not in str(error):
            raise
        return False
    return True


def rows_of(seed: int, rows: int, width: int) -> Floats:
    """Rows as they come in models: one channel much larger, and a block of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    x[:, 5] *= 40
    x[rows // 2, -BLOCK:] = 0
    return x
