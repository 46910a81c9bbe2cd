"""What a round costs outside the two models: sampling, acceptance, commit.

    pytest bench/test_round_overhead.py --benchmark-only

The models' runs only put prepared logits into the core's buffers, as a session would, and the
clock stands still meanwhile. 49,152 tokens (or SPECDEC_BENCH_VOCABULARY), 4 drafts, about 70 % of
them accepted.

A target of fixed shape (30 layers, 3 K/V heads of 64, a past of 1,024) also has its inputs filled,
its logits read as floats and its accepted columns copied. An attached drafter has hidden states (of
576 elements) copied.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from specdec import _core

VOCABULARY = int(os.environ.get("SPECDEC_BENCH_VOCABULARY", 49_152))
HEAD = 16_384
HIDDEN = 576
DRAFT_LENGTH = 4
ROUNDS = 300
POSITIONS = 48  # distinct rows of logits; the text goes round them

Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def logits() -> tuple[Logits, Logits]:
    """Rows [positions, V] of the target and of a drafter that is close to it.

    Zipf's law with a context of its own in each row: a few nats of entropy, as text has.
    """
    rng = np.random.default_rng(1)
    shape = (POSITIONS, VOCABULARY)
    zipf = -1.1 * np.log1p(np.arange(VOCABULARY, dtype=np.float32))
    target = zipf + 2.2 * rng.standard_normal(shape, dtype=np.float32)
    drafter = target + 0.35 * rng.standard_normal(shape, dtype=np.float32)
    return target, drafter


def decoder_of(rows: Logits, head_ids: list[int], target: Any = None) -> Any:
    """A target or a standalone drafter; a drafter that is attached to ``target``, if any."""
    views: list[Any] = []

    def run(width: int, first: int) -> None:
        buffer, total = views
        begin = int(total[()]) - width + first
        for i in range(width - first):
            np.copyto(buffer[i], rows[(begin + i) % POSITIONS])

    decoder: _core.Decoder
    if target is not None:
        decoder = _core.AttachedDecoder(
            vocabulary=VOCABULARY,
            head_ids=head_ids,
            target=target,
            target_layers=[0],
            context=8192,
            run=run,
        )
    else:
        decoder = _core.InPlaceDecoder(
            vocabulary=VOCABULARY,
            head_ids=head_ids,
            layers=1,
            kv_heads=1,
            head_dim=1,
            capacity=8192,
            min_width=2,
            max_width=16,
            max_logit_rows=16,
            hidden=HIDDEN,
            takes_rows=True,
            run=run,
        )
    views += [decoder.buffers()["logits"], decoder.buffers()["total_length"]]
    return decoder


FIXED_LAYERS, FIXED_HEADS, FIXED_DIM, FIXED_PAST = 30, 3, 64, 1024
FIXED_SCALE, FIXED_ZERO_POINT = 1e-3, 40_000


def fixed_decoder_of(rows: Logits, has_best: bool) -> Any:
    bits = np.rint(rows / FIXED_SCALE + FIXED_ZERO_POINT).clip(0, 65_535).astype(np.uint16)
    best = bits.argmax(-1).astype(np.int32)
    buffers: dict[str, Any] = {}

    def run(width: int, head: int) -> None:
        which = (np.arange(width) + decoder.length) % POSITIONS
        if head == 1:
            buffers[f"logits.{width}"][0] = bits[which]
        if head == 2:
            buffers[f"best.{width}"][0] = best[which]

    rng = np.random.default_rng(2)
    decoder = _core.FixedDecoder(
        vocabulary=VOCABULARY,
        head_ids=[],
        layers=FIXED_LAYERS,
        kv_heads=FIXED_HEADS,
        head_dim=FIXED_DIM,
        hidden=HIDDEN,
        past=FIXED_PAST,
        widths=[8, 32],
        kv_bytes=1,
        embedding=rng.integers(0, 65_536, (VOCABULARY, HIDDEN), np.uint16),
        rotary=rng.integers(0, 65_536, (2, FIXED_PAST + 32, FIXED_DIM // 2), np.uint16),
        mask_allowed=65_535,
        mask_blocked=0,
        logits_scale=FIXED_SCALE,
        logits_zero_point=FIXED_ZERO_POINT,
        logits_float16=False,
        sink=None,
        has_best=has_best,
        run=run,
    )
    buffers |= decoder.buffers()
    return decoder


def engine_for(
    logits: tuple[Logits, Logits],
    trimmed: bool,
    rule: str,
    sampling: dict[str, float],
    fixed: str = "",
    attached: bool = False,
    width: int = 1,
) -> tuple[Any, Callable[[], float]]:
    target = fixed_decoder_of(logits[0], fixed == "best") if fixed else decoder_of(logits[0], [])
    host = target if attached else None
    if trimmed:
        rows = np.ascontiguousarray(logits[1][:, :HEAD])
        draft = decoder_of(rows, list(range(HEAD)), host)
    else:
        draft = decoder_of(logits[1], [], host)
    drafter = _core.AttachedDrafter(draft) if attached else _core.ModelDrafter(draft)
    engine = _core.Engine(target, drafter)
    engine.set_draft_length(DRAFT_LENGTH)
    engine.set_draft_width(width)
    options = _core.StreamOptions()
    chosen = _core.SamplingOptions()
    chosen.seed = 1
    for name, value in sampling.items():
        setattr(chosen, name, value)
    options.sampling = chosen
    options.set_rule(rule)
    engine.start([1, 2, 3], options)
    engine.prefill()
    # The timer is given to pytest-benchmark: seconds outside both models.
    return engine, lambda: time.perf_counter() - target.run_seconds - draft.run_seconds


SETTINGS: dict[str, tuple[str, dict[str, float], float]] = {
    # name: rule, sampling, most microseconds at the median
    "greedy": ("greedy", {"temperature": 0.0}, 150),
    "block": ("block", {}, 600),
    "token": ("token", {}, 600),
    "coupled": ("coupled", {}, 600),
    "block-top_p": ("block", {"temperature": 0.8, "top_p": 0.95}, 600),
    "block-top_k": ("block", {"temperature": 0.8, "top_k": 50}, 300),
    "block-min_p": ("block", {"temperature": 0.8, "min_p": 0.05}, 300),
    "block-repetition": ("block", {"repetition_penalty": 1.1}, 600),
}


@pytest.mark.parametrize("head", ["full", "trimmed"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_round_overhead(
    benchmark: Any, logits: tuple[Logits, Logits], setting: str, head: str
) -> None:
    rule, sampling, bound = SETTINGS[setting]
    engine, timer = engine_for(logits, head == "trimmed", rule, sampling)
    measure(benchmark, engine, timer, f"{head} head", ROUNDS, bound)


@pytest.mark.parametrize("setting", ["greedy", "block"])
def test_round_overhead_of_an_attached_drafter(
    benchmark: Any, logits: tuple[Logits, Logits], setting: str
) -> None:
    rule, sampling, bound = SETTINGS[setting]
    engine, timer = engine_for(logits, False, rule, sampling, attached=True)
    measure(benchmark, engine, timer, "attached drafter", ROUNDS, bound)


@pytest.mark.parametrize("setting", ["greedy", "token", "coupled"])
def test_round_overhead_of_trees(
    benchmark: Any, logits: tuple[Logits, Logits], setting: str
) -> None:
    """Three candidates for each position."""
    rule, sampling, bound = SETTINGS[setting]
    engine, timer = engine_for(logits, True, rule, sampling, attached=True, width=3)
    measure(benchmark, engine, timer, "trees", ROUNDS, 2 * bound)


# name: rule, sampling, head of the target's graph, most microseconds at the median
FIXED_SETTINGS: dict[str, tuple[str, dict[str, float], str, float]] = {
    "greedy": ("greedy", {"temperature": 0.0}, "logits", 400),
    "greedy-best": ("greedy", {"temperature": 0.0}, "best", 300),
    "block": ("block", {}, "logits", 850),
}


@pytest.mark.parametrize("setting", FIXED_SETTINGS)
def test_round_overhead_of_fixed_shape(
    benchmark: Any, logits: tuple[Logits, Logits], setting: str
) -> None:
    rule, sampling, head, bound = FIXED_SETTINGS[setting]
    engine, timer = engine_for(logits, False, rule, sampling, head)
    measure(benchmark, engine, timer, "fixed shape", 150, bound)  # as many as the context holds


def measure(
    benchmark: Any,
    engine: Any,
    timer: Callable[[], float],
    group: str,
    rounds: int,
    bound: float,
) -> None:
    benchmark._timer = timer
    benchmark.group = f"round, {group}"
    before = time.perf_counter()
    benchmark.pedantic(engine.round, rounds=rounds, warmup_rounds=30, iterations=1)
    wall = time.perf_counter() - before
    totals = engine.totals
    benchmark.extra_info.update(
        acceptance=round(sum(totals.accepted_at) / sum(totals.drafted_at), 3),
        wall_us_per_round=round(1e6 * wall / totals.rounds),
    )
    median = 1e6 * benchmark.stats.stats.median
    print(f"\n{benchmark.name}: median {median:.0f} us, {benchmark.extra_info}")
    assert median < bound * max(VOCABULARY / 49_152, 1)
