"""A fused graph in numpy, node by node: what its operators compute, by their definition.

Float64 throughout; ``rounded`` rounds the inputs of linears to 8 bits per row and block, as the
operators do, and else the result is what the checkpoint's weights give.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
TILE, BLOCK = 16, 32


def unpack(codes: Array, scales: Array, bits: int) -> Array:
    """The weights of a packed matrix, float64 [16 * tiles, 32 * blocks]."""
    tiles, blocks = codes.shape[:2]
    weights = np.zeros((tiles, TILE, blocks, BLOCK))
    if bits == 4 and scales.ndim == 3:
        halves = _scales_of_bytes(scales)
    else:
        halves = scales.view(np.float16).astype(np.float64)
    for g in range(bits):
        for c in range(TILE):
            for j in range(4):
                byte = codes[:, :, 64 * g + 4 * c + j]
                if bits == 8:
                    weights[:, c, :, 4 * g + j] = halves[:, :, c] * (byte.astype(np.int64) - 128)
                else:
                    scale, minimum = halves[:, :, 0, c], halves[:, :, 1, c]
                    weights[:, c, :, 4 * g + j] = scale * (byte & 15) + minimum
                    weights[:, c, :, 16 + 4 * g + j] = scale * (byte >> 4) + minimum
    return weights.reshape(tiles * TILE, blocks * BLOCK)


def wide_blocks(codes: Array, scales: Array) -> int:
    """Blocks of 8 bits of a matrix of 6."""
    return int(codes.shape[1] - 256 * scales.shape[1]) // 256


def unpack_mixed(codes: Array, fine: Array, scales: Array) -> Array:
    """``unpack`` of a matrix of 8 and 6 bits, [tiles, bytes]."""
    tiles, blocks = scales.shape[:2]
    wide = wide_blocks(codes, scales)
    eight = unpack(codes[:, : 512 * wide].reshape(tiles, wide, 512), scales[:, :wide], 8)
    six = codes[:, 512 * wide :].reshape(tiles, blocks - wide, 256).astype(np.int64)
    twos = fine.reshape(tiles, blocks - wide, 128).astype(np.int64)
    halves = scales[:, wide:].view(np.float16).astype(np.float64)
    weights = np.zeros((tiles, TILE, blocks - wide, BLOCK))
    for g in range(4):
        for c in range(TILE):
            for j in range(4):
                upper = six[:, :, 64 * g + 4 * c + j]
                lower = twos[:, :, 64 * (g // 2) + 4 * c + j] >> 4 * (g % 2)
                for half, at in enumerate((4 * g + j, 16 + 4 * g + j)):
                    code = 4 * (upper >> 4 * half & 15) + (lower >> 2 * half & 3)
                    weights[:, c, :, at] = halves[:, :, c] * (code - 32)
    return np.concatenate([eight, weights.reshape(tiles * TILE, -1)], axis=1)


def _rounded(x: Array) -> Array:
    """To 8 bits, by rows and blocks."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK).astype(np.float32)
    steps = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks / np.where(steps == 0, 1, steps)).astype(np.float64)
    found: Array = (codes * steps).reshape(x.shape)
    return found


