"""Cuts a model's layers into parts, and writes each part's graphs and data file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import onnx

from specdec.convert.checkpoint import ModelConfig
from specdec.convert.external_data import ExternalData
from specdec.convert.float_forward import LINEAR_INPUTS
from specdec.convert.graph import Graph
from specdec.convert.htp.graph import HTP_OPSET, LayersWriter, LayerTensors, write_head
from specdec.convert.htp.layouts import HtpLayout
from specdec.convert.htp.nodes import QuantisedGraph
from specdec.convert.htp.weights import QuantLinear
from specdec.convert.matrix import FloatArray
from specdec.htp_plan import Encoding, Part

# What the NPU's process can map is a few gigabytes for everything; compiling takes five times a
# part's weights in memory. Llama-2-7B in 4 bits becomes four parts of 8 layers.
DEFAULT_PART_BYTES = 880 * 2**20


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's linears, by role."""
    hidden, ffn = config.hidden, config.ffn
    heads, kv_heads = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "query": (hidden, heads),
        "key": (hidden, kv_heads),
        "value": (hidden, kv_heads),
        "attention_output": (heads, hidden),
        "gate": (hidden, ffn),
        "up": (hidden, ffn),
        "down": (ffn, hidden),
    }


def cut_layers(config: ModelConfig, layout: HtpLayout, limit: int) -> list[range]:
    """Consecutive layers for each part: as few parts as ``limit`` bytes allow, and evenly long."""
    shapes = linear_shapes(config)
    total = sum(
        layout.kind(f"layers.{layer}.{role}").bytes(*shapes[role])
        for layer in range(config.layers)
        for role in LINEAR_INPUTS
    )
    parts = min(config.layers, max(1, -(-total // limit)))
    longest = -(-config.layers // parts)
    return [
        range(first, min(first + longest, config.layers))
        for first in range(0, config.layers, longest)
    ]


class LayersPart:
    """One part's graphs while they are written, layer by layer; then its entry in the plan."""

    def __init__(
        self,
        folder: Path,
        name: str,
        config: ModelConfig,
        layers: range,
        widths: Sequence[int],
        past: int,
    ) -> None:
        self._folder = folder
        self._name = name
        self._config = config
        self._layers = layers
        self._past = past
        self._data = ExternalData(folder / f"{name}.data")
        self._graphs = {width: Graph(name, self._data, opset=HTP_OPSET) for width in widths}
        self._writers: dict[int, LayersWriter] = {}

    def add(self, layer: int, tensors: LayerTensors) -> None:
        """Adds the next layer to the graph of every width."""
        for width, graph in self._graphs.items():
            if layer == self._layers.start:
                self._writers[width] = LayersWriter(
                    QuantisedGraph(graph), self._config, width, self._past, tensors.encodings
                )
            self._writers[width].layer(layer, tensors, last=layer == self._layers.stop - 1)

    def save(self) -> Part:
        """Writes the graphs; the data file is whole when this is left as a context manager."""
        files = _save(self._graphs, self._folder, self._name)
        return Part(self._name, "layers", self._layers.start, self._layers.stop, files)

    def __enter__(self) -> LayersPart:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._data.__exit__(kind, error, trace)


def write_heads(
    folder: Path,
    config: ModelConfig,
    widths: Sequence[int],
    gain: FloatArray,
    weights: QuantLinear,
    encodings: Mapping[str, Encoding],
    *,
    best: bool,
) -> list[Part]:
    """Writes the heads ``logits`` and (if wanted) ``best``, which share one data file."""
    parts = []
    with ExternalData(folder / "head.data") as data:
        for kind in ("logits", "best") if best else ("logits",):
            graphs = {width: Graph(kind, data, opset=HTP_OPSET) for width in widths}
            for width, graph in graphs.items():
                writer = QuantisedGraph(graph)
                write_head(writer, config, width, gain, weights, encodings, best=kind == "best")
            files = _save(graphs, folder, kind)
            parts.append(Part(kind, kind, config.layers, config.layers, files))
    return parts


def _save(graphs: Mapping[int, Graph], folder: Path, name: str) -> dict[int, str]:
    files = {width: f"{name}.w{width}.onnx" for width in graphs}
    for width, file in files.items():
        onnx.save(graphs[width].model(), folder / file)
    return files
