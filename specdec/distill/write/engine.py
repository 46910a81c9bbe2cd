"""What writes many conversations at once: one token of each per step.

Two engines do the same thing; ONNX Runtime is the default, because it was the faster one. Tokens
per second for SmolLM2-135M, two threads of an AMD EPYC (AVX-512 VNNI and BF16, no AMX), rows 30 to
370 tokens into their conversations, ``python bench/batch_writers.py TARGET.gguf --threads 2``, and
in brackets those per second of processor time:

| layout | 32 rows | 64 rows | 96 rows |
|---|---|---|---|
| fused | 1,240 (613) | 1,251 (630) | 1,160 (510) |
| nbits8 | 420 (226) | 505 (254) | 501 (252) |
| int8 | 409 (232) | 556 (285) | 578 (302) |

torch in bfloat16 wrote 155, 188 and 204 tokens per second of processor time on another day, when
nbits8 wrote 280, 300 and 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import ModelSource
from specdec.convert.layouts import LAYOUTS
from specdec.distill.write.options import WriteOptions

CANDIDATES = 512
"""The next token is drawn among so many of the best: a drafter for temperature 1 has to see text as
far out as that leads, and fewer would hide it."""


@dataclass(frozen=True)
class Candidates:
    """The best next tokens of each row, best first."""

    ids: NDArray[np.int64]
    """[rows, candidates]."""
    logits: NDArray[np.float32]
    """[rows, candidates]."""

    def take(self, rows: list[int]) -> Candidates:
        """The candidates of some rows."""
        return Candidates(self.ids[rows], self.logits[rows])


class BatchWriter(Protocol):
    """A target that reads one token of each of several conversations per step.

    Every row has its own place in the KV cache and its own length.
    """

    def set_prefix(self, tokens: list[int]) -> None:
        """Compute what conversations begin with, once."""
        ...

    def begin(self, row: int) -> None:
        """Put the prefix into ``row``."""
        ...

    def move(self, source: int, row: int) -> None:
        """Put what is in row ``source`` into ``row``."""
        ...

    def step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32]) -> Candidates:
        """Read one token in each of the first rows, ``tokens[i]`` at position ``lengths[i]``."""
        ...


def open_writer(source: ModelSource, options: WriteOptions, scratch: Path) -> BatchWriter:
    """The engine that the options name; ``scratch`` is an empty folder it may fill while it lives.

    Raises:
        InvalidInputError: The device is not to be had.
    """
    if options.engine == "torch":
        from specdec.distill.write.torch_writer import TorchWriter

        return TorchWriter(source, options)
    if LAYOUTS[options.layout].fused:
        from specdec.distill.write.fused_writer import FusedWriter

        return FusedWriter(source, options, scratch)
    from specdec.distill.write.onnx_writer import OnnxWriter

    return OnnxWriter(source, options, scratch)


def draw(
    candidates: Candidates, temperature: NDArray[Any], top_p: NDArray[Any], uniform: NDArray[Any]
) -> NDArray[np.int64]:
    """One token per row [rows], by inverse transform of ``uniform`` in [0, 1).

    ``temperature`` 0 takes the best; ``top_p`` keeps the fewest best tokens that reach it. All
    arguments [rows].
    """
    logits = candidates.logits.astype(np.float64)
    warm = np.maximum(temperature, 1e-6)[:, None]
    weights = np.exp((logits - logits[:, :1]) / warm)
    total = weights.cumsum(axis=1)
    before = (total - weights) / total[:, -1:]
    weights[before >= top_p[:, None]] = 0.0
    total = weights.cumsum(axis=1)
    choice = (total <= uniform[:, None] * total[:, -1:]).sum(axis=1)
    choice[temperature == 0] = 0
    rows = np.arange(len(choice))
    chosen: NDArray[np.int64] = candidates.ids[rows, np.minimum(choice, logits.shape[1] - 1)]
    return chosen
