"""Kinds of linear weights on the Hexagon NPU, and how each lies in a graph.

Weights are [inputs, outputs] here, as the graph multiplies them: ``y[n] = sum_k x[k] * w[k, n]``.
Codes are signed and have no zero point, which is what the NPU's kernels take. A method of
quantisation decides the codes and scales; ``Kind.round`` is the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from specdec.convert.graph import Graph
from specdec.convert.matrix import CodeArray, FloatArray
from specdec.errors import InvalidInputError

# A block's scale is so many steps of its output's: a code times it must fit a signed byte. With
# larger ones the NPU's compiler says nothing and its results are wrong.
LARGEST_BLOCK_SCALE = 16

SignedArray = NDArray[np.int8]


class QuantLinear(Protocol):
    """The weights of one linear, [inputs, outputs], in one of the kinds below."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def dequantise(self) -> FloatArray:
        """What the graph computes with, float32 [inputs, outputs]."""
        ...

    def scale_outputs(self, factors: FloatArray) -> QuantLinear:
        """The same linear with each output multiplied by its factor, [outputs]; loses nothing."""
        ...

    def weights(self, graph: Graph, name: str) -> str:
        """Adds the weights to ``graph`` under names that begin with ``name``.

        Returns the tensor to multiply by, [inputs, outputs].
        """
        ...


@dataclass(frozen=True)
class ChannelLinear:
    """Integers of 4 or 8 bits with one scale per output: ``w[k, n] = codes[k, n] * scales[n]``."""

    codes: SignedArray  # [inputs, outputs], each within the bits (-8..7 or -128..127)
    scales: FloatArray  # [outputs]
    bits: int  # 4 or 8

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def dequantise(self) -> FloatArray:
        return self.codes.astype(np.float32) * self.scales

    def scale_outputs(self, factors: FloatArray) -> ChannelLinear:
        return replace(self, scales=self.scales * factors)

    def weights(self, graph: Graph, name: str) -> str:
        codes = graph.initializer(f"{name}.weights.codes", _narrow(self.codes, self.bits))
        scales = graph.initializer(f"{name}.weights.scales", self.scales.astype(np.float32))
        zeros = _zeros(graph, self.scales.shape, self.bits)
        return graph.node("DequantizeLinear", [codes, scales, zeros], f"{name}.weights", axis=1)


@dataclass(frozen=True)
class BlockLinear:
    """4-bit integers with a scale per block of inputs, itself a small integer (LPBQ).

    ``w[k, n] = codes[k, n] * block_scales[k // block, n] * scales[n]``. The kernel multiplies codes
    by block scales in integers, so this costs little more than one scale per output.
    """

    codes: SignedArray  # [inputs, outputs], -8..7
    block_scales: CodeArray  # [inputs / block, outputs], 1..LARGEST_BLOCK_SCALE
    scales: FloatArray  # [outputs]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return int(self.codes.shape[0] // self.block_scales.shape[0])

    def dequantise(self) -> FloatArray:
        inputs, outputs = self.shape
        scales = self.block_scales.astype(np.float32) * self.scales
        values = self.codes.reshape(-1, self.block, outputs).astype(np.float32)
        values *= scales[:, None]
        return values.reshape(inputs, outputs)

    def scale_outputs(self, factors: FloatArray) -> BlockLinear:
        return replace(self, scales=self.scales * factors)

    def weights(self, graph: Graph, name: str) -> str:
        codes = graph.initializer(f"{name}.weights.codes", _narrow(self.codes, 4))
        steps = graph.initializer(f"{name}.weights.block_steps", self.block_scales)
        scales = graph.initializer(f"{name}.weights.scales", self.scales.astype(np.float32))
        blocks = graph.node(
            "DequantizeLinear", [steps, scales], f"{name}.weights.block_scales", axis=1
        )
        return graph.node(
            "DequantizeLinear",
            [codes, blocks, _zeros(graph, self.block_scales.shape, 4)],
            f"{name}.weights",
            axis=0,
            block_size=self.block,
        )


