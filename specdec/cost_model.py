"""What a step of a decoder on an NPU costs, and how fast it writes: bytes, seconds, tokens/s.

A step reads every weight and the whole past once, whatever its width: it is bound by memory, as
long as the arithmetic of its rows takes less time than that. So checking a few drafted tokens costs
about what decoding one costs, and speculation pays by the number of tokens that a round commits.

Bytes come from a count (``step_bytes``) or, better, from what QNN's compiler says of the graphs it
made. Everything here is arithmetic: no device, no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from specdec.errors import InvalidInputError
from specdec.model_shape import ModelShape

ROW_TILE = 32
"""Rows that the NPU's matrix unit takes at once: a step's rows cost as the next multiple of it."""

_ELEMENT = 2  # bytes of an activation, a logit and a mask entry (16 bits)
_OUTPUT = 32  # bytes that the compiler keeps with each output of a quantised linear (its scale...)


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder-only transformer that cost something."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    head_size: int
    """Rows of the head: the vocabulary, or fewer where a drafter's head is trimmed."""

    @classmethod
    def of(cls, model: ModelShape, head_size: int | None = None) -> DecoderShape:
        """A model's sizes with ``head_size`` rows of the head; None: the whole vocabulary."""
        return cls(
            layers=model.layers,
            hidden=model.hidden,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            ffn=model.ffn,
            head_size=head_size or model.vocab,
        )

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of each linear of one layer."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (self.hidden, query),
            (self.hidden, key_value),
            (self.hidden, key_value),
            (query, self.hidden),
            (self.hidden, self.ffn),
            (self.hidden, self.ffn),
            (self.ffn, self.hidden),
        )

    @property
    def layer_weights(self) -> int:
        """Weights of the linears of one layer."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.head_size


@dataclass(frozen=True)
class WeightLayout:
    """How many bits hold a weight, and what goes with it."""

    layer_bits: int
    head_bits: int
    kv_bytes: int = 1
    """Of one element of K or V."""
    block: int | None = None
    """Inputs of a layer's linear that share a one-byte scale, beside the output's own."""


LAYOUTS: Mapping[str, WeightLayout] = {
    "w4a16": WeightLayout(4, 8),
    **{f"w4a16-b{block}": WeightLayout(4, 8, block=block) for block in (64, 32, 16)},
    "w8a16": WeightLayout(8, 8),
    "fp16": WeightLayout(16, 16, kv_bytes=2),
}


@dataclass(frozen=True)
class StepBytes:
    """What one step moves over the memory bus, in bytes."""

    weights: float
    past: float
    """K/V of all columns that the graph takes, filled or not."""
    activations: float
    """Inputs and outputs of the graphs: the rows between parts, mask, new K/V, logits."""
    spilled: float = 0.0
    """Written to memory and read again because the NPU's own does not hold it."""

    @property
    def total(self) -> float:
        return self.weights + self.past + self.activations + self.spilled


def step_bytes(
    shape: DecoderShape,
    layout: WeightLayout,
    *,
    past: int,
    width: int = 1,
    head: str | None = "logits",
    parts: int = 1,
    layer_spill: float = 0.0,
) -> StepBytes:
    """Counts what a step of ``width`` tokens moves where the graph takes ``past`` columns of K/V.

    ``head`` is ``"logits"`` (all logits are written), ``"best"`` (the argmax is) or None (prefill).
    The layers run as ``parts`` graphs. What a layer spills cannot be counted, it is up to the
    compiler: none of Llama 2's up to a past of 2,048, all of its past (written and read: 68 MB) at
    4,096. ``layer_spill`` is what the compiler says, bytes of both ways together.
    """
    _check_at_least(0, past=past)
    _check_at_least(1, width=width, parts=parts)
    weights = shape.layers * sum(
        _linear_bytes(inputs, outputs, layout.layer_bits, layout.block)
        for inputs, outputs in shape.linears
    )
    columns = 2 * shape.layers * shape.kv_heads * shape.head_dim * layout.kv_bytes
    written = _tiled(width)  # rows leave the NPU in whole tiles
    activations = width * columns + parts * _ELEMENT * (
        width * (shape.hidden + past + width + shape.head_dim) + written * shape.hidden
    )
    if head is not None:
        weights += _linear_bytes(shape.hidden, shape.head_size, layout.head_bits, None)
        logits = shape.head_size * _ELEMENT if head == "logits" else 4
        activations += width * shape.hidden * _ELEMENT + written * logits
    return StepBytes(
        weights=weights,
        past=past * columns,
        activations=activations,
        spilled=shape.layers * layer_spill,
    )


def step_operations(shape: DecoderShape, *, width: int, head: bool = True) -> float:
    """Multiplications and additions of a step's linears, its rows rounded up to whole tiles."""
    _check_at_least(1, width=width)
    weights = shape.layers * shape.layer_weights + (shape.head_weights if head else 0)
    return 2.0 * weights * _tiled(width)


