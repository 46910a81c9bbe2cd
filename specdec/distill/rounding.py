"""How an exported drafter holds its matrices, and training with that in view.

A drafter's step costs what its weights take to read, so 4 bits make it nearly twice as cheap as 8.
Rounding a small network to 4 bits once it is trained costs acceptance. Training through the
rounding (the straight-through estimator of 1308.3432, for weights as in 1712.05877) lets the
weights find places that survive it: the forward pass takes the rounded values, and the gradient
goes to the unrounded ones as if there were no rounding.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from specdec.convert.checkpoint import BLOCK
from specdec.convert.matrix import FloatArray

WEIGHTS = ("q8_0", "q4_1")
"""Blocks of 32 inputs with a scale, 8.5 bits a weight; with a scale and a minimum, 5 bits."""

TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
}
BITS = {"q8_0": 8, "q4_1": 4}


def rounded(values: FloatArray, weights: str) -> FloatArray:
    """A matrix as it comes back from an exported file; a vector is kept as it is."""
    if values.ndim != 2:
        return values
    kind = TYPES[weights]
    blocks = gguf.quantize(np.ascontiguousarray(values, np.float32), kind)
    return np.asarray(gguf.dequantize(blocks, kind), np.float32)


def rounded_tensor(weight: Tensor, weights: str) -> Tensor:
    """``rounded`` of a tensor [outputs, inputs], float32 on its device, without a gradient."""
    return torch.from_numpy(rounded(weight.detach().float().cpu().numpy(), weights)).to(
        weight.device
    )


def straight_through(weight: Tensor, weights: str) -> Tensor:
    """``weight`` [outputs, inputs] as it will be exported; its gradient is that of the result.

    Only 4 bits are simulated: 8 bits change nothing that training could make good.
    """
    if weights != "q4_1":
        return weight
    result: Tensor = _Rounding.apply(weight)  # type: ignore[no-untyped-call]
    return result


class _Rounding(torch.autograd.Function):
    """What ``rounded`` gives for q4_1, on any device."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        blocks = weight.reshape(len(weight), -1, BLOCK)
        least = blocks.amin(-1, keepdim=True)
        step = (blocks.amax(-1, keepdim=True) - least).div_(15)
        inverse = torch.where(step == 0, step, step.reciprocal())
        codes = (blocks - least).mul_(inverse).add_(0.5).trunc_().clamp_(0, 15)
        return codes.mul_(step.half().float()).add_(least.half().float()).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]
