"""Fixed-shape models: a chain of sessions for each width, bound to buffers that the core owns.

The sessions run on the NPU, or on the CPU provider with all quantizers as they stand, which is the
same arithmetic for looking into. The core fills its buffers and calls ``run(width, head)``. As on
the CPU, bindings are made once; a step changes values in buffers, never bindings.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from specdec import _core
from specdec.errors import ModelFolderError, ModelRunError
from specdec.htp_plan import HtpPlan, Part
from specdec.model_folder import ModelConfig, ModelFolder
from specdec.qnn.compiled import Compiled, check_compiled
from specdec.qnn.options import QnnOptions
from specdec.qnn.past_memory import PastMemory
from specdec.qnn.sessions import open_on_cpu, open_session, plain_line
from specdec.qnn.sink import Sink, load_sink

_Table = np.ndarray[Any, np.dtype[np.uint16]]
_HEADS = (None, "logits", "best")
"""What the core's numbers of heads mean."""
_loading = threading.Lock()
"""Held while a model's sessions are made: graphs of a shared binary are handed from one to the
next by name, which another model's might have as well."""
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
}


class FixedSession:
    """A fixed-shape model, loaded. Decoders made from one FixedSession share its weights.

    Every graph of every width is loaded at once, so that what is wrong with one is said here and
    a step never waits for a load.

    Raises:
        BackendError: The NPU cannot be had, or does not take a graph.
        ModelFolderError: The plan or a graph is damaged, or compiled for something else.
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        backend: str,
        threads: int | None = None,
        options: QnnOptions | None = None,
    ):
        self.plan = HtpPlan.read(folder.graph_path)
        self._folder = folder
        self._config = folder.config
        _check_plan(folder, self.plan)
        self.sink: Sink | None = load_sink(folder, self.plan)
        self._embedding, self._rotary = _open_tables(folder, self.plan)
        options = options or QnnOptions()
        self._shares_memory = backend == "qnn" and options.shared_memory
        compiled = Compiled.read(folder)
        if compiled is not None:
            options = check_compiled(folder, compiled, options)
        self._graphs: dict[tuple[str, int], Any] = {}
        config = {} if compiled is None else compiled.session_config()
        with _loading:
            for part in self.plan.parts:
                for width, name in part.graphs.items():
                    path = folder.path / name
                    if backend == "qnn":
                        session = open_session(path, options, config)
                    else:
                        session = open_on_cpu(path, threads)
                    _check_graph(path, session, _shapes(self._config, self.plan, part, width))
                    self._graphs[part.name, width] = session

    def new_decoder(
        self, *, head_ids: np.ndarray[Any, np.dtype[np.int32]] | None = None
    ) -> _core.FixedDecoder:
        """A decoder with a KV cache of its own, of the ``past`` columns that the graphs take."""
        plan, config = self.plan, self._config
        runner = _Runner(self._graphs, plan, config)
        memory = PastMemory(plan, config) if self._shares_memory else None
        decoder = _core.FixedDecoder(
            vocabulary=config.vocab,
            head_ids=[] if head_ids is None else head_ids.tolist(),
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            hidden=config.hidden,
            past=plan.past,
            widths=list(plan.widths),
            kv_bytes=1 if plan.key[0].type == "uint8" else 2,
            embedding=self._embedding,
            rotary=self._rotary,
            mask_allowed=plan.mask_allowed,
            mask_blocked=plan.mask_blocked,
            logits_scale=plan.logits.scale,
            logits_zero_point=plan.logits.zero_point,
            logits_float16=plan.logits.type == "float16",
            sink=None if self.sink is None else self.sink.for_core(),
            has_best=plan.has_head("best"),
            run=runner,
            past_memory=memory,
        )
        runner.attach(decoder, memory)
        return decoder


class _Runner:
    """Runs the sessions on a decoder's buffers; the layers' own go from part to part.

    Holds addresses and not the decoder, which owns this runner: the two die together.
    """

    def __init__(self, graphs: dict[tuple[str, int], Any], plan: HtpPlan, config: ModelConfig):
        self._graphs = graphs
        self._plan = plan
        self._buffers: dict[str, int] = {}
        self._past: PastMemory | None = None
        # A part reads one of them and writes the other.
        size = plan.widths[-1] * config.hidden
        self._hidden = [np.zeros(size, np.uint16) for _ in range(2)]
        self._steps: dict[tuple[int, int], list[Callable[[], None]]] = {}

    def attach(self, decoder: _core.FixedDecoder, past: PastMemory | None) -> None:
        self._buffers = {name: array.ctypes.data for name, array in decoder.buffers().items()}
        self._past = past
        for width in self._plan.widths:
            layers = self._bind_layers(width)
            self._steps[width, 0] = layers
            for head in (1, 2):
                parts = self._plan.chain(width, _HEADS[head])[len(layers) :]
                self._steps[width, head] = layers + [
                    self._bind(part, width, len(layers)) for part in parts
                ]

    def __call__(self, width: int, head: int) -> None:
        try:
            for run in self._steps[width, head]:
                run()
        except Exception as error:
            raise ModelRunError(
                f"ONNX Runtime failed in a step of {width} tokens: {plain_line(str(error))}"
            ) from error

    def _bind_layers(self, width: int) -> list[Callable[[], None]]:
        parts = self._plan.chain(width, None)
        return [self._bind(part, width, index) for index, part in enumerate(parts)]

    def _bind(self, part: Part, width: int, index: int) -> Callable[[], None]:
        """Bind the graph at ``index`` in the chain of a width."""
        session = self._graphs[part.name, width]
        binding = session.io_binding()

        def address(name: str) -> int:
            if name == "x" and index > 0:
                return int(self._hidden[(index - 1) % 2].ctypes.data)
            if name == "hidden":
                return int(self._hidden[index % 2].ctypes.data)
            # Past columns are one memory for all widths.
            return self._buffers[name if name.startswith("past_") else f"{name}.{width}"]

        for tensors, bind in (
            (session.get_inputs(), binding.bind_input),
            (session.get_outputs(), binding.bind_output),
        ):
            for tensor in tensors:
                if self._past is not None and tensor.name in self._past.values:
                    binding.bind_ortvalue_input(tensor.name, self._past.values[tensor.name])
                    continue
                dtype = _DTYPES[tensor.type]
                bind(tensor.name, "cpu", 0, dtype, tensor.shape, address(tensor.name))
        return partial(session.run_with_iobinding, binding)


def _open_tables(folder: ModelFolder, plan: HtpPlan) -> list[_Table]:
    """Embedding rows and rotary factors, mapped and not read."""
    config = folder.config
    shapes = {
        plan.embedding_file: (config.vocab, config.hidden),
        plan.rotary_file: (2, plan.past + plan.widths[-1], config.head_dim // 2),
    }
    tables: list[_Table] = []
    for name, shape in shapes.items():
        path = folder.path / name
        try:
            if path.stat().st_size != 2 * math.prod(shape):
                raise ValueError("another size")
            tables.append(np.memmap(path, dtype=np.uint16, mode="r", shape=shape))
        except (OSError, ValueError) as error:
            raise ModelFolderError(
                f"{path}: is not the table of {list(shape)} elements of the plan; convert it again"
            ) from error
    return tables


def _check_plan(folder: ModelFolder, plan: HtpPlan) -> None:
    config, file = folder.config, folder.graph_path
    if (len(plan.key), plan.past) != (config.layers, config.context):
        raise ModelFolderError(
            f"{file}: is a plan for {len(plan.key)} layers and a context of {plan.past}, and the "
            f"model has {config.layers} and {config.context}; convert it again"
        )
    names = [name for part in plan.parts for name in part.graphs.values()]
    for name in (*names, plan.embedding_file, plan.rotary_file, plan.sink_file):
        if name is not None and name not in folder.manifest["files"]:
            raise ModelFolderError(f"{file}: names {name!r}, which the folder lacks")
    if not plan.has_head("logits"):
        raise ModelFolderError(f"{file}: has no graph that gives logits; convert it again")


def _shapes(config: ModelConfig, plan: HtpPlan, part: Part, width: int) -> dict[str, list[int]]:
    """Inputs and outputs that the plan promises of a graph."""
    shapes = {"x": [1, width, config.hidden]}
    if part.kind == "logits":
        return shapes | {"logits": [1, width, config.head_size]}
    if part.kind == "best":
        return shapes | {"best": [1, width]}
    for name in ("cos", "sin"):
        shapes[name] = [1, 1, width, config.head_dim // 2]
    shapes["mask"] = [1, 1, width, plan.past + width]
    shapes["hidden"] = [1, width, config.hidden]
    heads, dim = config.kv_heads, config.head_dim
    for layer in range(part.first_layer, part.end_layer):
        for kind, columns in (("past", plan.past), ("new", width)):
            shapes[f"{kind}_key.{layer}"] = [1, heads, dim, columns]
            shapes[f"{kind}_value.{layer}"] = [1, heads, columns, dim]
    return shapes


def _check_graph(path: Path, session: Any, wanted: dict[str, list[int]]) -> None:
    tensors = [*session.get_inputs(), *session.get_outputs()]
    found = {tensor.name: tensor.shape for tensor in tensors}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise ModelFolderError(
                f"{path}: {name!r} has the shape {found.get(name)} where the plan has "
                f"{wanted.get(name)}; convert the model again"
            )
    for tensor in tensors:
        if tensor.type not in _DTYPES:
            raise ModelFolderError(f"{path}: {tensor.name!r} is a {tensor.type}; convert it again")
