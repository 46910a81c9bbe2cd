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
    """A tensor's names (``{layer}`` stands for its layer's number) and its shape."""

    gguf_name: str
    huggingface_name: str
    shape: Shape


@dataclass(frozen=True)
class Architecture:
    """How a checkpoint's metadata and tensors map to the names that the graph writers use."""

    gguf_keys: Mapping[str, str]  # ModelConfig field -> GGUF key
    huggingface_class: str  # as config.json names it under "architectures"
    huggingface_keys: Mapping[str, str]  # ModelConfig field -> key of config.json
    # Keys of config.json that change the network, and the value that stands for this one.
    huggingface_fixed: Mapping[str, object]
    defaults: Mapping[str, float]  # for keys that may be missing
    embedding: Tensor
    head: Tensor  # absent from a checkpoint with a tied head
    final_norm: Tensor
    layer: Mapping[str, Tensor]
    # llama.cpp stores the rows of these so that values that rotate together are neighbours.
    interleaved_rotary: tuple[str, ...]


LLAMA = Architecture(
    gguf_keys={
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
    huggingface_class="LlamaForCausalLM",
    huggingface_keys={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "ffn": "intermediate_size",
        "vocab": "vocab_size",
        "context": "max_position_embeddings",
        "rope_theta": "rope_theta",
        "norm_eps": "rms_norm_eps",
        "tied_head": "tie_word_embeddings",
    },
    huggingface_fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    defaults={"rope_theta": 10000.0},
    embedding=Tensor("token_embd.weight", "model.embed_tokens.weight", ("vocab", "hidden")),
    head=Tensor("output.weight", "lm_head.weight", ("vocab", "hidden")),
    final_norm=Tensor("output_norm.weight", "model.norm.weight", ("hidden",)),
    layer={
        role: Tensor(
            f"blk.{{layer}}.{gguf_name}.weight",
            f"model.layers.{{layer}}.{huggingface_name}.weight",
            shape,
        )
        for role, gguf_name, huggingface_name, shape in (
            ("attention_norm", "attn_norm", "input_layernorm", ("hidden",)),
            ("query", "attn_q", "self_attn.q_proj", ("heads", "hidden")),
            ("key", "attn_k", "self_attn.k_proj", ("kv_heads", "hidden")),
            ("value", "attn_v", "self_attn.v_proj", ("kv_heads", "hidden")),
            ("attention_output", "attn_output", "self_attn.o_proj", ("hidden", "heads")),
            ("ffn_norm", "ffn_norm", "post_attention_layernorm", ("hidden",)),
            ("gate", "ffn_gate", "mlp.gate_proj", ("ffn", "hidden")),
            ("up", "ffn_up", "mlp.up_proj", ("ffn", "hidden")),
            ("down", "ffn_down", "mlp.down_proj", ("hidden", "ffn")),
        )
    },
    interleaved_rotary=("query", "key"),
)

ARCHITECTURES: Mapping[str, Architecture] = {"llama": LLAMA}

# What leads an attached drafter's residual stream x across the layers of the target that it leaves
# out: scale * x + weight [norm(x); norm(features)] + bias. No Hugging Face folder holds one.
BRIDGE: Mapping[str, Tensor] = {
    "bridge": Tensor("blk.{layer}.bridge.weight", "", ("hidden", "bridge")),
    "bridge_scale": Tensor("blk.{layer}.bridge.scale", "", ("hidden",)),
    "bridge_bias": Tensor("blk.{layer}.bridge.bias", "", ("hidden",)),
}

ROPE_FACTORS = "rope_freqs.weight"  # optional: what each rotary frequency is divided by


def sizes(config: ModelConfig) -> dict[str, int]:
    """What the words in a tensor's shape stand for."""
    return {
        "vocab": config.vocab,
        "hidden": config.hidden,
        "heads": config.heads * config.head_dim,
        "kv_heads": config.kv_heads * config.head_dim,
        "ffn": config.ffn,
        "bridge": 2 * config.hidden,
    }
