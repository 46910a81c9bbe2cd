"""The two kinds of drafter, as modules to train.

``StandaloneStudent`` is a small Llama with K/V of its own. ``AttachedStudent`` reads the target's
final hidden state and its K/V. Both give hidden states after their final norm; logits are those
times ``head()``. The names of their parameters are those of a checkpoint's tensors.

Of a student on the target's width, embedding and head are the target's and stay as they are, so
they are no part of ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec.convert.checkpoint import Checkpoint, ModelConfig
from specdec.distill.kernels import drafting_attention, drafting_mask, rms_norm
from specdec.distill.llama import (
    FusedLayer,
    Layer,
    Rotary,
    attention_inputs,
    causal_attention,
    layer_output,
    matrix_tensor,
    rotary_of,
)
from specdec.distill.rounding import WEIGHTS, rounded_tensor, straight_through
from specdec.errors import InvalidInputError

KINDS = ("standalone", "attached")


@dataclass(frozen=True)
class StudentBatch:
    """Texts from position 0, padded behind their end to one length."""

    ids: Tensor
    """int64 [B, L]."""
    hidden: Tensor | None = None
    """For an attached student: the target's hidden state after its final norm at the same
    positions, any float type [B, L, H]. (The student reads at t the one of t - 1.)"""
    keys: Sequence[Tensor] = ()
    """For an attached student, for each of its layers in order: the target's rotated keys of that
    one's target layer, any float type [B, kv_heads, L, D]."""
    values: Sequence[Tensor] = ()
    """The same of the values."""

    def to(self, device: torch.device | str) -> StudentBatch:
        """The batch on ``device``."""
        return StudentBatch(
            self.ids.to(device),
            None if self.hidden is None else self.hidden.to(device),
            [key.to(device) for key in self.keys],
            [value.to(device) for value in self.values],
        )


class Student(Protocol):
    """What training needs of a student, an ``nn.Module``."""

    config: ModelConfig
    kind: str
    head_ids: Tensor | None
    """The ids of ``head()``'s rows, int64 ascending; None: all of the vocabulary."""

    def __call__(self, batch: StudentBatch, depth: int = 1) -> list[Tensor]:
        """Hidden states after the final norm, float32 [B, L, H], one for each unrolled step.

        Row i of step d (from 0) is what the student computes for the token at position i as the
        input of the (d + 1)-th draft of a round that began at position i - d: its logits are for
        position i + 1. Rows i < d mean nothing; leave them out of a loss.
        """
        ...

    def head(self) -> Tensor:
        """The head's rows in the compute type, [V', H]."""
        ...


class _LlamaStudent(nn.Module):
    """What both kinds have: layers of Llama's, a final norm, embedding and head."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        head: Tensor | None,
        rotary: Rotary,
        *,
        head_ids: Tensor | None = None,
        own_embedding: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Layers of ``config``'s shape, to be initialised by ``specdec.distill.initial``.

        ``embedding`` [V, H] and ``head`` [V, H] (None: tied) are float32, the target's (frozen) or,
        with ``own_embedding``, the first values of the student's own. ``dtype`` is the compute
        type.
        """
        super().__init__()
        self.config = replace(config, tied_head=head is None)
        self.dtype = dtype
        self.rotary = rotary
        self.own_embedding = own_embedding
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.Parameter(torch.ones(config.hidden))
        self.head_ids = head_ids
        self.weights = WEIGHTS[0]
        if own_embedding:
            self.embedding: Tensor = nn.Parameter(embedding.clone())
            self.head_rows: Tensor | None = None if head is None else nn.Parameter(head.clone())
        else:
            _keep(self, "embedding", embedding)
            _keep(self, "head_rows", _chosen(embedding if head is None else head, head_ids, dtype))

    def hold_as(self, weights: str) -> None:
        """Compute from now on with matrices as an export in ``weights`` will hold them.

        One of ``rounding.WEIGHTS``. In 4 bits the head's rows, which are the target's, are rounded
        too, once and for all.
        """
        self.weights = weights
        if weights == "q4_1" and not self.own_embedding:
            rows = _given(self.head_rows)
            if self.config.tied_head:  # of full precision
                rows = _chosen(_given(self.embedding), self.head_ids, torch.float32)
            self.head_rows = rounded_tensor(rows, weights).to(self.dtype)

    def head(self) -> Tensor:
        """See ``Student``; differentiable where the student has a head of its own."""
        if not self.own_embedding:
            return _given(self.head_rows)
        return _chosen(
            self.embedding if self.head_rows is None else self.head_rows, self.head_ids, self.dtype
        )

    @torch.no_grad()
    def _take(self, source: Checkpoint, layers: Sequence[int]) -> None:
        """The weights of the target's ``layers``, and its final norm's."""
        for module, layer in zip(self.layers, layers, strict=True):
            if isinstance(module, Layer):
                module.load(source, layer)
        self.final_norm.copy_(torch.from_numpy(source.vector("final_norm").copy()))


