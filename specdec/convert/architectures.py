"""The architectures that can be converted, each declared once.

The next one is another ``Architecture`` in ``ARCHITECTURES``; what its graph needs beyond the
tensors named here (a bias, another activation) goes into ``cpu_graph``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specdec.convert.checkpoint import ModelConfig

# A tensor's shape, outermost first, in the words of sizes().
Shape = tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor's name in GGUF (``{layer}`` stands for its number) and its shape."""

    gguf_name: str
    shape: Shape


@dataclass(frozen=True)
class Architecture:
    """How a checkpoint's metadata and tensors map to the names that the graph writers use."""

    metadata: Mapping[str, str]  # ModelConfig field -> GGUF key
    defaults: Mapping[str, float]  # for keys that may be missing
    embedding: Tensor
    head: Tensor  # absent from a checkpoint with a tied head
    final_norm: Tensor
    layer: Mapping[str, Tensor]
    # llama.cpp stores the rows of these so that values that rotate together are neighbours.
    interleaved_rotary: tuple[str, ...]


LLAMA = Architecture(
    metadata={
        "layers": "llama.block_count",
        "hidden": "llama.embedding_length",
        "heads": "llama.attention.head_count",
        "kv_heads": "llama.attention.head_count_kv",
        "head_dim": "llama.attention.key_length",
        "ffn": "llama.feed_forward_length",
        "context": "llama.context_length",
        "rope_theta": "llama.rope.freq_base",
        "norm_eps": "llama.attention.layer_norm_rms_epsilon",
        "rotary": "llama.rope.dimension_count",
    },
    defaults={"rope_theta": 10000.0},
    embedding=Tensor("token_embd.weight", ("vocab", "hidden")),
    head=Tensor("output.weight", ("vocab", "hidden")),
    final_norm=Tensor("output_norm.weight", ("hidden",)),
    layer={
        "attention_norm": Tensor("blk.{layer}.attn_norm.weight", ("hidden",)),
        "query": Tensor("blk.{layer}.attn_q.weight", ("heads", "hidden")),
        "key": Tensor("blk.{layer}.attn_k.weight", ("kv_heads", "hidden")),
        "value": Tensor("blk.{layer}.attn_v.weight", ("kv_heads", "hidden")),
        "attention_output": Tensor("blk.{layer}.attn_output.weight", ("hidden", "heads")),
        "ffn_norm": Tensor("blk.{layer}.ffn_norm.weight", ("hidden",)),
        "gate": Tensor("blk.{layer}.ffn_gate.weight", ("ffn", "hidden")),
        "up": Tensor("blk.{layer}.ffn_up.weight", ("ffn", "hidden")),
        "down": Tensor("blk.{layer}.ffn_down.weight", ("hidden", "ffn")),
    },
    interleaved_rotary=("query", "key"),
)

ARCHITECTURES: Mapping[str, Architecture] = {"llama": LLAMA}

ROPE_FACTORS = "rope_freqs.weight"  # optional: what each rotary frequency is divided by


def sizes(config: ModelConfig) -> dict[str, int]:
    """What the words in a tensor's shape stand for."""
    return {
        "vocab": config.vocab,
        "hidden": config.hidden,
        "heads": config.heads * config.head_dim,
        "kv_heads": config.kv_heads * config.head_dim,
        "ffn": config.ffn,
    }
