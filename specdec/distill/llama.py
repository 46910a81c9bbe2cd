"""A Llama in PyTorch, read from whatever ``specdec.convert`` reads: the teacher, and its layers.

Weights have the names that checkpoints give them (``specdec.convert.checkpoint.Checkpoint``), query
and key rows in the half-split rotary order. Residuals are float32; matrix products run in the
compute type (bfloat16 by default), whatever the weights are held in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec.convert.checkpoint import Checkpoint, ModelConfig
from specdec.distill.kernels import rms_norm, rotate, swiglu
from specdec.distill.rounding import WEIGHTS, straight_through
from specdec.errors import InvalidInputError

MATRICES = ("query", "key", "value", "attention_output", "gate", "up", "down")
NORMS = ("attention_norm", "ffn_norm")


class FusedLayer(NamedTuple):
    """One layer's weights as the forward pass takes them: norms float32, matrices to compute in."""

    attention_norm: Tensor  # [H]
    query_key_value: Tensor  # [(heads + 2 kv_heads) D, H]
    attention_output: Tensor  # [H, heads D]
    ffn_norm: Tensor  # [H]
    gate_up: Tensor  # [2F, H]
    down: Tensor  # [H, F]


class Layer(nn.Module):
    """One decoder layer's weights, a parameter for each of the checkpoint's tensors."""

    attention_norm: nn.Parameter
    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    attention_output: nn.Parameter
    ffn_norm: nn.Parameter
    gate: nn.Parameter
    up: nn.Parameter
    down: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        """Weights of ``config``'s shape, float32; norms are ones, matrices are zeros."""
        super().__init__()
        for role in NORMS:
            self.register_parameter(role, nn.Parameter(torch.ones(config.hidden)))
        for role, shape in matrix_shapes(config).items():
            self.register_parameter(role, nn.Parameter(torch.zeros(shape)))

    @torch.no_grad()
    def load(self, source: Checkpoint, layer: int) -> None:
        """Takes the weights of ``source``'s layer ``layer``, of the same shape."""
        for role in NORMS:
            self.get_parameter(role).copy_(_vector(source, f"layers.{layer}.{role}"))
        for role in MATRICES:
            self.get_parameter(role).copy_(matrix_tensor(source, f"layers.{layer}.{role}"))

    def fused(self, dtype: torch.dtype, weights: str = WEIGHTS[0]) -> FusedLayer:
        """The weights in ``dtype``, side by side where they share an input; differentiable.

        ``weights`` is how they will be exported, one of ``rounding.WEIGHTS``.
        """

        def held(*matrices: Tensor) -> Tensor:
            return torch.cat([straight_through(m, weights).to(dtype) for m in matrices])

        return FusedLayer(
            self.attention_norm,
            held(self.query, self.key, self.value),
            held(self.attention_output),
            self.ffn_norm,
            held(self.gate, self.up),
            held(self.down),
        )


