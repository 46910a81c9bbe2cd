"""The network as nodes of ONNX and of ONNX Runtime, with a layout's linears."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from specdec.convert.activation import Activation
from specdec.convert.checkpoint import Checkpoint
from specdec.convert.graph import MICROSOFT, Graph
from specdec.convert.layouts import Layout
from specdec.convert.matrix import FloatArray, Matrix, stack_rows
from specdec.convert.rotary import rotary_tables

HIDDEN = "hidden"

Progress = Callable[[float], None]


class DecoderGraph:
    """Adds the network to ``graph``, layer by layer; ``FusedGraph`` has them in one node."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout, graph: Graph) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.layout = layout
        self.graph = graph
        self._normalised_features = ""

    def write(self, progress: Progress) -> None:
        layers = self.config.layers
        self._declare_inputs()
        residual, update = self._embedding(), ""
        residual, update = self._layers(
            residual, update, lambda layer: progress((layer + 1) / (layers + 2))
        )
        progress((layers + 1) / (layers + 2))
        self._head(residual, update)
        progress(1.0)

    def _declare_inputs(self) -> None:
        graph, config = self.graph, self.config
        graph.input("tokens", np.int64, [1, "S"])
        self._declare_positions()
        graph.input("first_logit_row", np.int64, [1])
        head_size = (
            config.vocab if self.checkpoint.head_ids is None else len(self.checkpoint.head_ids)
        )
        graph.output("logits", np.float32, [1, "rows", head_size])
        graph.output(HIDDEN, np.float32, [1, "S", config.hidden])
        if config.target_layers is not None:
            graph.input("features", np.float32, [1, "S", config.hidden])
        self._declare_cache()
        cosine, sine = rotary_tables(self.checkpoint)
        graph.initializer("rotary.cosine", cosine)
        graph.initializer("rotary.sine", sine)

    def _declare_positions(self) -> None:
        self.graph.input("seqlens_k", np.int32, [1])
        self.graph.input("total_length", np.int32, [])

    def _declare_cache(self) -> None:
        cache: list[int | str] = [1, self.config.kv_heads, "capacity", self.config.head_dim]
        for layer in range(self.config.layers):
            for part in ("key", "value"):
                self.graph.input(f"past_{part}.{layer}", np.float32, cache)
                self.graph.output(f"present_{part}.{layer}", np.float32, cache)

    def _embedding(self) -> str:
        """The residual stream's first value."""
        return self.layout.embedding(self.graph, "embedding", self.checkpoint.matrix("embedding"))

    def _layers(self, residual: str, update: str, begin: Callable[[int], None]) -> tuple[str, str]:
        """Adds them; returns the residual stream and what is yet to be added to it."""
        for layer in range(self.config.layers):
            begin(layer)
            if layer in self.config.bridges:
                residual, update = self._bridge(layer, residual, update)
            residual, update = self._layer(layer, residual, update)
        return residual, update

    def _layer(self, layer: int, residual: str, update: str) -> tuple[str, str]:
        residual, x = self._gained_norm(f"layers.{layer}.attention_norm", residual, update)
        update = self._attention(layer, x)
        residual, x = self._gained_norm(f"layers.{layer}.ffn_norm", residual, update)
        return residual, self._feed_forward(layer, x)

    def _bridge(self, layer: int, residual: str, update: str) -> tuple[str, str]:
        """Leads the residual stream across the target's layers before ``target_layers[layer]``.

        What it has become there is guessed, with H = hidden, from itself and the features f, as
        ``scale * x + bias + W [norm(x); norm(f)]``: scale and bias [H], W [H, 2 H].
        """
        graph, prefix, hidden = self.graph, f"layers.{layer}", self.config.hidden
        ones = np.ones(hidden, np.float32)
        residual, x = self._norm(f"{prefix}.bridge_norm", residual, update, ones)
        read = graph.node("Concat", [x.name, self._features()], f"{prefix}.bridge_input", axis=-1)
        # Like the attention's output, this is added to the residual stream.
        update = self.layout.attention_output(
            graph,
            f"{prefix}.bridge",
            Activation(read, 2 * hidden, x.bound),
            self._stacked(prefix, "bridge"),
        )
        scale, bias = (
            graph.initializer(name, self.checkpoint.vector(name))
            for name in (f"{prefix}.bridge_scale", f"{prefix}.bridge_bias")
        )
        scaled = graph.node("Mul", [residual, scale], f"{prefix}.bridge_scaled")
        return graph.node("Add", [scaled, bias], f"{prefix}.bridge_residual"), update

    def _features(self) -> str:
        """The normalised features, which all bridges read."""
        if not self._normalised_features:
            ones = np.ones(self.config.hidden, np.float32)
            _, x = self._norm("features_norm", "features", "", ones)
            self._normalised_features = x.name
        return self._normalised_features

    def _attention(self, layer: int, x: Activation) -> str:
        graph, config, prefix = self.graph, self.config, f"layers.{layer}"
        qkv = self.layout.qkv(
            graph, f"{prefix}.qkv", x, self._stacked(prefix, "query", "key", "value")
        )
        mixed = f"{prefix}.attention"
        graph.nodes(
            "GroupQueryAttention",
            [
                *(qkv, "", ""),
                *(f"past_key.{layer}", f"past_value.{layer}", "seqlens_k", "total_length"),
                *("rotary.cosine", "rotary.sine"),
            ],
            [mixed, f"present_key.{layer}", f"present_value.{layer}"],
            domain=MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        x = Activation(mixed, config.heads * config.head_dim)
        name = f"{prefix}.attention_output"
        return self.layout.attention_output(
            graph, name, x, self._stacked(prefix, "attention_output")
        )

    def _feed_forward(self, layer: int, x: Activation) -> str:
        graph, prefix = self.graph, f"layers.{layer}"
        both = self.layout.gate_up(
            graph, f"{prefix}.gate_up", x, self._stacked(prefix, "gate", "up")
        )
        gate, up = f"{prefix}.gate", f"{prefix}.up"
        graph.nodes("Split", [both], [gate, up], axis=-1, num_outputs=2)
        silu = graph.node("QuickGelu", [gate], f"{prefix}.silu", domain=MICROSOFT, alpha=1.0)
        x = Activation(graph.node("Mul", [silu, up], f"{prefix}.gated"), self.config.ffn)
        return self.layout.down(graph, f"{prefix}.down", x, self._stacked(prefix, "down"))

    def _stacked(self, prefix: str, *roles: str) -> Matrix:
        """The linears that read the same input as one."""
        return stack_rows([self.checkpoint.matrix(f"{prefix}.{role}") for role in roles])

    def _gained_norm(self, name: str, residual: str, update: str) -> tuple[str, Activation]:
        return self._norm(name, residual, update, self.checkpoint.vector(name))

    def _norm(
        self, name: str, residual: str, update: str, gain: FloatArray
    ) -> tuple[str, Activation]:
        """Adds ``update`` (if any) to the residual stream; returns it and its normalised form."""
        graph, hidden = self.graph, self.config.hidden
        weights = graph.initializer(f"{name}.gain", gain)
        if update:
            total = f"{name}.residual"
            graph.nodes(
                "SkipSimplifiedLayerNormalization",
                [residual, update, weights],
                [name, "", "", total],
                domain=MICROSOFT,
                epsilon=self.config.norm_eps,
            )
        else:
            total = residual
            graph.node(
                "SimplifiedLayerNormalization",
                [residual, weights],
                name,
                axis=-1,
                epsilon=self.config.norm_eps,
                stash_type=1,
            )
        return total, Activation(name, hidden, bound=_norm_bound(gain))

    def _head(self, residual: str, update: str) -> None:
        graph = self.graph
        _, x = self._norm(HIDDEN, residual, update, self.checkpoint.vector("final_norm"))
        rows = graph.node(
            "Slice",
            [
                x.name,
                "first_logit_row",
                graph.constant([np.iinfo(np.int64).max], np.int64),
                graph.constant([1], np.int64),
            ],
            "final_rows",
        )
        x = Activation(rows, x.size, x.bound)
        self.layout.head(graph, "logits", x, self.checkpoint.matrix("head"))


def _norm_bound(gain: FloatArray) -> float:
    """No element of a root-mean-square norm of n values exceeds sqrt(n) times its gain."""
    return math.sqrt(gain.size) * float(np.abs(gain).max())
