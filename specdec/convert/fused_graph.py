"""The network in five nodes a layer, all of them operators of the core (domain ``specdec``).

``NormLinear`` adds what is new to the residual stream, normalises it and multiplies it, for gate
and up with the gating behind it; ``CachedAttention`` rotates, writes K/V and attends; ``Bridge`` is
all of a bridge.
"""

from __future__ import annotations

import numpy as np

from specdec.convert.activation import Activation
from specdec.convert.blocks import PackedMatrix, pack_gated, pack_rows
from specdec.convert.decoder_graph import HIDDEN, DecoderGraph
from specdec.convert.packed_linear import DOMAIN, weights


class FusedGraph(DecoderGraph):
    """The caches hold any number of sequences: ``rows`` says which one a token belongs to."""

    sequences = "sequences"

    def _declare_positions(self) -> None:
        self.graph.input("rows", np.int32, [4, "S"])

    def _layer(self, layer: int, residual: str, update: str) -> tuple[str, str]:
        config, prefix = self.config, f"layers.{layer}"
        parts = [self.checkpoint.matrix(f"{prefix}.{role}") for role in ("query", "key", "value")]
        qkv, residual = self._norm_linear(
            f"{prefix}.qkv", f"{prefix}.attention_norm", residual, update, pack_rows(parts), "none"
        )
        mixed = f"{prefix}.attention"
        self.graph.nodes(
            "CachedAttention",
            [
                *(qkv, f"past_key.{layer}", f"past_value.{layer}", "rows"),
                *("rotary.cosine", "rotary.sine"),
            ],
            [mixed, f"present_key.{layer}", f"present_value.{layer}"],
            domain=DOMAIN,
            heads=config.heads,
            kv_heads=config.kv_heads,
        )
        x = Activation(mixed, config.heads * config.head_dim)
        update = self.layout.attention_output(
            self.graph,
            f"{prefix}.attention_output",
            x,
            self.checkpoint.matrix(f"{prefix}.attention_output"),
        )
        both = pack_gated(*(self.checkpoint.matrix(f"{prefix}.{role}") for role in ("gate", "up")))
        gated, residual = self._norm_linear(
            f"{prefix}.gated", f"{prefix}.ffn_norm", residual, update, both, "swiglu"
        )
        down = self.checkpoint.matrix(f"{prefix}.down")
        x = Activation(gated, config.ffn)
        return residual, self.layout.down(self.graph, f"{prefix}.down", x, down)

    def _bridge(self, layer: int, residual: str, update: str) -> tuple[str, str]:
        graph, prefix = self.graph, f"layers.{layer}"
        scale, bias = (
            graph.initializer(name, self.checkpoint.vector(name))
            for name in (f"{prefix}.bridge_scale", f"{prefix}.bridge_bias")
        )
        packed = pack_rows([self.checkpoint.matrix(f"{prefix}.bridge")])
        name, total = f"{prefix}.bridge", f"{prefix}.bridge_residual"
        graph.nodes(
            "Bridge",
            [residual, update, "features", scale, bias, *weights(graph, name, packed)],
            [name, total],
            domain=DOMAIN,
            bits=packed.bits,
            outputs=packed.outputs,
            epsilon=self.config.norm_eps,
        )
        return total, name

    def _head(self, residual: str, update: str) -> None:
        packed = pack_rows([self.checkpoint.matrix("head")])
        gain = self.graph.initializer(f"{HIDDEN}.gain", self.checkpoint.vector("final_norm"))
        inputs = [residual, update, gain, *weights(self.graph, "logits", packed)]
        self.graph.nodes(
            "NormLinear",
            [*inputs, "first_logit_row"],
            ["logits", "", HIDDEN],
            domain=DOMAIN,
            bits=packed.bits,
            outputs=packed.outputs,
            epsilon=self.config.norm_eps,
            activation="none",
        )

    def _norm_linear(
        self,
        name: str,
        norm: str,
        residual: str,
        update: str,
        packed: PackedMatrix,
        activation: str,
    ) -> tuple[str, str]:
        """Returns the linear's output, and the residual stream with ``update`` (if any) added."""
        gain = self.graph.initializer(f"{norm}.gain", self.checkpoint.vector(norm))
        total = f"{norm}.residual" if update else residual
        self.graph.nodes(
            "NormLinear",
            [residual, update, gain, *weights(self.graph, name, packed)],
            [name, total] if update else [name],
            domain=DOMAIN,
            bits=packed.bits,
            outputs=packed.outputs,
            epsilon=self.config.norm_eps,
            activation=activation,
        )
        return name, total
