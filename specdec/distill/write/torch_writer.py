"""The target in PyTorch, one token of many conversations per step."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from specdec.convert.checkpoint import ModelSource
from specdec.convert.rotary import rotary_tables
from specdec.distill.write.engine import CANDIDATES, Candidates
from specdec.distill.write.options import WriteOptions
from specdec.errors import InvalidInputError


class TorchWriter:
    """Weights, products and KV cache in bfloat16; the residual stream in float32.

    Raises:
        InvalidInputError: PyTorch has no such device.
    """

    def __init__(self, source: ModelSource, options: WriteOptions) -> None:
        try:
            self._device = torch.device(options.device)
            torch.empty(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InvalidInputError(
                f"device {options.device!r} is not to be had ({reason})"
            ) from error
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._config = source.config
        self._embedding = self._matrix(source, "embedding")
        tied = source.config.tied_head and source.head_ids is None
        self._head = self._embedding if tied else self._matrix(source, "head")
        self._final_norm = self._vector(source, "final_norm")
        self._layers = [_Layer(self, source, index) for index in range(source.config.layers)]
        cosine, sine = rotary_tables(source, options.length)
        self._cosine, self._sine = (
            torch.from_numpy(np.concatenate([table, table], axis=1)).to(self._device)
            for table in (cosine, sine)
        )
        c = source.config
        shape = (c.layers, 2, options.rows, c.kv_heads, options.length, c.head_dim)
        self._cache = torch.zeros(shape, dtype=torch.bfloat16, device=self._device)
        self._prefix = self._cache[:, :, 0, :, :0]

    def set_prefix(self, tokens: list[int]) -> None:
        """See BatchWriter."""
        for position, token in enumerate(tokens):
            self.step(np.array([token], np.int64), np.array([position], np.int32))
        self._prefix = self._cache[:, :, 0, :, : len(tokens)].clone()

    def begin(self, row: int) -> None:
        """See BatchWriter."""
        self._cache[:, :, row, :, : self._prefix.shape[3]] = self._prefix

    def move(self, source: int, row: int) -> None:
        """See BatchWriter."""
        self._cache[:, :, row] = self._cache[:, :, source]

    @torch.inference_mode()
    def step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Candidates:
        """See BatchWriter."""
        rows, longest = len(tokens), int(lengths.max()) + 1
        positions = torch.from_numpy(lengths.astype(np.int64)).to(self._device)
        x = F.embedding(torch.from_numpy(tokens).to(self._device), self._embedding).float()
        rotation = self._cosine[positions][:, None], self._sine[positions][:, None]
        visible = torch.arange(longest, device=self._device) <= positions[:, None]
        for layer, cache in zip(self._layers, self._cache, strict=True):
            x = layer.step(x, rotation, cache[:, :rows], positions, visible[:, None, None])
        x = self.norm(x, self._final_norm)
        best = (x.bfloat16() @ self._head.T).topk(min(CANDIDATES, len(self._head))).indices
        # bfloat16 logits are too coarse to sample from: redone for the best.
        logits = torch.einsum("rch,rh->rc", self._head[best].float(), x)
        logits, order = logits.sort(descending=True)
        return Candidates(best.gather(1, order).cpu().numpy(), logits.cpu().numpy())

    def norm(self, x: Tensor, gain: Tensor) -> Tensor:
        """Root-mean-square norm of the last axis, float32."""
        return F.rms_norm(x, x.shape[-1:], gain, self._config.norm_eps)

    def _matrix(self, source: ModelSource, *names: str) -> Tensor:
        whole = np.concatenate([source.matrix(name).dequantise() for name in names])
        return torch.from_numpy(whole).to(self._device, torch.bfloat16)

    def _vector(self, source: ModelSource, name: str) -> Tensor:
        return torch.from_numpy(np.array(source.vector(name), np.float32)).to(self._device)


class _Layer:
    """One decoder layer; linears that read the same input are one product."""

    def __init__(self, model: TorchWriter, source: ModelSource, index: int) -> None:
        def linear(*roles: str) -> Tensor:
            return model._matrix(source, *(f"layers.{index}.{role}" for role in roles))

        self._model, self._config = model, source.config
        self._attention_norm = model._vector(source, f"layers.{index}.attention_norm")
        self._ffn_norm = model._vector(source, f"layers.{index}.ffn_norm")
        self._qkv = linear("query", "key", "value")
        self._output = linear("attention_output")
        self._gate_up = linear("gate", "up")
        self._down = linear("down")

    def step(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: Tensor,
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """``x`` [rows, hidden], ``cache`` [2, rows, kv_heads, capacity, head_dim]."""
        c, rows, longest = self._config, x.shape[0], visible.shape[-1]
        qkv = self._model.norm(x, self._attention_norm).bfloat16() @ self._qkv.T
        heads = qkv.view(rows, -1, c.head_dim)
        rotated = _rotate(heads[:, : -c.kv_heads].float(), rotation)
        query, key, value = rotated[:, : c.heads], rotated[:, c.heads :], heads[:, -c.kv_heads :]
        row = torch.arange(rows, device=x.device)
        cache[0][row, :, positions] = key.bfloat16()
        cache[1][row, :, positions] = value
        # The query heads of one group take the place of query positions.
        grouped = query.bfloat16().view(rows, c.kv_heads, -1, c.head_dim)
        mixed = F.scaled_dot_product_attention(
            grouped, cache[0, :, :, :longest], cache[1, :, :, :longest], attn_mask=visible
        )
        x = x + mixed.reshape(rows, -1) @ self._output.T
        both = self._model.norm(x, self._ffn_norm).bfloat16() @ self._gate_up.T
        gate, up = both.chunk(2, dim=-1)
        return x + (F.silu(gate) * up) @ self._down.T


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]
