"""The target in ONNX Runtime on the CPU, one token of many conversations per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import head_size
from specdec.distill.write.batch_graph import CANDIDATE_IDS, CANDIDATE_LOGITS, write_batch_graph
from specdec.distill.write.bound import bind, open_session
from specdec.distill.write.engine import CANDIDATES, Candidates
from specdec.distill.write.options import WriteOptions


class OnnxWriter:
    """Runs the batch graph on buffers of its own; the KV cache is float32, written in place."""

    def __init__(self, source: ModelSource, options: WriteOptions, scratch: Path) -> None:
        count = min(CANDIDATES, head_size(source))
        graph = write_batch_graph(source, options.layout, scratch, count)
        self._session = open_session(graph, options.threads)
        c, rows = source.config, options.rows
        cache = (c.layers, 2, rows, c.kv_heads, options.length, c.head_dim)
        self._cache = np.zeros(cache, np.float32)
        self._prefix = self._cache[:, :, 0, :, :0]
        self._tokens = np.zeros((1, rows), np.int64)
        self._lengths = np.zeros(rows, np.int32)
        self._longest = np.zeros((), np.int32)
        self._first_row = np.zeros(1, np.int64)
        self._logits = np.zeros((1, rows, count), np.float32)
        self._ids = np.zeros((1, rows, count), np.int64)
        self._binding, self._bound_rows = None, 0

    def set_prefix(self, tokens: list[int]) -> None:
        """See BatchWriter."""
        for position, token in enumerate(tokens):
            self.step(np.array([token], np.int64), np.array([position], np.int32))
        self._prefix = self._cache[:, :, 0, :, : len(tokens)].copy()

    def begin(self, row: int) -> None:
        """See BatchWriter."""
        self._cache[:, :, row, :, : self._prefix.shape[3]] = self._prefix

    def move(self, source: int, row: int) -> None:
        """See BatchWriter."""
        self._cache[:, :, row] = self._cache[:, :, source]

    def step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Candidates:
        """See BatchWriter."""
        rows = len(tokens)
        self._tokens[0, :rows] = tokens
        self._lengths[:rows] = lengths
        self._longest[...] = lengths.max() + 1
        if rows != self._bound_rows:
            self._binding, self._bound_rows = self._bind(rows), rows
        self._session.run_with_iobinding(self._binding)
        return Candidates(self._ids[0, :rows].copy(), self._logits[0, :rows].copy())

    def _bind(self, rows: int) -> Any:
        best = (1, rows, self._ids.shape[2])
        caches = {
            f"{kind}.{layer}": (array, (rows, *array.shape[1:]))
            for layer, parts in enumerate(self._cache)
            for kind, array in zip(("key", "value"), parts, strict=True)
        }
        return bind(
            self._session,
            {
                "tokens": (self._tokens, (1, rows)),
                "seqlens_k": (self._lengths, (rows,)),
                "total_length": (self._longest, ()),
                "first_logit_row": (self._first_row, (1,)),
                **{f"past_{name}": cache for name, cache in caches.items()},
            },
            {
                CANDIDATE_LOGITS: (self._logits, best),
                CANDIDATE_IDS: (self._ids, best),
                **{f"present_{name}": cache for name, cache in caches.items()},
            },
        )
