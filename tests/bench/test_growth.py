"""What bench.growth makes of its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.growth import as_markdown
from bench.growth_figures import (
    LengthRun,
    acceptance,
    cache_bytes,
    measured_bandwidth,
    most_tokens_per_second,
    predictions,
    weight_bytes,
)
from bench.growth_plots import draw
from specdec import Model, Stats
from specdec.cost_model import expected_tokens

RATE, BASE, SLOPE, DRAFT = 0.5, 4e-3, 1e-3, 2e-4
ROUNDS = 1 << 20


def run_at(k: int, rounds: int = ROUNDS) -> LengthRun:
    """Figures of a world with one acceptance rate and a step whose cost is linear in its rows."""
    accepted = tuple(round(rounds * RATE ** (i + 1)) for i in range(k))
    tokens = rounds + sum(accepted)
    seconds = {"draft": rounds * k * DRAFT, "verify": rounds * (BASE + SLOPE * (k + 1))}
    stats = Stats(
        rounds=rounds,
        tokens=tokens,
        drafted=rounds * k,
        accepted=sum(accepted),
        drafted_by_position=(rounds,) * k,
        accepted_by_position=accepted,
        seconds=seconds,
    )
    speed = tokens / sum(seconds.values())
    return LengthRun(k, speed, speed, speed, stats)


def test_acceptance_is_that_of_drafts_that_were_reached() -> None:
    assert acceptance([run_at(1), run_at(4)]) == pytest.approx(RATE, abs=1e-6)


def test_lengths_that_were_not_measured_are_predicted() -> None:
    predicted = predictions([run_at(1), run_at(2), run_at(4)], [1, 3, 8, 16])
    for k, speed in predicted.items():
        expected = expected_tokens(RATE, k) / (k * DRAFT + BASE + SLOPE * (k + 1))
        assert speed == pytest.approx(expected, rel=1e-4)
        assert speed == pytest.approx(run_at(k).tokens_per_second, rel=1e-4)


def test_bytes_are_those_of_the_folder(tiny_target: Path, tiny_attached: Path) -> None:
    """The embedding is the head's own memory, and a drafter reads its rows alone."""
    target, drafter = (Model.load(folder) for folder in (tiny_target, tiny_attached))
    data = (tiny_target / "model.onnx.data").stat().st_size
    config = target.config
    rotary = 4 * config.context * config.head_dim
    gains = 4 * config.hidden * (2 * config.layers + 1)
    rest = data - rotary - gains  # with what aligns the tensors
    assert 0.85 * rest < weight_bytes(tiny_target) <= rest
    assert weight_bytes(tiny_attached) < weight_bytes(tiny_target)
    elements = 2 * config.layers * config.kv_heads * config.head_dim
    assert cache_bytes(target) == 2 * elements
    assert drafter.half_kv


def test_the_memory_bound_counts_what_a_round_reads() -> None:
    assert most_tokens_per_second(20e9, 100e6) == pytest.approx(200)
    assert most_tokens_per_second(20e9, 100e6, 2.0, 60e6) == pytest.approx(250)


def test_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < measured_bandwidth(1) < 2e12


def test_tables_and_pictures_hold_every_figure(tmp_path: Path) -> None:
    speeds = {"slowest": 90.0, "fastest": 110.0}
    result: dict[str, Any] = {
        "command": "python -m bench.growth",
        "bandwidth": {1: 15e9, 2: 27e9},
        "target_bytes": 96_000_000,
        "draft_bytes": 25_000_000,
        "cache_bytes": 46_080,
        "context": [
            {
                "mode": mode,
                "context": context,
                "tokens_per_second": 101.0,
                "prefill_seconds": 0.5,
                "peak_bytes": 333e6,
                **speeds,
            }
            for mode in ("plain", "auto")
            for context in (128, 1024)
        ],
        "length": {
            "kind": "chat",
            "acceptance": 0.41,
            "fitted": [1],
            "auto": (123.0, 120.0, 125.0),
            "lengths": [
                {
                    "draft_length": 1,
                    "tokens_per_second": 104.0,
                    "predicted": 105.0,
                    "tokens_per_step": 1.4,
                    "step_seconds": 0.009,
                    "draft_seconds": 0.0012,
                    **speeds,
                }
            ],
        },
        "threads": [
            {"threads": n, "mode": mode, "tokens_per_second": 95.0 + n, **speeds}
            for n in (1, 2)
            for mode in ("plain", "auto")
        ],
    }
    text = as_markdown(result)
    for expected in (
        "| 1024 | auto | 101 (90 to 110) | 189 a step | 0.50 | 333 |",
        "| 1 | 104 (90 to 110) | 105 | 1.40 | 9.00 | 1.20 |",
        "| auto | 123 (120 to 125) |",
        "| 2 | plain | 97 (90 to 110) | 27.0 |",
        "acceptance of 0.41",
    ):
        assert expected in text
    draw(result, tmp_path)
    for name in ("context", "lengths", "threads"):
        assert (tmp_path / f"{name}.svg").stat().st_size > 1000
