"""The few operations of a Llama that PyTorch has no fast form of on a CPU, with their gradients.

Each is written out by hand because it is what training spends its time on beside matrix products:
the gradients need no temporaries that autograd would keep, and the attached drafter's attention
asks for no gradient of the target's keys and values. They run on any device, in any float type.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * gain`` over the last axis, in ``dtype`` (1910.07467).

    ``x`` is a float32 residual [..., H]; ``gain`` [H] (None: ones).
    """
    result: Tensor = _RmsNorm.apply(x, gain, eps, dtype)  # type: ignore[no-untyped-call]
    return result


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding (2104.09864), half-split: [B, L, heads, D] -> contiguous [B, heads, L, D].

    ``cosine`` and ``sine`` are [L, D / 2] in x's type.
    """
    result: Tensor = _Rotate.apply(x, cosine, sine)  # type: ignore[no-untyped-call]
    return result


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` (2002.05202) of [..., 2F], the gates first."""
    result: Tensor = _SwiGlu.apply(gate_up)  # type: ignore[no-untyped-call]
    return result


def drafting_attention(
    query: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
    mask: Tensor,
    own_keys: list[Tensor],
    own_values: list[Tensor],
) -> Tensor:
    """Attention of drafts at every position at once, over the target's K/V and the drafter's own.

    Row i of ``query`` stands for the draft at position i whose round began ``d`` positions earlier,
    at i - d, with d = len(own_keys) - 1. It sees the target's columns that ``mask`` leaves (those
    before i - d), and one column of each unrolled step: position i - d + j of step j, the last of
    them itself.

    Shapes: ``query`` [B, heads, L, D]; ``past_keys``, ``past_values`` [B, kv_heads, L + depth, D],
    the target's with ``depth`` >= d + 1 columns of zeros behind them, where the own columns'
    scores go; ``mask`` [L, L + depth], 0 or -inf, added; ``own_keys[j]``, ``own_values[j]``
    [B, kv_heads, L, D] of step j. Returns [B, heads, L, D]. No gradient reaches the target's K/V.
    """
    result: Tensor = _DraftingAttention.apply(  # type: ignore[no-untyped-call]
        query, past_keys, past_values, mask, len(own_keys), *own_keys, *own_values
    )
    return result


