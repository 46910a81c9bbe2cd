"""ONNX Runtime sessions, bound to buffers that the core owns.

This is the whole seam between the core and the inference runtime: the core fills its buffers and
calls ``run(width, first_logit_row)``. Bindings are made once per step shape; a step changes values
in buffers, never bindings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from specdec import _core
from specdec.checks import check_whole, shown
from specdec.errors import InvalidInputError, ModelFolderError, ModelRunError
from specdec.model_folder import ModelConfig

BACKENDS = ("auto", "cpu", "qnn")

PREFILL_WIDTH = 128
"""Tokens in one step of a prefill."""


def check_backend(backend: str, threads: int | None) -> None:
    """Raise InvalidInputError unless ``backend`` is known and ``threads`` is None or at least 1."""
    if backend not in BACKENDS:
        raise InvalidInputError(
            f"backend is {shown(backend)}; this build has {', '.join(map(repr, BACKENDS))}"
        )
    if threads is not None:
        check_whole("threads", threads, 1, 1024, "1 to 1024, or None")


def register_operators(options: onnxruntime.SessionOptions) -> str | None:
    """Make the core's operators known to a session; returns why that failed, None if it did not.

    It is no error yet: only graphs of some layouts have such operators.
    """
    try:
        options.register_custom_ops_library(_core.__file__)
    except Exception as error:
        return _first_line(error)
    return None


# Step shapes that stay bound, some 20 KB each. One text has fewer; many at once can have thousands.
_MOST_BINDINGS = 256


class Session:
    """A graph on the CPU. Decoders made from one Session share its weights.

    Raises:
        ModelFolderError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, graph: Path, config: ModelConfig, *, threads: int | None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions: no need to print them as well
        if threads is not None:
            options.intra_op_num_threads = int(threads)
        # Target and drafter take turns: a pool that goes on spinning after its step would hold the
        # cores that the other one needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        unregistered = register_operators(options)
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _cannot_load(graph, error, unregistered) from error
        self._config = config
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        self._inputs = set(inputs)
        self._outputs = outputs = {value.name for value in self._session.get_outputs()}
        self.gives_hidden = "hidden" in outputs
        """Whether the graph gives hidden states; those of earlier versions do not."""
        self.half_kv = "past" in inputs
        """Whether keys and values are 16-bit floats, else they are 32-bit ones."""
        self.gives_best = "best" in outputs
        """Whether it gives the best token of a row for less than its logits."""
        self.takes_rows = "rows" in self._inputs
        """Whether a step says of each row where it stands.

        Such a graph computes every row by itself, from steps of one row on; of others, steps of
        two rows and more give bit-identical rows, and a single row runs through other kernels.
        """

    def new_decoder(
        self,
        *,
        capacity: int,
        min_width: int,
        max_logit_rows: int,
        row_tile: int = 0,
        best_only: bool = False,
        head_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None,
    ) -> _core.InPlaceDecoder:
        """A decoder with a KV cache of its own.

        Args:
            capacity: Tokens that the KV cache has room for.
            min_width: Narrowest step, in tokens; narrower ones are padded.
            max_logit_rows: Most rows of logits that one step gives.
            row_tile: Rows that the attention takes at once: a last tile of one row is padded to
                two; 0 pads none.
            best_only: Whether to compute no more of a row than its best token where no more is
                asked for, in graphs that can; a drafter's logits say how sure it is.
            head_ids: int32 ``[head_size]``, the vocabulary id of each logit, ascending; None where
                logit i belongs to id i.
        """
        config = self._config
        runner = _Runner(self._session, config, self._inputs, self._outputs)
        decoder = _core.InPlaceDecoder(
            vocabulary=config.vocab,
            head_ids=[] if head_ids is None else head_ids.tolist(),
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            capacity=capacity,
            min_width=min_width,
            max_width=max(PREFILL_WIDTH, max_logit_rows),
            max_logit_rows=max_logit_rows,
            row_tile=row_tile,
            hidden=config.hidden if self.gives_hidden else 0,
            takes_rows=self.takes_rows,
            gives_best=best_only and self.gives_best,
            half_kv=self.half_kv,
            run=runner,
        )
        runner.attach(decoder)
        return decoder

    def new_attached_decoder(
        self,
        target: _core.InPlaceDecoder,
        *,
        target_layers: Sequence[int],
        context: int,
        head_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None,
    ) -> _core.AttachedDecoder:
        """A decoder on the K/V of ``target``, which it keeps alive.

        Args:
            target: A decoder whose graph gives hidden states.
            target_layers: The target's layer that each of the graph's layers shares K/V with.
            context: Positions that the graph can take.
            head_ids: As for ``new_decoder``.
        """
        runner = _Runner(self._session, self._config, self._inputs, self._outputs)
        decoder = _core.AttachedDecoder(
            vocabulary=self._config.vocab,
            head_ids=[] if head_ids is None else head_ids.tolist(),
            target=target,
            target_layers=target_layers,
            context=context,
            run=runner,
        )
        runner.attach(decoder)
        return decoder

    def new_sequence_decoders(
        self,
        *,
        sequences: int,
        capacity: int,
        max_logit_rows: int,
        best_only: bool = False,
        head_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None,
    ) -> list[_core.SequenceDecoder]:
        """Decoders that one step may run together, each with a KV cache of its own.

        For graphs that take rows.

        Args:
            sequences: How many.
            capacity: Tokens that each KV cache has room for.
            max_logit_rows: Most rows of logits that a step gives of one of them.
            best_only: As for ``new_decoder``.
            head_ids: As for ``new_decoder``.
        """
        config = self._config
        runner = _Runner(self._session, config, self._inputs, self._outputs)
        decoders = _core.new_sequence_decoders(
            vocabulary=config.vocab,
            head_ids=[] if head_ids is None else head_ids.tolist(),
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            capacity=capacity,
            sequences=sequences,
            max_width=max(PREFILL_WIDTH, max_logit_rows),
            max_logit_rows=max_logit_rows,
            hidden=config.hidden if self.gives_hidden else 0,
            gives_best=best_only and self.gives_best,
            half_kv=self.half_kv,
            run=runner,
        )
        runner.attach(decoders[0])
        return decoders

    def new_attached_sequence_decoders(
        self,
        targets: Sequence[_core.SequenceDecoder],
        *,
        target_layers: Sequence[int],
        context: int,
        head_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None,
    ) -> list[_core.AttachedSequenceDecoder]:
        """A decoder on the K/V of each of ``targets``; one step may run them together.

        Arguments as for ``new_attached_decoder``.
        """
        runner = _Runner(self._session, self._config, self._inputs, self._outputs)
        decoders = _core.new_attached_sequence_decoders(
            vocabulary=self._config.vocab,
            head_ids=[] if head_ids is None else head_ids.tolist(),
            targets=targets,
            target_layers=target_layers,
            context=context,
            run=runner,
        )
        runner.attach(decoders[0])
        return decoders


