"""What both writers on ONNX Runtime are: a session on buffers of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

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

Buffers: TypeAlias = Mapping[str, tuple[NDArray[Any], tuple[int, ...]]]
"""By the name in the graph: the memory, and the shape that the graph is to see."""


class BoundWriter(ABC):
    """Steps of a batch graph; K/V, and what says where a row stands, are the subclass's.

    Raises:
        BackendError: ONNX Runtime does not take the core's operators.
    """

    operators = False
    """Whether the graph has the core's own."""

    def __init__(self, source: ModelSource, options: WriteOptions, scratch: Path) -> None:
        count = min(CANDIDATES, head_size(source))
        graph = write_batch_graph(source, options.layout, scratch, count)
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 4  # errors come as exceptions
        if options.threads is not None:
            session_options.intra_op_num_threads = options.threads
        if self.operators and (problem := register_operators(session_options)):
            raise BackendError(f"layout {options.layout} needs specdec's own operators: {problem}")
        self._session = onnxruntime.InferenceSession(
            str(graph), session_options, providers=["CPUExecutionProvider"]
        )
        rows = options.rows
        self._tokens = np.zeros((1, rows), np.int64)
        self._first_row = np.zeros(1, np.int64)
        self._logits = np.zeros((1, rows, count), np.float32)
        self._ids = np.zeros((1, rows, count), np.int64)
        self._binding, self._bound_rows = None, 0

    def set_prefix(self, tokens: list[int]) -> None:
        """See BatchWriter."""
        for position, token in enumerate(tokens):
            self.step(np.array([token], np.int64), np.array([position], np.int32))
        self._keep_prefix(len(tokens))

    def step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Candidates:
        """See BatchWriter."""
        rows = len(tokens)
        self._tokens[0, :rows] = tokens
        self._place(lengths)
        if rows != self._bound_rows:
            self._binding, self._bound_rows = self._bind(rows), rows
        self._session.run_with_iobinding(self._binding)
        return Candidates(self._ids[0, :rows].copy(), self._logits[0, :rows].copy())

    @abstractmethod
    def _keep_prefix(self, length: int) -> None:
        """Keep what row 0 holds for those that begin."""

    @abstractmethod
    def _place(self, lengths: NDArray[np.int32]) -> None:
        """Say where the rows stand."""

    @abstractmethod
    def _places(self, rows: int) -> Buffers:
        """What ``_place`` writes to."""

    @abstractmethod
    def _caches(self, rows: int) -> Buffers:
        """K/V by what the names of its inputs and outputs have behind ``past`` and ``present``."""

    def _bind(self, rows: int) -> Any:
        """The first ``rows`` of every buffer: they lie together, so no step copies any."""
        caches = self._caches(rows)
        best = (1, rows, self._ids.shape[2])
        inputs: Buffers = {
            "tokens": (self._tokens, (1, rows)),
            "first_logit_row": (self._first_row, (1,)),
            **self._places(rows),
            **{f"past{name}": cache for name, cache in caches.items()},
        }
        outputs: Buffers = {
            CANDIDATE_LOGITS: (self._logits, best),
            CANDIDATE_IDS: (self._ids, best),
            **{f"present{name}": cache for name, cache in caches.items()},
        }
        binding = self._session.io_binding()
        for buffers, put in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, (array, shape) in buffers.items():
                put(name, "cpu", 0, array.dtype.type, list(shape), array.ctypes.data)
        return binding
