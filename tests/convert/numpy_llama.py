"""A Llama forward pass in numpy float64, straight from the GGUF file, sharing no code with specdec.

It rotates neighbouring values, as llama.cpp stores them, so it checks the converter's reordering.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


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
        x = self.weights("token_embd.weight")[tokens]
        for layer in range(self.layers):
            x = x + self._attention(f"blk.{layer}.", x)
            x = x + self._feed_forward(f"blk.{layer}.", x)
        head = "output.weight" if "output.weight" in self.tensors else "token_embd.weight"
        rows = self.weights(head)
        if "specdec.head_ids" in self.tensors:
            rows = rows[self.tensors["specdec.head_ids"].data]
        logits: Array = self._norm("output_norm.weight", x) @ rows.T
        return logits

    def _attention(self, prefix: str, x: Array) -> Array:
        length = len(x)
        x = self._norm(prefix + "attn_norm.weight", x)
        query, key, value = (
            (x @ self.weights(f"{prefix}attn_{name}.weight").T).reshape(length, heads, -1)
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        )
        group = self.heads // self.kv_heads
        key = np.repeat(self._rotate(key), group, axis=1)
        value = np.repeat(value, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", self._rotate(query), key) / np.sqrt(key.shape[-1])
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", scores, value).reshape(length, -1)
        output: Array = mixed @ self.weights(prefix + "attn_output.weight").T
        return output

    def _rotate(self, x: Array) -> Array:
        half = x.shape[-1] // 2
        angles = np.outer(np.arange(len(x)), self.theta ** -(np.arange(half) / half))[:, None]
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
        normalised: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.eps)
        return normalised * self.weights(name)
