"""Runs to figures: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.peers.contest import PREFILL, Run

ALL_KINDS = "all"


@dataclass(frozen=True)
class Summary:
    """One contestant's figures on one kind of prompt at one temperature."""

    contestant: str
    kind: str
    temperature: float
    texts: int
    tokens: int
    tokens_per_second: float
    """Median over the repeats of: all texts' tokens behind the first over their seconds."""
    slowest: float
    """Tokens per second of the slowest repeat, and of the fastest."""
    fastest: float
    first_token_seconds: float
    """Median over the texts."""
    over_best_peer: float | None
    """Speed over that of the fastest peer, medians; None where no peer ran."""
    accepted_per_round: float | None
    """Tokens per step of the target, for contestants that count both."""


def summarise(runs: Sequence[Run], own: Sequence[str]) -> list[Summary]:
    """Figures by temperature, kind and contestant, in the order of the first runs.

    ``own`` names the contestants that are no peers. With more than one kind there is also ``"all"``
    at the end of each temperature. Texts of a single token say nothing of speed and are left out of
    it.
    """
    texts = [run for run in runs if run.kind != PREFILL]
    result: list[Summary] = []
    for temperature in dict.fromkeys(run.temperature for run in texts):
        warm = [run for run in texts if run.temperature == temperature]
        kinds = list(dict.fromkeys(run.kind for run in warm))
        groups = [(kind, [run for run in warm if run.kind == kind]) for kind in kinds]
        if len(kinds) > 1:
            groups.append((ALL_KINDS, warm))
        for kind, group in groups:
            names = dict.fromkeys(run.contestant for run in group)
            mine = {name: [run for run in group if run.contestant == name] for name in names}
            speeds = {name: speed_by_repeat(runs) for name, runs in mine.items()}
            medians = {name: median(speed) for name, speed in speeds.items() if speed}
            best = max((s for name, s in medians.items() if name not in own), default=None)
            result += [
                Summary(
                    contestant=name,
                    kind=kind,
                    temperature=temperature,
                    texts=len(mine[name]),
                    tokens=sum(len(run.tokens) for run in mine[name]),
                    tokens_per_second=medians[name],
                    slowest=min(speeds[name]),
                    fastest=max(speeds[name]),
                    first_token_seconds=median(run.first_seconds for run in mine[name]),
                    over_best_peer=medians[name] / best if best else None,
                    accepted_per_round=_per_round(mine[name]),
                )
                for name in medians
            ]
    return result


def speed_by_repeat(runs: Sequence[Run]) -> list[float]:
    """Tokens per second of each repeat: of all tokens behind those that came first."""
    speeds = []
    for repeat in sorted({run.repeat for run in runs}):
        long = [run for run in runs if run.repeat == repeat and len(run.tokens) > run.first]
        if long:
            tokens = sum(len(run.tokens) - run.first for run in long)
            speeds.append(tokens / sum(run.seconds - run.first_seconds for run in long))
    return speeds


def prefill_speeds(runs: Sequence[Run], lengths: Mapping[int, int]) -> dict[str, list[float]]:
    """Prompt tokens per second of each contestant's prefill runs.

    ``lengths`` holds the tokens of each prompt by its index.
    """
    speeds: dict[str, list[float]] = {}
    for run in runs:
        if run.kind == PREFILL:
            speed = lengths[run.prompt] / run.first_seconds
            speeds.setdefault(run.contestant, []).append(speed)
    return speeds


def restless(runs: Sequence[Run], most: float = 0.02) -> list[Run]:
    """Runs during which the other contestants took more than this share of a core."""
    return [run for run in runs if run.others > most]


def _per_round(runs: Sequence[Run]) -> float | None:
    rounds = sum(run.figures.get("rounds", 0) for run in runs)
    return sum(len(run.tokens) for run in runs) / rounds if rounds else None
