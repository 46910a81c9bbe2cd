"""Graphs of CachedAttention, steps of it over a cache, and its definition in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from tests.core.kv_columns import from_tiles, to_tiles
from tests.ops.one_graph import INSTRUCTION_SETS as INSTRUCTION_SETS
from tests.ops.one_graph import node_of, session_of

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Shape:
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    sequences: int = 1
    capacity: int = 320
    positions: int = 320

    @property
    def cache(self) -> list[int]:
        return [self.sequences, self.kv_heads, self.capacity, self.head_dim]

    @property
    def features(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def tables(self) -> tuple[Floats, Floats]:
        steps = 10000.0 ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.arange(self.positions)[:, None] * steps
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def session(shape: Shape, threads: int = 1, **attributes: object) -> ort.InferenceSession:
    names = ["qkv", "past_key", "past_value", "rows", "cosine", "sine"]
    outputs = ["mixed", "present_key", "present_value"]
    values = {"heads": shape.heads, "kv_heads": shape.kv_heads, **attributes}
    node = node_of("CachedAttention", names, outputs, **values)
    types = {"rows": TensorProto.INT32} | dict.fromkeys(
        (*names[1:3], *outputs[1:]), TensorProto.FLOAT16
    )
    return session_of([node], dict.fromkeys(names), outputs, {}, types, threads)


def has(instruction_set: str) -> bool:
    """Whether this CPU has it: an op that asks for another one is refused."""
    try:
        session(Shape(), isa=instruction_set)
    except Exception as error:
        if "which this CPU has not" not in str(error):
            raise
        return False
    return True


def rows_of(sequence: int, length: int, columns: Sequence[int], parents: Sequence[int]) -> Ints:
    """``rows`` [4, S] of one sequence."""
    n = len(columns)
    return np.array([[sequence] * n, [length] * n, columns, parents], np.int32)


def chain(length: int, n: int, sequence: int = 0) -> Ints:
    return rows_of(sequence, length, range(length, length + n), range(-1, n - 1))


class Cache:
    """K/V that an op writes in place; what nobody wrote is NaN."""

    def __init__(self, shape: Shape) -> None:
        self.tiles: Halves = np.full(shape.cache, np.nan, np.float16)  # as the op has the keys
        self.value: Halves = np.full(shape.cache, np.nan, np.float16)

    @property
    def key(self) -> Halves:
        """The keys, column by column; a copy."""
        return from_tiles(self.tiles)

    @key.setter
    def key(self, key: Halves) -> None:
        self.tiles = to_tiles(key)

    def fill(self, seed: int, lengths: Sequence[int]) -> Cache:
        """Random columns before the lengths of the sequences."""
        rng = np.random.default_rng(seed)
        key = self.key
        for sequence, length in enumerate(lengths):
            for tensor in (key, self.value):
                part = tensor[sequence, :, :length]
                part[:] = rng.standard_normal(part.shape)
        self.key = key
        return self

    def copy(self) -> Cache:
        other = object.__new__(Cache)
        other.tiles, other.value = self.tiles.copy(), self.value.copy()
        return other


class Attention:
    """Steps of one session. ``in_place``: outputs are bound to the memory of the inputs."""

    def __init__(
        self, shape: Shape, threads: int = 1, in_place: bool = True, **attributes: object
    ) -> None:
        self.shape = shape
        self.tables = shape.tables()
        self._session = session(shape, threads, **attributes)
        self._in_place = in_place

    def step(self, qkv: Floats, rows: Ints, cache: Cache) -> Floats:
        """qkv [S, features] -> mixed [S, heads * head_dim]; the cache is written."""
        cosine, sine = self.tables
        fed = {
            "qkv": np.ascontiguousarray(qkv[None]),
            "past_key": cache.tiles,
            "past_value": cache.value,
            "rows": np.ascontiguousarray(rows),
            "cosine": cosine,
            "sine": sine,
        }
        if not self._in_place:
            mixed, cache.tiles, cache.value = self._session.run(None, fed)
            return mixed[0]
        mixed = np.empty((1, len(qkv), self.shape.heads * self.shape.head_dim), np.float32)
        written = {"mixed": mixed, "present_key": cache.tiles, "present_value": cache.value}
        binding = self._session.io_binding()
        for name, array in fed.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in written.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return mixed[0]


def inputs_of(shape: Shape, seed: int, n: int) -> Floats:
    rng = np.random.default_rng(seed)
    return (2 * rng.standard_normal((n, shape.features))).astype(np.float32)


def path_of(rows: Ints, row: int) -> list[int]:
    """Indices of the row's ancestors in the step, root first, and its own."""
    path = [row]
    while (parent := int(rows[3, path[0]])) >= 0:
        path.insert(0, parent)
    return path


def reference(
    shape: Shape, qkv: Floats, rows: Ints, cache: Cache, written: Cache
) -> tuple[NDArray[np.float64], Cache]:
    """The definition, in float64: mixed [S, heads * head_dim], and the cache after it.

    Keys are read as they were ``written``: to which half one is rounded may hang on its last bit.
    """
    after = cache.copy()
    cosine, sine = (table.astype(np.float64) for table in shape.tables())
    dim, half = shape.head_dim, shape.head_dim // 2

    def turned(x: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        a, b = x[..., :half], x[..., half:]
        c, s = cosine[position], sine[position]
        return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)

    positions = [int(rows[1, i]) + len(path_of(rows, i)) - 1 for i in range(len(qkv))]
    key = after.key
    parts = qkv.astype(np.float64).reshape(len(qkv), -1, dim)
    for i, position in enumerate(positions):
        sequence, column = rows[0, i], rows[2, i]
        keys = parts[i, shape.heads : shape.heads + shape.kv_heads]
        key[sequence, :, column] = turned(keys, position)
        after.value[sequence, :, column] = parts[i, shape.heads + shape.kv_heads :]
    after.key = key
    key = written.key
    mixed = np.empty((len(qkv), shape.heads, dim))
    for i, position in enumerate(positions):
        seen = [*range(rows[1, i]), *(rows[2, j] for j in path_of(rows, i))]
        for head in range(shape.heads):
            kv_head = head * shape.kv_heads // shape.heads
            keys = key[rows[0, i], kv_head, seen].astype(np.float64)
            values = after.value[rows[0, i], kv_head, seen].astype(np.float64)
            scores = keys @ turned(parts[i, head], position) / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            mixed[i, head] = weights @ values / weights.sum()
    return mixed.reshape(len(qkv), -1), after


def same_bits(a: Floats | Halves, b: Floats | Halves) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
