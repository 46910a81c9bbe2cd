"""The target in ONNX Runtime on the CPU, one token of many conversations per step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import ModelSource
from specdec.distill.write.bound import BoundWriter, Buffers
from specdec.distill.write.options import WriteOptions


class OnnxWriter(BoundWriter):
    """Runs the batch graph of a layout of ONNX Runtime's operators; the KV cache is float32."""

    def __init__(self, source: ModelSource, options: WriteOptions, scratch: Path) -> None:
        super().__init__(source, options, scratch)
        c, rows = source.config, options.rows
        cache = (c.layers, 2, rows, c.kv_heads, options.length, c.head_dim)
        self._cache = np.zeros(cache, np.float32)
        self._prefix = self._cache[:, :, 0, :, :0]
        self._lengths = np.zeros(rows, np.int32)
        self._longest = np.zeros((), np.int32)

    def begin(self, row: int) -> None:
        """See BatchWriter."""
        self._cache[:, :, row, :, : self._prefix.shape[3]] = self._prefix

    def move(self, source: int, row: int) -> None:
        """See BatchWriter."""
        self._cache[:, :, row] = self._cache[:, :, source]

    def _keep_prefix(self, length: int) -> None:
        self._prefix = self._cache[:, :, 0, :, :length].copy()

    def _place(self, lengths: NDArray[np.int32]) -> None:
        self._lengths[: len(lengths)] = lengths
        self._longest[...] = lengths.max() + 1

    def _places(self, rows: int) -> Buffers:
        return {"seqlens_k": (self._lengths, (rows,)), "total_length": (self._longest, ())}

    def _caches(self, rows: int) -> Buffers:
        return {
            f"_{kind}.{layer}": (array, (rows, *array.shape[1:]))
            for layer, parts in enumerate(self._cache)
            for kind, array in zip(("key", "value"), parts, strict=True)
        }