def _scales_of_bytes(words: Array) -> Array:
    """Scale and minimum [tiles, blocks, 2, 16] of ``unit * (16 * a * (code - 8) + ratio * b)``."""
    unit = (words[:, :1].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    ratio = words[:, 1:2].astype(np.float64)
    a = (words[:, 2:] & 255).astype(np.float64)
    b = (words[:, 2:] >> 8).astype(np.uint8).view(np.int8).astype(np.float64)
    return np.stack([unit * 16 * a, unit * (ratio * b - 128 * a)], axis=2)


KV_TYPES = {False: np.float64, True: np.float16}  # what is written is rounded, or not


class ReferenceGraph:
    """A written graph and its K/V of ``capacity`` columns, which begin as ``garbage``."""

    def __init__(
        self,
        folder: Path,
        capacity: int,
        *,
        rounded: bool,
        sequences: int = 1,
        garbage: float = 9.5,
        cache: Array | None = None,
    ) -> None:
        graph = onnx.load(folder / "model.onnx").graph
        self.nodes = graph.node
        self.rounded = rounded
        self.constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self.weights: dict[str, Array] = {}
        if cache is None:
            (past,) = (value for value in graph.input if value.name == "past")
            shape = [dim.dim_value for dim in past.type.tensor_type.shape.dim]
            size = (shape[0], 2, sequences, shape[3], capacity, shape[5])
            cache = np.full(size, garbage, KV_TYPES[rounded])
        self.cache: Array = cache  # keys as they are, not in tiles

    def step(
        self, tokens: list[int], rows: Array, first_row: int = 0, features: Array | None = None
    ) -> tuple[Array, Array]:
        """Logits [S - first_row, head_size] and hidden states [S, hidden]; writes K/V."""
        values: dict[str, Any] = {
            **self.constants,
            "past": self.cache,
            "": None,
            "tokens": np.array([tokens]),
            "rows": rows,
            "first_logit_row": np.array([first_row]),
            "features": None if features is None else features[None],
        }
        for node in self.nodes:
            attributes = {
                each.name: onnx.helper.get_attribute_value(each) for each in node.attribute
            }
            run: Callable[..., Any] = getattr(self, f"_{node.op_type}")
            results = run(node, *(values[name] for name in node.input), **attributes)
            results = results if isinstance(results, tuple) else (results,)
            values |= dict(zip(node.output, results, strict=False))
        return values["logits"][0], values["hidden"][0]

    def _linear(self, x: Array, name: str, codes: Array, scales: Array, outputs: int) -> Array:
        if name not in self.weights:
            self.weights[name] = unpack(codes, scales, codes.shape[2] // 64)
        if self.rounded:
            x = _rounded(x)
        result: Array = (x @ self.weights[name].T)[..., :outputs]
        return result

    def _DecoderLayers(
        self,
        node: Any,
        residual: Array,
        update: Array | None,
        rows: Array,
        cosine: Array,
        sine: Array,
        features: Array | None,
        past: Array,
        cache_layers: Array | None,
        *inputs: Array,
        layers: int,
        bridges: int,
        heads: int,
        kv_heads: int,
        epsilon: float,
    ) -> tuple[Array, ...]:
        names = node.input[8:]
        first = 0
        for number in range(layers):
            bridged = bridges >> number & 1
            layer = inputs[first : first + 10]
            if bridged:
                assert features is not None
                name = names[first + 12]
                weights = inputs[first + 10 : first + 14]
                residual, update = self._bridge(
                    name, residual, update, features, *weights, epsilon=epsilon
                )
            keys, values = past[number if cache_layers is None else cache_layers[number]]
            hidden, dim = len(layer[0]), keys.shape[-1]
            total, update = residual if update is None else residual + update, None

            def linear(x: Array, index: int, outputs: int, first: int = first) -> Array:
                at = first + index
                return self._linear(x, names[at], inputs[at], inputs[at + 1], outputs)

            qkv = linear(_norm(total, layer[0], epsilon), 1, (heads + 2 * kv_heads) * dim)
            mixed = _attention(qkv, keys, values, rows, cosine, sine, heads, kv_heads)
            residual = total + linear(mixed, 3, hidden)
            both = linear(_norm(residual, layer[5], epsilon), 6, 16 * len(layer[6]))
            gate, up = np.moveaxis(both.reshape(*both.shape[:-1], -1, 2, TILE), -2, 0)
            gated = (gate / (1 + np.exp(-gate)) * up).reshape(*both.shape[:-1], -1)
            update = linear(gated[..., : BLOCK * layer[8].shape[1]], 8, hidden)
            first += 14 if bridged else 10
        assert update is not None
        return residual, update, past

    def _NormLinear(
        self,
        node: Any,
        residual: Array,
        update: Array | None,
        gain: Array,
        codes: Array,
        scales: Array,
        first_row: Array | None = None,
        order: Array | None = None,
        ordered_gain: Array | None = None,
        fine: Array | None = None,
        spread: Array | None = None,
        best_only: Array | None = None,
        *,
        bits: int,
        outputs: int,
        epsilon: float,
        activation: bytes,
        size: float = 0,
    ) -> tuple[Array, ...]:
        total = residual if update is None else residual + update
        normed = _norm(total, gain, epsilon)
        first = 0 if first_row is None else first_row[0]
        rows = normed[:, first:]
        assert activation == b"none"
        if bits == 6:
            assert ordered_gain is not None
            assert fine is not None
            x = _norm(total, np.ones(1), epsilon)[:, first:, order] * ordered_gain
            weights = unpack_mixed(codes, fine, scales)
            if self.rounded:
                wide = BLOCK * wide_blocks(codes, scales)
                # The first in two parts: rounded, and what that leaves.
                once = _rounded(x)
                left = _rounded((x - once)[..., :wide])
                x = np.concatenate([once[..., :wide] + left, once[..., wide:]], -1)
            y = (x @ weights.T)[..., :outputs]
            return y, total, normed, y.argmax(-1).astype(np.int32)
        return self._linear(rows, node.input[3], codes, scales, outputs), total, normed

    def _bridge(
        self,
        name: str,
        residual: Array,
        update: Array | None,
        features: Array,
        scale: Array,
        bias: Array,
        codes: Array,
        scales: Array,
        *,
        epsilon: float,
    ) -> tuple[Array, Array]:
        total = residual if update is None else residual + update
        read = np.concatenate([_norm(x, np.ones(1), epsilon) for x in (total, features)], -1)
        y = self._linear(read, name, codes, scales, len(scale))
        return scale * total + bias, y

    def _Embedding(
        self,
        node: Any,
        tokens: Array,
        codes: Array,
        scales: Array,
        order: Array | None = None,
        factors: Array | None = None,
        fine: Array | None = None,
        *,
        bits: int,
        outputs: int,
    ) -> Array:
        name = node.input[1]
        if bits == 6:
            assert fine is not None
            mixed = unpack_mixed(codes, fine, scales) * factors
            self.weights[name] = np.zeros_like(mixed)
            self.weights[name][:, order] = mixed
        if name not in self.weights:
            self.weights[name] = unpack(codes, scales, bits)
        found: Array = self.weights[name][:outputs][tokens]
        return found


def chain(past: int, width: int, sequence: int = 0) -> Array:
    """``rows`` of a step of ``width`` tokens in a line, int32 [4, width]."""
    steps = np.arange(width, dtype=np.int32)
    fixed = np.full(width, sequence, np.int32), np.full(width, past, np.int32)
    return np.stack([*fixed, past + steps, steps - 1])


def _attention(
    qkv: Array,
    keys: Array,
    values: Array,
    rows: Array,
    cosine: Array,
    sine: Array,
    heads: int,
    kv_heads: int,
) -> Array:
    """Writes the rows' K and V; returns what they attend to, [1, S, heads * head_dim]."""
    width, dim = qkv.shape[1], keys.shape[-1]
    parts = qkv[0].reshape(width, heads + 2 * kv_heads, dim)
    mixed = np.zeros((width, heads, dim))
    paths: list[list[int]] = []
    for row, (sequence, length, column, parent) in enumerate(rows.T):
        paths.append([*(paths[parent] if parent >= 0 else []), column])
        position = length + len(paths[row]) - 1
        rotated = _rotate(parts[row, : heads + kv_heads], cosine[position], sine[position])
        keys[sequence, :, column] = rotated[heads:]
        values[sequence, :, column] = parts[row, heads + kv_heads :]
        seen = [*range(length), *paths[row]]
        for head in range(heads):
            kv = head * kv_heads // heads
            scores = keys[sequence, kv, seen] @ rotated[head] / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            mixed[row, head] = weights / weights.sum() @ values[sequence, kv, seen]
    return mixed.reshape(1, width, -1)


def _norm(x: Array, gain: Array, epsilon: float) -> Array:
    result: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + epsilon) * gain
    return result


def _rotate(x: Array, cosine: Array, sine: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)