class Rotary:
    """Cosines and sines of every position, made as they are needed."""

    def __init__(self, config: ModelConfig, factors: Tensor | None = None) -> None:
        """``factors`` [D / 2]: what each frequency is divided by (None: one)."""
        half = config.head_dim // 2
        # In double precision, as the graphs' tables are.
        self.frequencies = config.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
        if factors is not None:
            self.frequencies = self.frequencies / factors.double()
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def tables(self, length: int, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [length, D / 2] of positions from 0, on ``like``'s device."""
        key = (dtype, like.device)
        if key not in self._tables or len(self._tables[key][0]) < length:
            angles = torch.outer(torch.arange(length).double(), self.frequencies)
            self._tables[key] = (
                angles.cos().to(like.device, dtype),
                angles.sin().to(like.device, dtype),
            )
        cosine, sine = self._tables[key]
        return cosine[:length], sine[:length]


@dataclass(frozen=True)
class States:
    """What the target computed on a batch of texts, positions from 0."""

    hidden: Tensor
    """After the final norm, float32 [B, L, H]."""
    keys: dict[int, Tensor] = field(default_factory=dict)
    """By layer, after the rotary embedding, compute type [B, kv_heads, L, D]."""
    values: dict[int, Tensor] = field(default_factory=dict)
    """By layer, compute type [B, kv_heads, L, D]."""
    residuals: dict[int, Tensor] = field(default_factory=dict)
    """By layer, the residual stream at its input, float32 [B, L, H]; ``config.layers`` stands for
    the end of the last layer, before the final norm."""


class TorchLlama:
    """A whole frozen model: the teacher. Nothing here is trained, no gradient is kept."""

    def __init__(
        self,
        source: Checkpoint,
        *,
        layers: Sequence[int] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Loads ``source``, or only its ``layers`` in that order (None: all), one at a time.

        Matrices and embedding are held in ``dtype``.
        """
        self.config = source.config
        self.dtype = dtype
        self.device = torch.device(device)
        self.layers: list[FusedLayer] = []
        scratch = Layer(source.config).requires_grad_(False)
        for layer in range(self.config.layers) if layers is None else layers:
            scratch.load(source, layer)
            # Norms are shared with the scratch layer: copies of their own.
            self.layers.append(FusedLayer(*(t.clone().to(device) for t in scratch.fused(dtype))))
        self.final_norm = _vector(source, "final_norm").to(device)
        self.embedding = matrix_tensor(source, "embedding", dtype).to(device)
        tied = self.config.tied_head and source.head_ids is None
        self.head = self.embedding if tied else matrix_tensor(source, "head", dtype).to(device)
        """Rows of the head, [V, H] (a drafter's: as trimmed)."""
        self.rotary = rotary_of(source)

    @classmethod
    def from_source(
        cls,
        source: Checkpoint,
        layers: Sequence[int] | None = None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> TorchLlama:
        """Same as the constructor."""
        return cls(source, layers=layers, dtype=dtype, device=device)

    def forward(self, ids: Tensor) -> Tensor:
        """Final hidden states, after the final norm, float32 [B, L, H], of ``ids`` int64 [B, L]."""
        return self.states(ids).hidden

    __call__ = forward

    @torch.no_grad()
    def states(
        self, ids: Tensor, layers: Sequence[int] = (), residuals: Sequence[int] = ()
    ) -> States:
        """Runs ``ids`` int64 [B, L] from position 0.

        Keeps K/V of ``layers`` and the residual stream at the input of those in ``residuals``.
        Shorter texts may be padded behind their end: nothing before it changes.
        """
        config = self.config
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        streams: dict[int, Tensor] = {}
        tables = self.rotary.tables(ids.shape[1], self.embedding, self.dtype)
        x = F.embedding(ids.to(self.device), self.embedding).float()
        for index, layer in enumerate(self.layers):
            if index in residuals:
                streams[index] = x
            query, key, value = attention_inputs(config, layer, x, tables)
            if index in layers:
                keys[index], values[index] = key, value
            x = layer_output(config, layer, x, causal_attention(query, key, value))
        if len(self.layers) in residuals:
            streams[len(self.layers)] = x
        hidden = rms_norm(x, self.final_norm, config.norm_eps, torch.float32)
        return States(hidden, keys, values, streams)


def attention_inputs(
    config: ModelConfig, layer: FusedLayer, x: Tensor, tables: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries [B, heads, L, D] and keys, and values, [B, kv_heads, L, D], of a residual."""
    batch, length, _ = x.shape
    heads, kv_heads = config.heads, config.kv_heads
    dtype = layer.query_key_value.dtype
    normed = rms_norm(x, layer.attention_norm, config.norm_eps, dtype)
    joined = F.linear(normed, layer.query_key_value)
    joined = joined.view(batch, length, heads + 2 * kv_heads, config.head_dim)
    rotated = rotate(joined[:, :, : heads + kv_heads], *tables)
    return (
        rotated[:, :heads],
        rotated[:, heads:],
        joined[:, :, heads + kv_heads :].transpose(1, 2),
    )


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every position sees itself and those before it: [B, heads, L, D]."""
    repeats = query.shape[1] // key.shape[1]
    return F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(repeats, 1),
        value.repeat_interleave(repeats, 1),
        is_causal=True,
    )


def layer_output(config: ModelConfig, layer: FusedLayer, x: Tensor, mixed: Tensor) -> Tensor:
    """The residual after a layer whose attention gave ``mixed`` [B, heads, L, D] for ``x``."""
    joined = mixed.transpose(1, 2).flatten(2)
    x = x + F.linear(joined, layer.attention_output)
    normed = rms_norm(x, layer.ffn_norm, config.norm_eps, joined.dtype)
    return x + F.linear(swiglu(F.linear(normed, layer.gate_up)), layer.down)


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each matrix of a layer, by role."""
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "query": (query, config.hidden),
        "key": (key_value, config.hidden),
        "value": (key_value, config.hidden),
        "attention_output": (config.hidden, query),
        "gate": (config.ffn, config.hidden),
        "up": (config.ffn, config.hidden),
        "down": (config.hidden, config.ffn),
    }


def rotary_of(source: Checkpoint) -> Rotary:
    """The rotary embedding of ``source``."""
    factors = source.rope_factors
    return Rotary(source.config, None if factors is None else torch.from_numpy(factors.copy()))


def matrix_tensor(
    source: Checkpoint, name: str, dtype: torch.dtype = torch.float32, rows: Tensor | None = None
) -> Tensor:
    """The checkpoint's matrix ``name``, [outputs, inputs]; only ``rows`` (int64), if given."""
    matrix = source.matrix(name)
    if rows is not None:
        if rows.numel() == 0 or int(rows.min()) < 0 or int(rows.max()) >= matrix.shape[0]:
            raise InvalidInputError(f"'{name}' has rows 0 to {matrix.shape[0] - 1}, not all asked")
        matrix = matrix.take_rows(rows.cpu().numpy().astype(np.int64))
    return torch.from_numpy(np.array(matrix.dequantise(), np.float32)).to(dtype)


def _vector(source: Checkpoint, name: str) -> Tensor:
    return torch.from_numpy(np.array(source.vector(name), np.float32))