class _Runner:
    """Runs the session on a decoder's buffers, with one set of bindings for each step shape.

    Holds addresses and not the decoder, which owns this runner: the two die together. The cache of
    an attached drafter's decoder is its target's.
    """

    def __init__(
        self, session: Any, config: ModelConfig, inputs: Set[str], outputs: Set[str]
    ) -> None:
        self._session = session
        self._config = config
        self._inputs = inputs
        self._outputs = outputs
        self._buffers: dict[str, tuple[Any, list[int], int]] = {}
        self._bindings: dict[tuple[int, int], Callable[[], None]] = {}

    def attach(self, decoder: _core.Decoder) -> None:
        for name, array in decoder.buffers().items():
            self._buffers[name] = (array.dtype.type, list(array.shape), array.ctypes.data)

    def __call__(self, width: int, first_logit_row: int) -> None:
        run = self._bindings.get((width, first_logit_row))
        try:
            if run is None:
                if len(self._bindings) >= _MOST_BINDINGS:
                    self._bindings.clear()
                run = self._bindings[width, first_logit_row] = self._bind(width, first_logit_row)
            run()
        except Exception as error:
            raise ModelRunError(
                f"ONNX Runtime failed in a step of {width} tokens: {_first_line(error)}"
            ) from error

    def _bind(self, width: int, first_logit_row: int) -> Callable[[], None]:
        binding = self._session.io_binding()

        def bind_input(name: str, buffer: str, shape: list[int] | None = None) -> None:
            dtype, whole, address = self._buffers[buffer]
            binding.bind_input(name, "cpu", 0, dtype, whole if shape is None else shape, address)

        def bind_output(name: str, buffer: str, shape: list[int] | None = None) -> None:
            dtype, whole, address = self._buffers[buffer]
            binding.bind_output(name, "cpu", 0, dtype, whole if shape is None else shape, address)

        bind_input("tokens", "tokens", [1, width])
        bind_input("first_logit_row", "first_logit_row")
        for name, shape in (("rows", [4, width]), ("seqlens_k", [1]), ("total_length", [])):
            if name in self._inputs:
                bind_input(name, name, shape)
        head_size = self._config.head_size
        bind_output("logits", "logits", [1, width - first_logit_row, head_size])
        rows = [1, width, self._config.hidden]
        if "best" in self._outputs:
            bind_input("best_only", "best_only")
            bind_output("best", "best", [1, width - first_logit_row])
        if "features" in self._buffers:
            bind_input("features", "features", rows)
        if "hidden" in self._buffers:
            bind_output("hidden", "hidden", rows)
        # The same memory: the graph writes the new columns in place.
        if "past" in self._inputs:
            bind_input("past", "past")
            bind_output("present", "past")
        else:
            for layer in range(self._config.layers):
                for kind in ("key", "value"):
                    bind_input(f"past_{kind}.{layer}", f"{kind}.{layer}")
                    bind_output(f"present_{kind}.{layer}", f"{kind}.{layer}")
        return partial(self._session.run_with_iobinding, binding)


def _cannot_load(graph: Path, error: Exception, unregistered: str | None) -> ModelFolderError:
    if missing := re.search(r"specdec:(\w+)\(", str(error)):
        reason = "" if unregistered is None else f" ({unregistered})"
        return ModelFolderError(
            f"{graph}: it needs the operator {missing[1]}, which this build of specdec does not "
            f"have{reason}; install specdec anew, or convert the model with --layout nbits8"
        )
    return ModelFolderError(
        f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot load it ({_first_line(error)}); "
        "pull or convert the model again"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