def drafting_mask(length: int, depth: int, draft: int, like: Tensor) -> Tensor:
    """The mask of ``drafting_attention`` for the ``draft``-th step (from 0), of ``like``'s type.

    [length, length + depth]: row i sees the target's columns before i - draft and, of the own
    columns, those of steps whose position is not negative.
    """
    rows = torch.arange(length, device=like.device)[:, None]
    columns = torch.arange(length + depth, device=like.device)[None, :]
    step = columns - length
    own = (step >= 0) & (step <= draft) & (rows - draft + step >= 0)
    past = columns < torch.clamp(rows - draft, max=length)
    mask = torch.zeros(length, length + depth, dtype=like.dtype, device=like.device)
    mask[~(past | own)] = -math.inf
    return mask


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        size = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        y: Tensor = x * inverse
        return (y if gain is None else y.mul_(gain)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, inverse = ctx.saved_tensors
        grad = grads[0].to(x.dtype)
        normed = x * inverse
        gain_grad = None
        if gain is not None:
            product = grad * normed
            gain_grad = product.flatten(0, -2).sum(0)
            # mean(grad * gain * normed) without another full-size temporary
            mean = (product @ gain)[..., None].div_(x.shape[-1])
            grad = grad * gain
        else:
            mean = torch.linalg.vecdot(grad, normed)[..., None].div_(x.shape[-1])
        x_grad = normed.mul_(mean).neg_().add_(grad).mul_(inverse)
        return x_grad, gain_grad, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        batch, length, heads, size = x.shape
        y = x.new_empty(batch, heads, length, size)
        _turn(x.transpose(1, 2), y, cosine, sine)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        (grad,) = grads
        batch, heads, length, size = grad.shape
        x_grad = grad.new_empty(batch, length, heads, size)
        _turn(grad, x_grad.transpose(1, 2), cosine, -sine)
        return x_grad, None, None


def _turn(x: Tensor, out: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotates the halves of ``x`` [..., L, D] by the angles, into ``out``."""
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cosine, out=out_first)
    out_first.addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=out_second)
    out_second.addcmul_(first, sine)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        gate_grad, up_grad = out.chunk(2, dim=-1)
        # d silu(g) / dg = s + silu(g) (1 - s) with s = sigmoid(g)
        torch.mul(torch.nn.functional.silu(gate), grads[0], out=up_grad)
        gate_grad.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return (out,)


class _DraftingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        mask: Tensor,
        steps: int,
        *own: Tensor,
    ) -> Tensor:
        batch, heads, length, size = query.shape
        groups, columns = past_keys.shape[1:3]
        scale = 1 / math.sqrt(size)
        keys, values = own[:steps], own[steps:]
        # The query heads that share a K/V head become more rows of one product.
        rows = (query * scale).view(batch * groups, -1, size)
        scores = torch.bmm(rows, past_keys.reshape(-1, columns, size).transpose(1, 2))
        scores = scores.view(batch, groups, -1, length, columns)
        grouped = rows.view(batch, groups, -1, length, size)
        for step, key in enumerate(keys):
            shifted = _shift(key, steps - 1 - step)[:, :, None]
            torch.linalg.vecdot(grouped, shifted, out=scores[..., length + step])
        weights = torch.softmax(scores.add_(mask), dim=-1)
        mixed = torch.bmm(
            weights.view(batch * groups, -1, columns), past_values.reshape(-1, columns, size)
        ).view_as(grouped)
        for step, value in enumerate(values):
            shifted = _shift(value, steps - 1 - step)[:, :, None]
            mixed.addcmul_(weights[..., length + step, None], shifted)
        ctx.save_for_backward(rows, past_keys, past_values, weights, mixed, *own)
        return mixed.view(batch, heads, length, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, past_keys, past_values, weights, mixed, *own = ctx.saved_tensors
        batch, groups, repeats, length, columns = weights.shape
        size = rows.shape[-1]
        steps = len(own) // 2
        keys, values = own[:steps], own[steps:]
        grad = grads[0].reshape(batch * groups, -1, size)
        grouped_grad = grad.view(batch, groups, repeats, length, size)
        grouped = rows.view_as(grouped_grad)
        slopes = torch.bmm(grad, past_values.reshape(-1, columns, size).transpose(1, 2))
        slopes = slopes.view_as(weights)
        for step, value in enumerate(values):
            shifted = _shift(value, steps - 1 - step)[:, :, None]
            torch.linalg.vecdot(grouped_grad, shifted, out=slopes[..., length + step])
        # dS = P * (dP - <dO, O>): the softmax's gradient (FlashAttention, 2205.14135, eq. B.4)
        slopes.sub_(torch.linalg.vecdot(grouped_grad, mixed)[..., None]).mul_(weights)
        query_grad = torch.bmm(
            slopes.view(batch * groups, -1, columns), past_keys.reshape(-1, columns, size)
        ).view_as(grouped)
        key_grads, value_grads = [], []
        for step, key in enumerate(keys):
            shift = steps - 1 - step
            slope = slopes[..., length + step, None]
            query_grad.addcmul_(slope, _shift(key, shift)[:, :, None])
            key_grads.append(_unshift((slope * grouped).sum(2), shift))
            value_grads.append(
                _unshift((weights[..., length + step, None] * grouped_grad).sum(2), shift)
            )
        query_grad.mul_(1 / math.sqrt(size))
        query_grad = query_grad.view(batch, groups * repeats, length, size)
        return query_grad, None, None, None, None, *key_grads, *value_grads


def _shift(x: Tensor, by: int) -> Tensor:
    """[..., L, D] moved ``by`` positions back in time: row i holds what was at i - by, or zeros."""
    return torch.nn.functional.pad(x, (0, 0, by, 0))[..., : x.shape[-2], :] if by else x


def _unshift(x: Tensor, by: int) -> Tensor:
    return torch.nn.functional.pad(x[..., by:, :], (0, 0, 0, by)) if by else x