@dataclass(frozen=True)
class Chip:
    """What of a system-on-chip decides how long a step takes."""

    name: str
    peak_bandwidth: float
    """Of its memory by specification, bytes per second."""
    fraction: float
    """How much of that a decoder gets: fitted to published speeds."""
    call_seconds: float
    """What running one graph costs beside its memory traffic."""
    operations_per_second: float
    """Of its linears on many rows: from published times of prompt processing."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second that a decoder gets."""
        return self.peak_bandwidth * self.fraction

    def seconds(self, step: Step) -> float:
        """How long a step takes: its memory traffic or its arithmetic, whichever takes longer."""
        busy = max(step.bytes / self.bandwidth, step.operations / self.operations_per_second)
        return step.calls * self.call_seconds + busy

    def fitted(self, step: Step, tokens_per_second: float) -> Chip:
        """This chip with the fraction at which a decoder of that step has that speed.

        InvalidInputError where the calls alone take longer than a token.
        """
        left = 1 / tokens_per_second - step.calls * self.call_seconds
        if left <= 0:
            raise InvalidInputError(
                f"{step.calls} graphs of {self.call_seconds * 1e3:g} ms each cannot make "
                f"{tokens_per_second:g} tokens per second"
            )
        return replace(self, fraction=step.bytes / left / self.peak_bandwidth)


@dataclass(frozen=True)
class Step:
    """One run of a decoder's chain of graphs."""

    bytes: float
    calls: int
    """Graphs in the chain."""
    operations: float = 0.0


def counted_step(
    shape: DecoderShape,
    layout: WeightLayout,
    *,
    past: int,
    width: int = 1,
    head: str = "logits",
    parts: int = 1,
    layer_spill: float = 0.0,
) -> Step:
    """The step as counted, with the head as a graph of its own behind ``parts`` of layers."""
    moved = step_bytes(
        shape,
        layout,
        past=past,
        width=width,
        head=head,
        parts=parts,
        layer_spill=layer_spill,
    )
    return Step(moved.total, parts + 1, step_operations(shape, width=width))


def expected_tokens(acceptance: float, draft_length: int) -> float:
    """Tokens that a round commits: (1 - a^(k+1)) / (1 - a), Leviathan et al. 2211.17192, eq. 1.

    ``acceptance`` is the probability a that a drafted token is accepted, taken to be the same at
    every position and independent of the others; ``draft_length`` is k.
    """
    _check_at_least(0, draft_length=draft_length)
    if not 0 <= acceptance <= 1:
        raise InvalidInputError(f"acceptance is {acceptance}; it must be between 0 and 1")
    # The sum of the geometric series, which has no hole at a = 1.
    return math.fsum(acceptance**position for position in range(draft_length + 1))


@dataclass(frozen=True)
class Prediction:
    """How fast a target writes with a drafter at one draft length."""

    acceptance: float
    draft_length: int
    round_tokens: float
    """Tokens that a round commits on average, τ."""
    round_seconds: float
    plain_seconds: float
    """What a token costs without a drafter."""

    @property
    def tokens_per_second(self) -> float:
        return self.round_tokens / self.round_seconds

    @property
    def ratio(self) -> float:
        """Over plain decoding."""
        return self.tokens_per_second * self.plain_seconds


@dataclass(frozen=True)
class Pair:
    """A target and a drafter on one chip: what their steps take."""

    target_seconds: Mapping[int, float]
    """Width of the target's graphs -> seconds; a step takes the narrowest that holds its tokens."""
    draft_seconds: float
    """One drafted token."""

    def predict(self, acceptance: float, draft_length: int) -> Prediction:
        """Draft, verify and commit, one after the other; with k = 0 that is plain decoding.

        InvalidInputError for a draft length whose k + 1 tokens no width holds.
        """
        tokens = expected_tokens(acceptance, draft_length)
        verify = self._step_seconds(draft_length + 1)
        return Prediction(
            acceptance=acceptance,
            draft_length=draft_length,
            round_tokens=tokens,
            round_seconds=draft_length * self.draft_seconds + verify,
            plain_seconds=self._step_seconds(1),
        )

    def best(self, acceptance: float, draft_lengths: Iterable[int]) -> Prediction:
        """The fastest of these draft lengths; the shortest of equally fast ones."""
        predictions = [self.predict(acceptance, length) for length in sorted(draft_lengths)]
        return max(predictions, key=lambda prediction: prediction.tokens_per_second)

    def _step_seconds(self, tokens: int) -> float:
        width = min((w for w in self.target_seconds if w >= tokens), default=None)
        if width is None:
            raise InvalidInputError(
                f"a step of {tokens} tokens does not fit the target's widths "
                f"{sorted(self.target_seconds)}"
            )
        return self.target_seconds[width]


def _tiled(rows: int) -> int:
    return ROW_TILE * math.ceil(rows / ROW_TILE)


def _linear_bytes(inputs: int, outputs: int, bits: int, block: int | None) -> float:
    scales = _OUTPUT * outputs if bits < 16 else 0
    blocks = 0 if block is None else inputs / block * outputs
    return inputs * outputs * bits / 8 + blocks + scales


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InvalidInputError(f"{name} is {value}; it must be at least {least}")