@dataclass(frozen=True)
class HalfLinear:
    """float16 weights, for graphs whose activations are float16 too."""

    values: NDArray[np.float16]  # [inputs, outputs]

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def dequantise(self) -> FloatArray:
        return self.values.astype(np.float32)

    def scale_outputs(self, factors: FloatArray) -> HalfLinear:
        return HalfLinear((self.values * factors).astype(np.float16))

    def weights(self, graph: Graph, name: str) -> str:
        return graph.initializer(f"{name}.weights", self.values)


@dataclass(frozen=True)
class MinimaLinear:
    """4-bit integers with a scale and an offset per block of inputs, as in GGUF's Q4_1.

    ``w[k, n] = codes[k, n] * scales[k // block, n] + offsets[k // block, n]``. The kernels know no
    offsets: they are multiplied by the sums of x over the blocks, in a product of their own.
    """

    codes: SignedArray  # [inputs, outputs], -8..7
    scales: FloatArray  # [inputs / block, outputs]
    offsets: FloatArray  # [inputs / block, outputs]; integer graphs round them to 8 bits

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def block(self) -> int:
        """Inputs that share a scale and an offset."""
        return int(self.codes.shape[0] // self.scales.shape[0])

    def dequantise(self) -> FloatArray:
        inputs, outputs = self.shape
        values = self.codes.reshape(-1, self.block, outputs).astype(np.float32)
        values *= self.scales[:, None]
        values += self.offsets[:, None]
        return values.reshape(inputs, outputs)

    def scale_outputs(self, factors: FloatArray) -> MinimaLinear:
        return replace(self, scales=self.scales * factors, offsets=self.offsets * factors)

    def weights(self, graph: Graph, name: str) -> str:
        """Without the offsets."""
        codes = graph.initializer(f"{name}.weights.codes", _narrow(self.codes, 4))
        scales = graph.initializer(f"{name}.weights.scales", self.scales.astype(np.float32))
        return graph.node(
            "DequantizeLinear",
            [codes, scales, _zeros(graph, self.scales.shape, 4)],
            f"{name}.weights",
            axis=0,
            block_size=self.block,
        )

    def offset_linear(self) -> ChannelLinear:
        """What the sums of the blocks are multiplied by, in 8 bits."""
        return _round_channels(self.offsets, 8)

    def packed_codes(self) -> CodeArray:
        """The codes plus 8, as ``MatMulNBits`` takes them: uint8 [outputs, blocks, block / 2]."""
        codes = (self.codes.T + np.int8(8)).astype(np.uint8)
        codes = codes.reshape(self.shape[1], -1, self.block)
        return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


@dataclass(frozen=True)
class Kind:
    """How a linear is held: in 4, 8 or 16 bits; with 4, ``block`` inputs may share a scale.

    ``minima``: they also share an offset, and scales are real numbers (``MinimaLinear``, which
    holds the weights of a Q4_1 file as they are). ``str(kind)`` is ``"w8"``, ``"w4"``,
    ``"w4-b32"``, ``"w4-b32m"``, ``"f16"``; ``Kind.parse`` reads it back.
    """

    bits: int
    block: int | None = None
    minima: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16) or (self.block is not None and self.bits != 4):
            raise InvalidInputError(f"weights of {self.bits} bits in blocks of {self.block}")
        if self.block is not None and self.block not in (16, 32, 64):
            raise InvalidInputError(f"blocks of {self.block} inputs: choose 16, 32 or 64")
        if self.minima and self.block != 32:
            raise InvalidInputError("minima come with blocks of 32 inputs")

    def __str__(self) -> str:
        if self.bits == 16:
            return "f16"
        if self.block is None:
            return f"w{self.bits}"
        return f"w{self.bits}-b{self.block}{'m' if self.minima else ''}"

    @classmethod
    def parse(cls, text: str) -> Kind:
        """The kind of that name; InvalidInputError for any other text."""
        if text not in KINDS:
            raise InvalidInputError(
                f"no kind '{text}' of weights: choose one of {', '.join(KINDS)}"
            )
        return KINDS[text]

    def bytes(self, inputs: int, outputs: int) -> int:
        """About what a linear of that shape takes in the data file."""
        scales = 4 * outputs if self.bits < 16 else 0
        blocks = 0 if self.block is None else inputs // self.block * outputs
        # 16 bits of scale and 8 of offset, whatever the file holds: so much the NPU reads.
        return inputs * outputs * self.bits // 8 + blocks * (3 if self.minima else 1) + scales

    def round(self, weights: FloatArray) -> QuantLinear:
        """The nearest codes to ``weights`` [inputs, outputs], scaled by the largest magnitudes."""
        if self.bits == 16:
            return HalfLinear(weights.astype(np.float16))
        if self.block is None:
            return _round_channels(weights, self.bits)
        if weights.shape[0] % self.block:
            raise InvalidInputError(
                f"a linear of {weights.shape[0]} inputs has no whole blocks of {self.block}"
            )
        if self.minima:
            return _round_blocks_with_minima(weights, self.block)
        return _round_blocks(weights, self.block)


