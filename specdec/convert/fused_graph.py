"""The network in a few nodes, all of them operators of the core (domain ``specdec``).

``DecoderLayers`` is all layers, and a drafter's bridges between them; ``NormLinear`` adds what is
new to the residual stream, normalises it and multiplies it: the head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import numpy as np

from specdec.convert.blocks import PackedMatrix, is_exact4, pack_gated, pack_rows
from specdec.convert.decoder_graph import HIDDEN, DecoderGraph
from specdec.convert.matrix import Matrix
from specdec.convert.packed_linear import DOMAIN, weights
from specdec.convert.six_bits import MixedMatrix, pack_mixed
from specdec.errors import CheckpointError

_LAST_BRIDGE = 62  # bits of an int64 that is not negative

Pack: TypeAlias = Callable[[list[Matrix]], PackedMatrix]


class FusedGraph(DecoderGraph):
    """The cache holds any number of sequences: ``rows`` says which one a token belongs to."""

    def _declare_positions(self) -> None:
        self.graph.input("rows", np.int32, [4, "S"])

    def _declare_cache(self) -> None:
        """All layers' as one tensor: the runtime handles each of its inputs anew in every step."""
        config = self.config
        layers = config.layers if config.target_layers is None else "target_layers"
        cache = [layers, 2, "sequences", config.kv_heads, "capacity", config.head_dim]
        self.graph.input("past", np.float16, cache)
        self.graph.output("present", np.float16, cache)

    @cached_property
    def _mixed_head(self) -> MixedMatrix | None:
        """The head in 8 and 6 bits; None where it is held otherwise."""
        matrix = self.checkpoint.matrix("head")
        if not self.layout.mixed_head or is_exact4(matrix):
            return None
        return pack_mixed(matrix, self.checkpoint.vector("final_norm"))

    def _embedding(self) -> str:
        mixed = self._mixed_head
        if mixed is None or not self.config.tied_head or mixed.outputs != self.config.vocab:
            return super()._embedding()
        order = self.graph.initializer("embedding.order", mixed.order)
        factors = self.graph.initializer("embedding.factors", mixed.divided)
        return self.graph.node(
            "Embedding",
            [
                "tokens",
                *weights(self.graph, "embedding", mixed),
                order,
                factors,
                self.graph.initializer("embedding.fine", mixed.fine),
            ],
            "embedding",
            domain=DOMAIN,
            bits=mixed.bits,
            outputs=mixed.outputs,
        )

    def _layers(self, residual: str, update: str, begin: Callable[[int], None]) -> tuple[str, str]:
        config = self.config
        bridges = [layer for layer in range(config.layers) if layer in config.bridges]
        if bridges and bridges[-1] > _LAST_BRIDGE:
            raise CheckpointError(
                f"layer {bridges[-1]} of this drafter begins with a bridge; the fused layouts take "
                f"bridges up to layer {_LAST_BRIDGE}: choose another --layout"
            )
        cache_layers = ""
        if config.target_layers is not None:
            layers = np.array(config.target_layers, np.int32)
            cache_layers = self.graph.initializer("layers.cache", layers)
        inputs = [residual, update, "rows", "rotary.cosine", "rotary.sine"]
        inputs += ["features" if bridges else "", "past", cache_layers]
        outputs = ["layers.residual", "layers.update", "present"]
        for layer in range(config.layers):
            begin(layer)
            inputs += self._weights(layer)
            inputs += self._bridge_weights(layer) if layer in bridges else []
        self.graph.nodes(
            "DecoderLayers",
            inputs,
            outputs,
            domain=DOMAIN,
            layers=config.layers,
            bridges=sum(1 << layer for layer in bridges),
            heads=config.heads,
            kv_heads=config.kv_heads,
            epsilon=config.norm_eps,
        )
        return outputs[0], outputs[1]

    def _weights(self, layer: int) -> list[str]:
        """The initializers of a layer, as DecoderLayers takes them."""
        graph, checkpoint, prefix = self.graph, self.checkpoint, f"layers.{layer}"

        def gain(norm: str) -> str:
            return graph.initializer(f"{prefix}.{norm}.gain", checkpoint.vector(f"{prefix}.{norm}"))

        def packed(
            name: str, pack: Callable[[list[Matrix]], PackedMatrix], *roles: str
        ) -> list[str]:
            matrices = [checkpoint.matrix(f"{prefix}.{role}") for role in roles]
            return weights(graph, f"{prefix}.{name}", pack(matrices))

        return [
            gain("attention_norm"),
            *packed("qkv", self._pack, "query", "key", "value"),
            *packed("attention_output", self._pack, "attention_output"),
            gain("ffn_norm"),
            *packed("gated", self._pack_gated, "gate", "up"),
            *packed("down", self._pack, "down"),
        ]

    def _pack(self, matrices: list[Matrix]) -> PackedMatrix:
        return pack_rows(matrices, byte_scales=self.layout.byte_scales)

    def _pack_gated(self, both: list[Matrix]) -> PackedMatrix:
        return pack_gated(*both, byte_scales=self.layout.byte_scales)

    def _bridge_weights(self, layer: int) -> list[str]:
        """The initializers of the bridge that leads to a layer."""
        graph, prefix = self.graph, f"layers.{layer}"
        packed = self._pack([self.checkpoint.matrix(f"{prefix}.bridge")])
        return [
            graph.initializer(
                f"{prefix}.bridge_scale", self.checkpoint.vector(f"{prefix}.bridge_scale")
            ),
            graph.initializer(
                f"{prefix}.bridge_bias", self.checkpoint.vector(f"{prefix}.bridge_bias")
            ),
            *weights(graph, f"{prefix}.bridge", packed),
        ]

    def _head(self, residual: str, update: str) -> None:
        mixed = self._mixed_head
        packed = mixed or self._pack([self.checkpoint.matrix("head")])
        graph = self.graph
        gain = graph.initializer(f"{HIDDEN}.gain", self.checkpoint.vector("final_norm"))
        inputs = [residual, update, gain, *weights(graph, "logits", packed), "first_logit_row"]
        outputs = ["logits", "", HIDDEN]
        attributes = {}
        if mixed is not None:
            inputs.append(graph.initializer("logits.order", mixed.order))
            inputs.append(graph.initializer("logits.gain", mixed.gain))
            inputs.append(graph.initializer("logits.fine", mixed.fine))
            if self.config.target_layers is None:
                inputs.append(graph.initializer("logits.spread", mixed.spread))
                inputs.append(graph.optional_input("best_only", np.zeros(1, np.int64)))
                outputs.append(graph.output("best", np.int32, [1, "rows"]))
                attributes = {"size": mixed.size}
        graph.nodes(
            "NormLinear",
            inputs,
            outputs,
            domain=DOMAIN,
            bits=packed.bits,
            outputs=packed.outputs,
            epsilon=self.config.norm_eps,
            activation="none",
            **attributes,
        )
