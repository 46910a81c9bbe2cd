"""The target on the core's own operators, one token of many conversations per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import head_size
from specdec.distill.write.batch_graph import CANDIDATE_IDS, CANDIDATE_LOGITS, write_batch_graph
from specdec.distill.write.engine import CANDIDATES, Candidates
from specdec.distill.write.options import WriteOptions
from specdec.errors import BackendError
from specdec.session import register_operators

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
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 4  # errors come as exceptions
        if options.threads is not None:
            session_options.intra_op_num_threads = options.threads
        if problem := register_operators(session_options):
            raise BackendError(f"layout {options.layout} needs specdec's own operators: {problem}")
        self._session = onnxruntime.InferenceSession(
            str(graph), session_options, providers=["CPUExecutionProvider"]
        )
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
        binding = self._session.io_binding()

        def put(name: str, array: NDArray[Any], shape: tuple[int, ...], *, output: bool) -> None:
            bind = binding.bind_output if output else binding.bind_input
            bind(name, "cpu", 0, array.dtype.type, list(shape), array.ctypes.data)

        put("tokens", self._tokens, (1, rows), output=False)
        put("rows", self._places, (4, rows), output=False)
        put("first_logit_row", self._first_row, (1,), output=False)
        best = (1, rows, self._ids.shape[2])
        put(CANDIDATE_LOGITS, self._logits, best, output=True)
        put(CANDIDATE_IDS, self._ids, best, output=True)
        for kind, cache in (("key", self._keys), ("value", self._values)):
            for layer, array in enumerate(cache):
                put(f"past_{kind}.{layer}", array, self._cache_shape, output=False)
                put(f"present_{kind}.{layer}", array, self._cache_shape, output=True)
        return binding
