"""Llama 2's shape, tiny: as many key/value heads as heads, an untied head."""

from __future__ import annotations

from bench.random_llama import SMALLEST_VOCAB
from specdec.convert.checkpoint import ModelConfig


def tiny_llama2(
    layers: int = 2, hidden: int = 128, heads: int = 4, ffn: int = 256, context: int = 256
) -> ModelConfig:
    return ModelConfig(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=ffn,
        vocab=SMALLEST_VOCAB + 40,
        context=context,
        rope_theta=10000.0,
        norm_eps=1e-5,
        tied_head=False,
    )
