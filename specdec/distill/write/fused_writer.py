"""The target on the core's own operators, one token of many conversations per step."""

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

_TILE = 32
"""Columns whose keys lie beside each other, as in csrc/kv_cache.h."""


class FusedWriter:
    """Runs a graph of a fused layout, which holds K/V of any number of sequences, as 16-bit floats.

    Raises:
        BackendError: ONNX Runtime does not take the core's operators.
    """

    def __init__(self, source: ModelSource, options: WriteOptions, scratch: Path) -> None:
        count = min(CANDIDATES, head_size(source))
        graph = write_batch_graph(source, options.layout, scratch, count)
        self._session = open_session(graph, options.threads, operators=True)
        c, rows = source.config, options.rows
        tiles = -(-options.length // _TILE)
        shape = (c.layers, rows, c.kv_heads, tiles)
        self._keys = np.zeros((*shape, c.head_dim, _TILE), np.float16)
        self._values = np.zeros((*shape, _TILE, c.head_dim), np.float16)
        self._prefix = self._keys[:, 0, :, :0], self._values[:, 0, :, :0]
        self._cache_shape = (rows, c.kv_heads, tiles * _TILE, c.head_dim)
        self._tokens = np.zeros((1, rows), np.int64)
        self._places = np.zeros(4 * rows, np.int32)
        self._first_row = np.zeros(1, np.int64)
        self._logits = np.zeros((1, rows, count), np.float32)
        self._ids = np.zeros((1, rows, count), np.int64)
        self._binding, self._bound_rows = None, 0

    def set_prefix(self, tokens: list[int]) -> None:
        """See BatchWriter."""
        for position, token in enumerate(tokens):
            self.step(np.array([token], np.int64), np.array([position], np.int32))
        tiles = -(-len(tokens) // _TILE)
        self._prefix = self._keys[:, 0, :, :tiles].copy(), self._values[:, 0, :, :tiles].copy()

    def begin(self, row: int) -> None:
        """See BatchWriter."""
        keys, values = self._prefix
        self._keys[:, row, :, : keys.shape[2]] = keys
        self._values[:, row, :, : values.shape[2]] = values

    def move(self, source: int, row: int) -> None:
        """See BatchWriter."""
        self._keys[:, row] = self._keys[:, source]
        self._values[:, row] = self._values[:, source]

    def step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Candidates:
        """See BatchWriter."""
        rows = len(tokens)
        self._tokens[0, :rows] = tokens
        places = self._places[: 4 * rows].reshape(4, rows)
        places[0] = np.arange(rows)  # the sequences
        places[1] = places[2] = lengths  # what is known of them, and the column to write
        places[3] = -1  # behind what is known
        if rows != self._bound_rows:
            self._binding, self._bound_rows = self._bind(rows), rows
        self._session.run_with_iobinding(self._binding)
        return Candidates(self._ids[0, :rows].copy(), self._logits[0, :rows].copy())

    def _bind(self, rows: int) -> Any:
        best = (1, rows, self._ids.shape[2])
        caches = {
            f"{kind}.{layer}": (array, self._cache_shape)
            for kind, cache in (("key", self._keys), ("value", self._values))
            for layer, array in enumerate(cache)
        }
        return bind(
            self._session,
            {
                "tokens": (self._tokens, (1, rows)),
                "rows": (self._places, (4, rows)),
                "first_logit_row": (self._first_row, (1,)),
                **{f"past_{name}": cache for name, cache in caches.items()},
            },
            {
                CANDIDATE_LOGITS: (self._logits, best),
                CANDIDATE_IDS: (self._ids, best),
                **{f"present_{name}": cache for name, cache in caches.items()},
            },
        )