class StandaloneStudent(_LlamaStudent):
    """A small Llama with its own K/V: its layers, final norm, and perhaps embedding and head.

    Parameters: ``layers.{j}.{role}``, ``final_norm``; with ``own_embedding`` also ``embedding``
    and, unless the head is tied to it, ``head_rows`` (the whole vocabulary's).
    """

    kind = "standalone"

    @classmethod
    def from_source(
        cls,
        source: Checkpoint,
        layers: Sequence[int],
        *,
        head_ids: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> StandaloneStudent:
        """Cut out of the target: its ``layers`` in that order, its embedding, its head's rows."""
        student = cls(_shape(source, layers), *_of_target(source), head_ids=head_ids, dtype=dtype)
        student._take(source, layers)
        return student

    def forward(self, batch: StudentBatch, depth: int = 1) -> list[Tensor]:
        """See ``Student``. Its drafts are what it would compute anyway: ``depth`` must be 1."""
        if depth != 1:
            raise InvalidInputError("a standalone drafter has no steps to unroll: depth must be 1")
        config = self.config
        tables = self.rotary.tables(batch.ids.shape[1], self.final_norm, self.dtype)
        x = F.embedding(batch.ids, self.embedding)
        for layer in _fused(self.layers, self.dtype, self.weights):
            query, key, value = attention_inputs(config, layer, x, tables)
            x = layer_output(config, layer, x, causal_attention(query, key, value))
        return [rms_norm(x, self.final_norm, config.norm_eps, torch.float32)]


class Bridge(nn.Module):
    """What leads from one layer of an attached drafter to one that is not the next in the target.

    ``x <- scale * x + W [rmsnorm(x); f] + bias`` with f the normalised hidden state of the position
    before; both norms have no gain.
    """

    def __init__(self, hidden: int) -> None:
        """The identity: scale [H] of ones, W [H, 2H] and bias [H] of zeros, float32."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden))
        self.weight = nn.Parameter(torch.zeros(hidden, 2 * hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, feature: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x`` float32 [..., H], ``feature`` [..., H] and ``weight`` in the compute type."""
        joined = torch.cat([rms_norm(x, None, eps, weight.dtype), feature], -1)
        return torch.addcmul(self.bias, self.scale, x) + F.linear(joined, weight)


class AttachedStudent(_LlamaStudent):
    """A drafter on the target's final hidden state and K/V.

    Parameters: ``layers.{j}.{role}``, ``final_norm`` and, for each j of ``config.bridges``,
    ``bridges.{j}.weight``, ``.scale``, ``.bias``.
    """

    kind = "attached"

    def __init__(
        self,
        config: ModelConfig,
        target_layers: Sequence[int],
        embedding: Tensor,
        head: Tensor | None,
        rotary: Rotary,
        *,
        head_ids: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """One layer of ``config``'s shape for each of ``target_layers``, ascending.

        ``embedding`` [V, H] and ``head`` [V, H] (None: tied) are the target's, float32.
        """
        chosen = tuple(target_layers)
        if not chosen or sorted(set(chosen)) != list(chosen):
            raise InvalidInputError(
                f"target layers {list(target_layers)}: give at least one, in ascending order"
            )
        super().__init__(
            replace(config, layers=len(chosen), target_layers=chosen),
            embedding,
            head,
            rotary,
            head_ids=head_ids,
            dtype=dtype,
        )
        self.target_layers = chosen
        self.bridges = nn.ModuleDict({str(j): Bridge(config.hidden) for j in self.config.bridges})

    @classmethod
    def from_source(
        cls,
        source: Checkpoint,
        target_layers: Sequence[int],
        *,
        head_ids: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> AttachedStudent:
        """The target's own ``target_layers``; bridges are the identity until they are fitted."""
        shape = _shape(source, target_layers)
        student = cls(shape, target_layers, *_of_target(source), head_ids=head_ids, dtype=dtype)
        student._take(source, target_layers)
        return student

    def forward(self, batch: StudentBatch, depth: int = 1) -> list[Tensor]:
        """See ``Student``: the first step reads the target's hidden states, each later one those
        of the step before; gradients flow through all of them.
        """
        hidden = self._check(batch, depth)
        length = batch.ids.shape[1]
        eps = self.config.norm_eps
        tables = self.rotary.tables(length, self.final_norm, self.dtype)
        layers = _fused(self.layers, self.dtype, self.weights)
        # Columns of zeros behind the target's: where the own columns' scores go.
        past_keys, past_values = (
            [F.pad(side.to(self.dtype), (0, 0, 0, depth)) for side in sides]
            for sides in (batch.keys, batch.values)
        )
        bridges = {
            j: straight_through(bridge.get_parameter("weight"), self.weights).to(self.dtype)
            for j, bridge in self._bridges()
        }
        embedded = F.embedding(batch.ids, _given(self.embedding))
        own_keys: list[list[Tensor]] = [[] for _ in layers]
        own_values: list[list[Tensor]] = [[] for _ in layers]
        outputs: list[Tensor] = []
        for step in range(depth):
            mask = drafting_mask(length, depth, step, tables[0])
            # Position 0 has nothing before it: a feature of zeros.
            feature = rms_norm(F.pad(hidden, (0, 0, 1, 0))[:, :-1], None, eps, self.dtype)
            x = embedded
            for j, layer in enumerate(layers):
                if j in bridges:
                    x = self.bridges[str(j)](x, feature, bridges[j], eps)
                query, key, value = attention_inputs(self.config, layer, x, tables)
                own_keys[j].append(key)
                own_values[j].append(value)
                mixed = drafting_attention(
                    query, past_keys[j], past_values[j], mask, own_keys[j], own_values[j]
                )
                x = layer_output(self.config, layer, x, mixed)
            hidden = rms_norm(x, self.final_norm, eps, torch.float32)
            outputs.append(hidden)
        return outputs

    def _bridges(self) -> list[tuple[int, nn.Module]]:
        return [(int(name), bridge) for name, bridge in self.bridges.items()]

    def _check(self, batch: StudentBatch, depth: int) -> Tensor:
        """The target's hidden states, once the batch is known to be complete."""
        if depth < 1:
            raise InvalidInputError(f"depth is {depth}; it must be at least 1")
        count = len(self.layers)
        if batch.hidden is None or len(batch.keys) != count or len(batch.values) != count:
            raise InvalidInputError(
                f"an attached drafter needs the target's hidden states, and its K/V for each of "
                f"{count} layers"
            )
        return batch.hidden.float()


def _fused(layers: nn.ModuleList, dtype: torch.dtype, weights: str) -> list[FusedLayer]:
    return [layer.fused(dtype, weights) for layer in layers if isinstance(layer, Layer)]


def _shape(source: Checkpoint, layers: Sequence[int]) -> ModelConfig:
    if not layers or not all(0 <= layer < source.config.layers for layer in layers):
        raise InvalidInputError(
            f"the target has layers 0 to {source.config.layers - 1}; asked for {list(layers)}"
        )
    return replace(source.config, layers=len(layers))


def _of_target(source: Checkpoint) -> tuple[Tensor, Tensor | None, Rotary]:
    """The target's embedding, its head (None: tied), and its rotary embedding."""
    head = None if source.config.tied_head else matrix_tensor(source, "head")
    return matrix_tensor(source, "embedding"), head, rotary_of(source)


def _keep(module: nn.Module, name: str, tensor: Tensor) -> None:
    """A tensor that moves with the module and is neither trained nor saved."""
    module.register_buffer(name, tensor.detach(), persistent=False)


def _chosen(rows: Tensor, ids: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (rows if ids is None else rows[ids.to(rows.device)]).to(dtype)


def _given(tensor: Tensor | nn.Module | None) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise InvalidInputError("this student was made without a head")
    return tensor
