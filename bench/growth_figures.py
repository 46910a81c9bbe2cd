"""What growth is measured against: the cost model's prediction and the memory's bandwidth.

Pure functions, but for the measurement of the bandwidth itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from specdec import Model, Stats
from specdec.cost_model import Pair

_BANDWIDTH_BYTES = 256 << 20  # far more than any cache holds
_BANDWIDTH_TURNS = 7


@dataclass(frozen=True)
class LengthRun:
    """What texts at one fixed draft length cost and brought."""

    draft_length: int
    tokens_per_second: float
    slowest: float
    """Of the repeats; so is the next."""
    fastest: float
    stats: Stats
    """Of all texts together."""


def measured_bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read from memory together, the best of some turns."""
    parts = np.array_split(np.ones(_BANDWIDTH_BYTES // 8, dtype=np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_BANDWIDTH_TURNS):
            begin = time.perf_counter()
            list(pool.map(np.add.reduce, parts))
            best = max(best, _BANDWIDTH_BYTES / (time.perf_counter() - begin))
    return best


def weight_bytes(folder: Path) -> int:
    """Bytes of a model folder's matrices that a step reads: all but its embedding.

    A tied embedding is read whole, as the head. (Of a head's ``fine`` a greedy step reads little.)
    """
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return sum(
        math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
        if tensor.name.endswith((".codes", ".fine", ".scales"))
        and not tensor.name.startswith("embedding")
    )


def cache_bytes(model: Model) -> int:
    """Bytes of K and V that one token of the past takes."""
    config = model.config
    element = 2 if model.half_kv else 4
    return 2 * config.layers * config.kv_heads * config.head_dim * element


def most_tokens_per_second(
    bandwidth: float, step_bytes: float, tokens: float = 1.0, draft_bytes: float = 0.0
) -> float:
    """The speed at which memory is read without a pause.

    A round commits ``tokens`` and reads ``step_bytes`` and ``draft_bytes``.
    """
    return tokens * bandwidth / (step_bytes + draft_bytes)


def acceptance(runs: Sequence[LengthRun]) -> float:
    """Probability that a draft is accepted if all before it were, the same at all positions.

    The maximum-likelihood estimate under the model of Leviathan et al. 2211.17192: accepted drafts
    over drafts that were reached.
    """
    accepted = reached = 0
    for run in runs:
        stats = run.stats
        accepted += stats.accepted
        # A draft is reached if the one before it was accepted; the last rounds of a text are short.
        before = (stats.rounds, *stats.accepted_by_position[:-1])
        reached += sum(map(min, before, stats.drafted_by_position))
    return accepted / reached if reached else 0.0


def predictions(fitted: Sequence[LengthRun], lengths: Sequence[int]) -> dict[int, float]:
    """Tokens per second at ``lengths`` as ``specdec.cost_model`` has them.

    From ``fitted`` come the acceptance, the seconds of a drafted token, and those of a target step
    by its rows: a straight line through the measured widths.
    """
    drafted = sum(run.stats.drafted for run in fitted)
    draft_seconds = sum(run.stats.seconds["draft"] for run in fitted) / drafted
    widths = np.array([run.draft_length + 1 for run in fitted], dtype=np.float64)
    steps = np.array([run.stats.seconds["verify"] / run.stats.rounds for run in fitted])
    slope, base = np.polyfit(widths, steps, 1) if len(fitted) > 1 else (0.0, steps[0])
    seconds = {k + 1: float(base + slope * (k + 1)) for k in (0, *lengths)}
    pair = Pair(target_seconds=seconds, draft_seconds=draft_seconds)
    rate = acceptance(fitted)
    return {k: pair.predict(rate, k).tokens_per_second for k in lengths}
