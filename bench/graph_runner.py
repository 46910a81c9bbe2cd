"""Runs a written CPU graph step by step, with its inputs and outputs bound once per width.

Knows the graph only, not the runtime around it: what the layout benchmarks measure is the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from specdec.session import register_operators

_MOST_LAYERS = 32


class GraphRunner:
    """One session and its key/value cache of ``capacity`` positions, filled with finite garbage."""

    def __init__(
        self,
        graph: Path,
        capacity: int,
        options: ort.SessionOptions | None = None,
        *,
        garbage: float = 0.0,
    ) -> None:
        self.session = ort.InferenceSession(
            str(graph), options or session_options(), providers=["CPUExecutionProvider"]
        )
        declared = self.session.get_inputs()
        shapes = {value.name: value.shape for value in declared}
        types = {value.name: value.type for value in declared}
        self.head_size: int = self.session.get_outputs()[0].shape[2]
        names = [name for name in shapes if name.startswith("past")]
        self.cache: dict[str, ort.OrtValue] = {}
        for name in names:
            self.cache[name] = new_cache(shapes[name], types[name], capacity, garbage)
        self._positions = {"rows", "seqlens_k", "total_length"} & shapes.keys()
        self._bindings: dict[tuple[int, int], tuple[Any, ...]] = {}

    def step(self, tokens: list[int], past: int, first_row: int = 0) -> NDArray[np.float32]:
        """Logits [S - first_row, head_size] of ``tokens`` behind ``past`` positions; a copy."""
        binding, inputs, logits = self._bind(len(tokens), first_row)
        self._fill(inputs, tokens, past)
        self.session.run_with_iobinding(binding)
        return np.array(logits.numpy()[0])

    def prepare(self, tokens: list[int], past: int, first_row: int = 0) -> Any:
        """The binding of that step, for ``session.run_with_iobinding`` to run alone."""
        binding, inputs, _ = self._bind(len(tokens), first_row)
        self._fill(inputs, tokens, past)
        return binding

    def _fill(self, inputs: dict[str, ort.OrtValue], tokens: list[int], past: int) -> None:
        inputs["tokens"].update_inplace(np.array([tokens], np.int64))
        for name, values in positions(past, len(tokens)).items():
            if name in inputs:
                inputs[name].update_inplace(values)

    def _bind(self, width: int, first_row: int) -> tuple[Any, dict[str, ort.OrtValue], Any]:
        key = (width, first_row)
        if key in self._bindings:
            return self._bindings[key]
        binding = self.session.io_binding()
        inputs = {
            "tokens": ort.OrtValue.ortvalue_from_numpy(np.zeros((1, width), np.int64)),
            "first_logit_row": ort.OrtValue.ortvalue_from_numpy(np.array([first_row], np.int64)),
        }
        for name, values in positions(0, width).items():
            if name in self._positions:
                inputs[name] = ort.OrtValue.ortvalue_from_numpy(values)
        shape = (1, width - first_row, self.head_size)
        logits = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
        binding.bind_ortvalue_output("logits", logits)
        self._bindings[key] = binding, inputs, logits
        return self._bindings[key]


def new_cache(
    shape: Sequence[int | str], element_type: str, capacity: int, garbage: float
) -> ort.OrtValue:
    """Memory for ``past…`` [..., kv_heads, capacity, head_dim] of one sequence.

    Of 16 bits in whole tiles of 32 columns; of an attached drafter's graph with as many layers as
    any target of ours has.
    """
    halves = element_type == "tensor(float16)"
    columns = (capacity + 31) // 32 * 32 if halves else capacity
    sizes = {"capacity": columns, "target_layers": _MOST_LAYERS}
    whole = [sizes.get(size, 1) if isinstance(size, str) else size for size in shape]
    return ort.OrtValue.ortvalue_from_numpy(
        np.full(whole, garbage, np.float16 if halves else np.float32)
    )


def positions(past: int, width: int) -> dict[str, NDArray[np.int32]]:
    """What graphs are told of a step of ``width`` tokens in a line, each in one of two ways."""
    steps = np.arange(width, dtype=np.int32)
    sequence, length = np.zeros(width, np.int32), np.full(width, past, np.int32)
    return {
        "rows": np.stack([sequence, length, past + steps, steps - 1]),
        "seqlens_k": np.array([past + width - 1], np.int32),
        "total_length": np.array(past + width, np.int32),
    }


def session_options(
    threads: int = 0, entries: Mapping[str, str] | None = None
) -> ort.SessionOptions:
    """Options with ``threads`` (0: one per core) and configuration entries such as spinning."""
    options = ort.SessionOptions()
    if problem := register_operators(options):
        raise RuntimeError(problem)
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    return options
