"""Sessions of the writers, on buffers of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime
from numpy.typing import NDArray

from specdec.errors import BackendError
from specdec.session import register_operators

Buffers: TypeAlias = Mapping[str, tuple[NDArray[Any], tuple[int, ...]]]
"""By the name in the graph: the memory, and the shape that the graph is to see."""


def open_session(
    graph: Path, threads: int | None, *, operators: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the CPU; ``operators``: with the core's own.

    Raises:
        BackendError: ONNX Runtime does not take the core's operators.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    if threads is not None:
        options.intra_op_num_threads = threads
    if operators and (problem := register_operators(options)):
        raise BackendError(f"the fused layouts need specdec's own operators: {problem}")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def bind(session: onnxruntime.InferenceSession, inputs: Buffers, outputs: Buffers) -> Any:
    """A binding of the beginnings of buffers, so that no run copies any."""
    binding = session.io_binding()
    for buffers, put in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
        for name, (array, shape) in buffers.items():
            put(name, "cpu", 0, array.dtype.type, list(shape), array.ctypes.data)
    return binding
