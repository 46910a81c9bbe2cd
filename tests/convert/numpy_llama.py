"""A Llama forward pass in numpy float64, straight from the GGUF file, sharing no code with specdec.

It rotates neighbouring values, as llama.cpp stores them, so it checks the converter's reordering.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
KeyValue = tuple[Array, Array]
"""Keys (rotated) and values of one layer, each [positions, kv_heads, head_dim]."""


class NumpyLlama:
    def __init__(self, path: Path, vocabulary: Path | None = None) -> None:
        reader = gguf.GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        if vocabulary is not None:
            others = gguf.GGUFReader(vocabulary).tensors
            self.tensors |= {
                t.name: t for t in others if not t.name.startswith(("blk", "output_n"))
            }

        def value(key: str) -> Any:
            return reader.fields[f"llama.{key}"].contents()

        self.layers = value("block_count")
        self.heads = value("attention.head_count")
        self.kv_heads = value("attention.head_count_kv")
        self.eps = value("attention.layer_norm_rms_epsilon")
        self.theta = value("rope.freq_base")

    def weights(self, name: str) -> Array:
        tensor = self.tensors[name]
        values: Array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        return values

    def logits(self, tokens: list[int]) -> Array:
        """[S, vocabulary (or the trimmed head's size)] for ``tokens`` from position 0."""
        return self.head(self.states(tokens)[0])

    def states(self, tokens: list[int]) -> tuple[Array, list[KeyValue]]:
        """The final hidden state [S, hidden], and the K/V of every layer."""
        x = self.weights("token_embd.weight")[tokens]
        cache: list[KeyValue] = []
        for layer in range(self.layers):
            x, own = self._layer(f"blk.{layer}.", x)
            cache.append(own)
        return self._norm("output_norm.weight", x), cache

    def head(self, hidden: Array) -> Array:
        """Logits of final hidden states."""
        head = "output.weight" if "output.weight" in self.tensors else "token_embd.weight"
        rows = self.weights(head)
        if "specdec.head_ids" in self.tensors:
            rows = rows[self.tensors["specdec.head_ids"].data]
        logits: Array = hidden @ rows.T
        return logits

    def _layer(self, prefix: str, x: Array, past: KeyValue | None = None) -> tuple[Array, KeyValue]:
        """What a layer makes of rows that follow ``past``, and their own K/V."""
        update, own = self._attention(prefix, x, past)
        x = x + update
        return x + self._feed_forward(prefix, x), own

    def _attention(self, prefix: str, x: Array, past: KeyValue | None) -> tuple[Array, KeyValue]:
        length = len(x)
        first = 0 if past is None else len(past[0])
        x = self._norm(prefix + "attn_norm.weight", x)
        query, key, value = (
            (x @ self.weights(f"{prefix}attn_{name}.weight").T).reshape(length, heads, -1)
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        )
        group = self.heads // self.kv_heads
        own = self._rotate(key, first), value
        seen = own if past is None else tuple(map(np.concatenate, zip(past, own, strict=True)))
        key, value = (np.repeat(each, group, axis=1) for each in seen)
        scores = np.einsum("qhd,khd->hqk", self._rotate(query, first), key)
        scores /= np.sqrt(key.shape[-1])
        visible = np.tril(np.ones((length, first + length), bool), first)
        scores = np.where(visible, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", scores, value).reshape(length, -1)
        output: Array = mixed @ self.weights(prefix + "attn_output.weight").T
        return output, own

    def _rotate(self, x: Array, first: int) -> Array:
        """Rows of positions from ``first`` on."""
        half = x.shape[-1] // 2
        positions = first + np.arange(len(x))
        angles = np.outer(positions, self.theta ** -(np.arange(half) / half))[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        rotated = np.empty_like(x)
        rotated[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        rotated[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return rotated

    def _feed_forward(self, prefix: str, x: Array) -> Array:
        x = self._norm(prefix + "ffn_norm.weight", x)
        gate = x @ self.weights(prefix + "ffn_gate.weight").T
        up = x @ self.weights(prefix + "ffn_up.weight").T
        down: Array = (gate / (1 + np.exp(-gate)) * up) @ self.weights(prefix + "ffn_down.weight").T
        return down

    def _norm(self, name: str, x: Array) -> Array:
        return self._plain_norm(x) * self.weights(name)

    def _plain_norm(self, x: Array) -> Array:
        normalised: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.eps)
        return normalised


class NumpyAttached(NumpyLlama):
    """An attached drafter, by the definition: token after token, each from what came before."""

    def __init__(self, path: Path, target: Path) -> None:
        super().__init__(path, vocabulary=target)
        fields = gguf.GGUFReader(path).fields
        self.target_layers: list[int] = fields["specdec.target_layers"].contents()

    def draft(self, tokens: list[int], feature: Array, past: Sequence[KeyValue]) -> Array:
        """Final hidden states [S, hidden] of ``tokens``, run one by one behind the target's text.

        ``feature`` [hidden] is the target's final hidden state of its last position; the tokens
        after the first take the drafter's own. ``past`` holds the K/V of every target layer.
        """
        caches = [past[layer] for layer in self.target_layers]
        states: list[Array] = []
        for token in tokens:
            feature = self._step(token, feature, caches)
            states.append(feature)
        return np.stack(states)

    def _step(self, token: int, feature: Array, caches: list[KeyValue]) -> Array:
        """Runs one token and puts its K/V behind ``caches``."""
        x = self.weights("token_embd.weight")[[token]]
        before = -1
        for j, layer in enumerate(self.target_layers):
            prefix = f"blk.{j}."
            if layer != before + 1:
                read = np.concatenate([self._plain_norm(x[0]), self._plain_norm(feature)])
                update = self.weights(prefix + "bridge.weight") @ read
                x = x * self.weights(prefix + "bridge.scale") + update
                x = x + self.weights(prefix + "bridge.bias")
            x, (key, value) = self._layer(prefix, x, caches[j])
            keys, values = caches[j]
            caches[j] = np.concatenate([keys, key]), np.concatenate([values, value])
            before = layer
        last: Array = self._norm("output_norm.weight", x)[0]
        return last