W8 = Kind(8)
W4 = Kind(4)
W4_MINIMA = Kind(4, 32, minima=True)
F16 = Kind(16)
KINDS = {
    str(kind): kind for kind in (W8, W4, Kind(4, 64), Kind(4, 32), Kind(4, 16), W4_MINIMA, F16)
}


def _round_channels(weights: FloatArray, bits: int) -> ChannelLinear:
    largest = 2 ** (bits - 1) - 1
    scales = np.abs(weights).max(axis=0) / np.float32(largest)
    scales[scales == 0] = 1
    codes = np.rint(weights / scales).astype(np.int8)
    return ChannelLinear(codes, scales.astype(np.float32), bits)


def _round_blocks(weights: FloatArray, block: int) -> BlockLinear:
    inputs, outputs = weights.shape
    blocks = weights.reshape(-1, block, outputs)
    wanted = np.abs(blocks).max(axis=1) / np.float32(7)
    scales = wanted.max(axis=0) / np.float32(LARGEST_BLOCK_SCALE)
    scales[scales == 0] = 1
    steps = np.clip(np.rint(wanted / scales), 1, LARGEST_BLOCK_SCALE).astype(np.uint8)
    codes = np.rint(blocks / (steps * scales)[:, None])
    codes = np.clip(codes, -8, 7).astype(np.int8).reshape(inputs, outputs)
    return BlockLinear(codes, steps, scales.astype(np.float32))


def _round_blocks_with_minima(weights: FloatArray, block: int) -> MinimaLinear:
    """Finds a Q4_1 file's own codes again, because its blocks use their whole range."""
    blocks = weights.reshape(-1, block, weights.shape[1])
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    scales = (high - low) / np.float32(15)
    scales[scales == 0] = 1
    codes = np.rint((blocks - low[:, None]) / scales[:, None]) - 8
    codes = codes.astype(np.int8).reshape(weights.shape)
    return MinimaLinear(codes, scales, low + 8 * scales)


def _zeros(graph: Graph, shape: tuple[int, ...], bits: int) -> str:
    """Zero points: without them the NPU misreads 4-bit codes, in silence. Shared by a shape."""
    name = f"zeros.{bits}.{'x'.join(map(str, shape))}"
    return graph.initializer(name, _narrow(np.zeros(shape, np.int8), bits))


def _narrow(codes: SignedArray, bits: int) -> NDArray[np.int8]:
    """Codes as the element type that the graph stores them in."""
    return codes if bits == 8 else codes.astype(ml_dtypes.int4)
