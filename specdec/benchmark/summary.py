"""Runs to figures: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from specdec.benchmark.contest import BASELINE, Run
from specdec.stats import Stats

ALL_KINDS = "all"


@dataclass(frozen=True)
class Summary:
    """One contestant's figures on one kind of prompt."""

    kind: str
    contestant: str
    runs: int
    tokens: int
    """In all runs."""
    acceptance_rate: float
    acceptance_by_position: tuple[float, ...]
    block_efficiency: float
    tokens_per_second: float
    """Median over the repeats of: all prompts' tokens over all prompts' decode seconds."""
    slowest: float
    """Tokens per second of the slowest repeat, and of the fastest."""
    fastest: float
    ratio: float | None
    """Median over the repeats of the speed over the target's alone; None where it did not run."""
    first_token_seconds: float
    """Median over the runs."""
    draft_share: float
    """Of the decode seconds; with the two below these add up to 1."""
    verify_share: float
    other_share: float
    """Accepting, text, and everything outside of the core."""


@dataclass(frozen=True)
class Difference:
    """A text that is not the target's own, though it should be, token for token."""

    contestant: str
    kind: str
    prompt: int
    repeat: int
    position: int
    """Index of the first token that differs."""


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """Figures by kind and contestant, in the order of their first runs.

    With more than one kind there is also ``"all"``, last.
    """
    kinds = list(dict.fromkeys(run.kind for run in runs))
    names = list(dict.fromkeys(run.contestant for run in runs))
    groups = [(kind, [run for run in runs if run.kind == kind]) for kind in kinds]
    if len(kinds) > 1:
        groups.append((ALL_KINDS, list(runs)))
    return [_summary(kind, name, group) for kind, group in groups for name in names]


def differences(runs: Sequence[Run], reference: str = BASELINE) -> list[Difference]:
    """Where a contestant's tokens are not the reference's for the same prompt and repeat."""
    expected = {
        (run.kind, run.prompt, run.repeat): run.tokens
        for run in runs
        if run.contestant == reference
    }
    return [
        Difference(
            run.contestant, run.kind, run.prompt, run.repeat, _first_difference(tokens, run.tokens)
        )
        for run in runs
        if (tokens := expected.get((run.kind, run.prompt, run.repeat), run.tokens)) != run.tokens
    ]


def _summary(kind: str, contestant: str, runs: Sequence[Run]) -> Summary:
    own = [run for run in runs if run.contestant == contestant]
    speeds = _speed_by_repeat(own)
    baseline = _speed_by_repeat([run for run in runs if run.contestant == BASELINE])
    ratios = [speeds[repeat] / baseline[repeat] for repeat in speeds if repeat in baseline]
    total = sum((run.stats for run in own), start=Stats())
    seconds = sum(run.decode_seconds for run in own)
    draft, verify = (total.seconds.get(phase, 0.0) / seconds for phase in ("draft", "verify"))
    return Summary(
        kind=kind,
        contestant=contestant,
        runs=len(own),
        tokens=total.tokens,
        acceptance_rate=total.acceptance_rate,
        acceptance_by_position=total.acceptance_by_position,
        block_efficiency=total.block_efficiency,
        tokens_per_second=median(speeds.values()),
        slowest=min(speeds.values()),
        fastest=max(speeds.values()),
        ratio=median(ratios) if ratios else None,
        first_token_seconds=median(run.first_token_seconds for run in own),
        draft_share=draft,
        verify_share=verify,
        other_share=1.0 - draft - verify,
    )


def _speed_by_repeat(runs: Sequence[Run]) -> dict[int, float]:
    speeds = {}
    for repeat in sorted({run.repeat for run in runs}):
        mine = [run for run in runs if run.repeat == repeat]
        tokens = sum(run.stats.tokens for run in mine)
        speeds[repeat] = tokens / sum(run.decode_seconds for run in mine)
    return speeds


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))
