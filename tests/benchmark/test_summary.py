"""From runs to figures, on runs that were made up."""

from __future__ import annotations

import pytest

from specdec import Stats
from specdec.benchmark import Run, differences, summarise


def run(
    contestant: str,
    *,
    kind: str = "chat",
    prompt: int = 0,
    repeat: int = 0,
    seconds: float = 1.0,
    tokens: tuple[int, ...] = tuple(range(10)),
    stats: Stats | None = None,
) -> Run:
    stats = stats or Stats(rounds=len(tokens), tokens=len(tokens))
    return Run(contestant, kind, prompt, repeat, tokens, seconds / 10, seconds, stats)


def test_speed_is_the_median_over_repeats_of_all_prompts_together() -> None:
    runs = [
        run("target alone", prompt=prompt, repeat=repeat, seconds=seconds)
        for repeat, seconds in enumerate((1.0, 2.0, 5.0))
        for prompt in range(2)
    ]
    (summary,) = summarise(runs)
    assert summary.tokens_per_second == pytest.approx(20 / 4)
    assert (summary.slowest, summary.fastest) == pytest.approx((2.0, 10.0))
    assert summary.runs == 6
    assert summary.first_token_seconds == pytest.approx(0.2)


def test_ratio_compares_within_a_repeat() -> None:
    # The machine is four times slower in the second repeat: the ratio does not see it.
    runs = []
    for repeat, drift in enumerate((1.0, 4.0)):
        runs.append(run("target alone", repeat=repeat, seconds=2 * drift))
        runs.append(run("k = 4", repeat=repeat, seconds=1 * drift))
    assert [summary.ratio for summary in summarise(runs)] == pytest.approx([1.0, 2.0])


def test_counts_are_pooled() -> None:
    runs = [
        run("k = 2", prompt=0, stats=_stats(rounds=10, drafted=(10, 9), accepted=(8, 3))),
        run("k = 2", prompt=1, stats=_stats(rounds=30, drafted=(30, 21), accepted=(22, 3))),
    ]
    (summary,) = summarise(runs)
    assert summary.acceptance_by_position == pytest.approx((30 / 40, 6 / 30))
    assert summary.acceptance_rate == pytest.approx(36 / 70)
    assert summary.block_efficiency == pytest.approx((36 + 40) / 40)
    assert (summary.draft_share, summary.verify_share) == pytest.approx((0.2, 0.7))
    assert summary.other_share == pytest.approx(0.1)
    assert summary.ratio is None


def test_kinds_have_rows_of_their_own_and_one_together() -> None:
    runs = [run(name, kind=kind) for kind in ("chat", "code") for name in ("target alone", "auto")]
    rows = [(summary.kind, summary.contestant) for summary in summarise(runs)]
    assert rows == [
        (kind, name) for kind in ("chat", "code", "all") for name in ("target alone", "auto")
    ]


def test_differences_name_the_first_token() -> None:
    runs = [
        run("target alone"),
        run("k = 1"),
        run("k = 2", tokens=(0, 1, 7)),
        run("k = 3", tokens=(0, 1, 2)),
        run("k = 3", repeat=1, tokens=(5,)),  # the target did not run in this repeat
    ]
    found = differences(runs)
    assert [(d.contestant, d.position) for d in found] == [("k = 2", 2), ("k = 3", 3)]


def _stats(rounds: int, drafted: tuple[int, ...], accepted: tuple[int, ...]) -> Stats:
    return Stats(
        rounds=rounds,
        tokens=sum(accepted) + rounds,
        drafted=sum(drafted),
        accepted=sum(accepted),
        drafted_by_position=drafted,
        accepted_by_position=accepted,
        seconds={"prefill": 5.0, "draft": 0.2, "verify": 0.7},
    )
