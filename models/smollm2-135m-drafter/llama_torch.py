"""A small Llama in PyTorch that reads and writes llama.cpp's GGUF layout.

The teacher (the target model) and the student (the drafter) are both this
module; only the number of layers differs.  Weights are kept in the dtype they
were given; linear layers cast them to the activations' dtype, so a float32
student trains with bfloat16 matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor, nn

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class LlamaConfig:
    """The ``llama.*`` keys of a GGUF file that the forward pass needs."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_eps: float
    context: int
    vocab: int

    @classmethod
    def from_gguf(cls, reader: GGUFReader) -> LlamaConfig:
        """Read the configuration of a ``llama`` GGUF file."""

        def key(name: str) -> float:
            return reader.fields[f"llama.{name}"].contents()

        return cls(
            layers=int(key("block_count")),
            hidden=int(key("embedding_length")),
            ffn=int(key("feed_forward_length")),
            heads=int(key("attention.head_count")),
            kv_heads=int(key("attention.head_count_kv")),
            head_dim=int(key("rope.dimension_count")),
            rope_theta=float(key("rope.freq_base")),
            rms_eps=float(key("attention.layer_norm_rms_epsilon")),
            context=int(key("context_length")),
            vocab=int(key("vocab_size")),
        )


def unpermute_rope(weight: Tensor, heads: int) -> Tensor:
    """Turn llama.cpp's interleaved RoPE row order into the half-split order."""
    rows, cols = weight.shape
    return weight.view(heads, rows // heads // 2, 2, cols).transpose(1, 2).reshape(rows, cols)


def permute_rope(weight: Tensor, heads: int) -> Tensor:
    """Turn the half-split RoPE row order into llama.cpp's interleaved order."""
    rows, cols = weight.shape
    return weight.view(heads, 2, rows // heads // 2, cols).transpose(1, 2).reshape(rows, cols)


def read_tensors(reader: GGUFReader) -> dict[str, Tensor]:
    """Dequantise every tensor of a GGUF file to float32."""
    out = {}
    for tensor in reader.tensors:
        if tensor.tensor_type.name.startswith("I"):
            out[tensor.name] = torch.from_numpy(np.array(tensor.data))
        else:
            data = dequantize(tensor.data, tensor.tensor_type)
            out[tensor.name] = torch.from_numpy(np.array(data, dtype=np.float32))
    return out


def rope_table(config: LlamaConfig, length: int) -> Tensor:
    """Cosines and sines, shape ``[2, length, head_dim]``, half-split order."""
    exponent = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.outer(torch.arange(length).float(), config.rope_theta**-exponent)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate ``x`` (``[..., positions, head_dim]``) by the table's rows."""
    first, second = x.chunk(2, dim=-1)
    return x * table[0] + torch.cat([-second, first], dim=-1) * table[1]


class Block(nn.Module):
    """One decoder layer: attention and SwiGLU, each with a pre-norm."""

    def __init__(self, config: LlamaConfig, tensors: dict[str, Tensor], index: int) -> None:
        """Take the layer's weights out of ``tensors`` (GGUF names)."""
        super().__init__()
        self.config = config
        for name in ("attn_norm", "ffn_norm", *LINEARS):
            weight = tensors[f"blk.{index}.{name}.weight"]
            if name == "attn_q":
                weight = unpermute_rope(weight, config.heads)
            elif name == "attn_k":
                weight = unpermute_rope(weight, config.kv_heads)
            self.register_parameter(name, nn.Parameter(weight.clone()))

    def norm(self, x: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        """RMS norm in the residual's dtype, cast for the matrix products."""
        return F.rms_norm(x, x.shape[-1:], getattr(self, name), self.config.rms_eps).to(dtype)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A bias-free linear layer in the activations' dtype."""
        return F.linear(x, getattr(self, name).to(x.dtype))

    def qkv(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: ``[batch, heads, length, head_dim]``."""
        batch, length, _ = x.shape
        head_dim = self.config.head_dim
        q = self.linear(x, "attn_q").view(batch, length, -1, head_dim).transpose(1, 2)
        k = self.linear(x, "attn_k").view(batch, length, -1, head_dim).transpose(1, 2)
        v = self.linear(x, "attn_v").view(batch, length, -1, head_dim).transpose(1, 2)
        return apply_rope(q, rope), apply_rope(k, rope), v

    def feed_forward(self, x: Tensor) -> Tensor:
        """The SwiGLU half of the layer, residual excluded."""
        gate = F.silu(self.linear(x, "ffn_gate"))
        return self.linear(gate * self.linear(x, "ffn_up"), "ffn_down")

    def forward(self, x: Tensor, rope: Tensor, cache: Tensor | None, past: int) -> Tensor:
        """Run the layer.

        ``cache`` is ``[2, batch, kv_heads, capacity, head_dim]`` and is written
        at ``past``; without one the call is a causal pass from position 0.
        """
        dtype = rope.dtype
        q, k, v = self.qkv(self.norm(x, "attn_norm", dtype), rope)
        batch, heads, length, head_dim = q.shape
        if cache is not None:
            cache[0, :, :, past : past + length] = k
            cache[1, :, :, past : past + length] = v
        if cache is not None and length == 1:
            # One query row: the query heads of a group become the query length.
            q = q.view(batch, self.config.kv_heads, -1, head_dim)
            k, v = cache[0, :, :, : past + 1], cache[1, :, :, : past + 1]
            out = F.scaled_dot_product_attention(q, k, v).reshape(batch, 1, -1)
        else:
            if past:
                raise ValueError("only single steps may follow a filled cache")
            group = heads // self.config.kv_heads
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            out = out.transpose(1, 2).reshape(batch, length, -1)
        x = x + self.linear(out, "attn_output")
        return x + self.feed_forward(self.norm(x, "ffn_norm", dtype))


class Llama(nn.Module):
    """A Llama up to the final norm; the caller multiplies by head rows."""

    def __init__(
        self, config: LlamaConfig, tensors: dict[str, Tensor], layers: list[int] | None = None
    ) -> None:
        """Build from GGUF tensors, keeping only ``layers`` (default: all)."""
        super().__init__()
        self.config = config
        chosen = list(range(config.layers)) if layers is None else layers
        self.blocks = nn.ModuleList(Block(config, tensors, i) for i in chosen)
        self.output_norm = nn.Parameter(tensors["output_norm.weight"].clone())
        self.register_buffer("embedding", tensors["token_embd.weight"], persistent=False)
        self.register_buffer("rope", rope_table(config, 2048), persistent=False)

    @classmethod
    def from_gguf(cls, path: Path, layers: list[int] | None = None) -> Llama:
        """Load a complete checkpoint such as the target's."""
        reader = GGUFReader(path)
        return cls(LlamaConfig.from_gguf(reader), read_tensors(reader), layers)

    def new_cache(self, batch: int, capacity: int) -> list[Tensor]:
        """Allocate the layers' key and value caches."""
        c = self.config
        shape = (2, batch, c.kv_heads, capacity, c.head_dim)
        return [torch.zeros(shape, dtype=self.rope.dtype) for _ in self.blocks]

    def forward(self, ids: Tensor, cache: list[Tensor] | None = None, past: int = 0) -> Tensor:
        """Final hidden states (after the output norm) of ``ids`` ``[batch, length]``."""
        x = F.embedding(ids, self.embedding).float()
        rope = self.rope[:, past : past + ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, rope, None if cache is None else cache[i], past)
        return F.rms_norm(x, x.shape[-1:], self.output_norm, self.config.rms_eps)

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Choose the dtype of matrix products and attention."""
        self.rope = self.rope.to(dtype)

    def cast_linears(self, dtype: torch.dtype) -> None:
        """Store the linear layers in ``dtype`` (for inference only)."""
        for block in self.blocks:
            for name in LINEARS:
                setattr(block, name, nn.Parameter(getattr(block, name).to(dtype), False))
        self.set_compute_dtype(dtype)
