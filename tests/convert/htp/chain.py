"""Runs a folder of fixed-shape graphs with numpy arrays: a step at a time, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from specdec.htp_plan import PLAN_FILE, Encoding, HtpPlan
from specdec.model_folder import ModelFolder

Array = np.ndarray[Any, np.dtype[Any]]
Open = Callable[[Path], Any]


def open_on_cpu(graph: Path) -> onnxruntime.InferenceSession:
    """The graph as it is written: no integer kernels in place of what lies between Q and DQ."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def decode(values: Array, encoding: Encoding) -> Array:
    """The real numbers that ``values`` stand for."""
    shifted = values.astype(np.float64) - encoding.zero_point
    return shifted * encoding.scale


class Chain:
    """Holds the cache; position 0 is the sink where the folder has one."""

    def __init__(self, folder: Path, open_graph: Open = open_on_cpu) -> None:
        self.plan = plan = HtpPlan.read(folder / PLAN_FILE)
        config = ModelFolder.open(folder).config
        self.sessions = {
            name: open_graph(folder / name) for part in plan.parts for name in part.graphs.values()
        }
        self.config = config
        dtype = np.dtype(plan.x.type)
        rows = (config.vocab, config.hidden)
        self.embedding = np.fromfile(folder / plan.embedding_file, dtype).reshape(rows)
        tables = (2, plan.past + plan.widths[-1], config.head_dim // 2)
        self.rotary = np.fromfile(folder / plan.rotary_file, dtype).reshape(tables)
        cache = np.dtype(plan.key[0].type)
        heads, size = config.kv_heads, config.head_dim
        zero = plan.key[0].zero_point
        self.keys = [np.full((1, heads, size, plan.past), zero, cache) for _ in plan.key]
        self.values = [np.full((1, heads, plan.past, size), zero, cache) for _ in plan.value]
        self.sink: Any = None
        if plan.sink_file:
            self.sink = np.load(folder / plan.sink_file)
            for layer in range(config.layers):
                self.keys[layer][0, :, :, 0] = self.sink["key"][layer]
                self.values[layer][0, :, 0] = self.sink["value"][layer]
        self.truncate()

    def truncate(self) -> None:
        """Back to the first position."""
        self.length = 0 if self.sink is None else 1

    def step(self, tokens: Sequence[int], width: int, head: str = "logits") -> Array:
        """Runs ``tokens`` in the graphs of ``width``, keeps them all, returns the head's rows."""
        plan, count, past = self.plan, len(tokens), self.length
        padded = [*tokens, *[tokens[-1]] * (width - count)]
        mask = np.full((1, 1, width, plan.past + width), plan.mask_blocked, np.uint16)
        mask[..., :past] = plan.mask_allowed
        new = mask[0, 0, :, plan.past :]
        new[np.tril_indices(width)] = plan.mask_allowed
        feeds: dict[str, Array] = {
            "x": self.embedding[padded][None],
            "cos": self.rotary[0, past : past + width][None, None],
            "sin": self.rotary[1, past : past + width][None, None],
            "mask": mask.view(plan.x.type),
        }
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            feeds |= {f"past_key.{layer}": key, f"past_value.{layer}": value}
        for part in plan.chain(width, head):
            session = self.sessions[part.graphs[width]]
            found = self._run(session, feeds)
            feeds |= found
            if "hidden" in found:
                feeds["x"] = found["hidden"]
        for layer in range(self.config.layers):
            key, value = feeds[f"new_key.{layer}"], feeds[f"new_value.{layer}"]
            self.keys[layer][..., past : past + count] = key[..., :count]
            self.values[layer][:, :, past : past + count] = value[:, :, :count]
        self.length += count
        if head == "best":
            return feeds["best"][0, :count]
        return decode(feeds["logits"][0, :count], plan.logits)

    def logits(self, tokens: Sequence[int], width: int) -> Array:
        """[S, head_size] of a whole text from position 0, in steps of ``width``."""
        rows = []
        if self.sink is not None:
            assert tokens[0] == self.sink["token"]
            rows.append(self.sink["logits"][None])
        while self.length < len(tokens):
            rows.append(self.step(tokens[self.length : self.length + width], width))
        return np.concatenate(rows)

    def _run(self, session: Any, feeds: dict[str, Array]) -> dict[str, Array]:
        names = [output.name for output in session.get_outputs()]
        wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(names, wanted), strict=True))
