"""Worlds for the cost model: what steps cost and what is accepted is given, no clock.

In a world every position of the text has a chance that the drafter's best candidate is the
target's choice, and chances of the next best; the drafter says what it believes of them, which may
be right, distorted or nothing. What a fixed shape reaches there is computed, what the cost model
reaches is played: it sees seconds with noise and interruptions, and is judged by those without.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

MAX_DEPTH = 16
MAX_ROWS = 33
CANDIDATES = 4
_SHARES = (0.4, 0.2, 0.1)  # of the siblings in what they have together
UNKNOWN = -2  # what the target chose, but for none of those that were checked
_SPREAD = 0.8  # of positions around their mean, at most


def _siblings(best: float) -> float:
    """What the next best have together: part of what is left, and little where all are bad."""
    return (1 - best) * min(2 * best, 1)


Believes = Callable[[float], float | None]


def calibrated(chance: float) -> float | None:
    return chance


def too_sure(chance: float) -> float | None:
    return 0.5 + 0.5 * chance


def unsure(chance: float) -> float | None:
    return 0.3 * chance


def silent(_chance: float) -> float | None:
    return None


def constant(_chance: float) -> float | None:
    return 0.8


@dataclass(frozen=True)
class Phase:
    """A stretch of text of one kind."""

    tokens: int
    accepted: Sequence[float]
    """Mean chance of the best candidate by depth; the last goes on."""
    believes: Believes = calibrated
    spread: float = _SPREAD
    """0: every position is as hard as any other."""

    def mean(self, depth: int) -> float:
        return self.accepted[min(depth, len(self.accepted) - 1)]

    def mean_siblings(self, depth: int) -> float:
        mean = self.mean(depth)
        off = self.spread * min(mean, 1 - mean)
        return (_siblings(mean + off) + _siblings(mean - off)) / 2

    def chances(self, depth: int, rng: random.Random) -> tuple[float, ...]:
        """Of the candidates of one position, the best first."""
        mean = self.mean(depth)
        best = mean + self.spread * min(mean, 1 - mean) * math.copysign(1, rng.random() - 0.5)
        return (best, *(_siblings(best) * share for share in _SHARES))


@dataclass(frozen=True)
class World:
    step: Callable[[int], float]
    """Seconds of a target step by its rows."""
    draft: float
    """Seconds of a drafter step."""
    phases: Sequence[Phase]
    noise: float = 0.05
    """Spread of the log of measured seconds."""
    interruptions: float = 0.01
    """Share of steps that are measured three times as long."""
    slows: Callable[[int], float] = lambda _round: 1.0
    """What everything takes longer in a round, beside the noise."""
    block: float | None = None
    """None: drafts are checked one by one. Else chains without siblings are verified as blocks,
    in which a draft brings so much more for each that is before it."""
    siblings: float = 1.0
    """Of their chances, those that come true."""

    def bonus(self, depth: int, width: int) -> float:
        """What a draft of a round brings over its chance to be reached and accepted."""
        return 1 + (self.block or 0) * depth if width == 1 else 1.0

    def fixed(self, length: int, width: int = 1) -> float:
        """Tokens per second of one shape: Leviathan et al. 2211.17192, eq. 1, with leaves."""
        seconds = tokens = 0.0
        for phase in self.phases:
            gained, reached = 1.0, 1.0
            for depth in range(length):
                mean = phase.mean(depth)
                siblings = phase.mean_siblings(depth) * sum(_SHARES[: width - 1]) * self.siblings
                gained += reached * (mean * self.bonus(depth, width) + siblings)
                reached *= mean
            cost = self.step(1 + length * width) + length * self.draft
            tokens += phase.tokens
            seconds += phase.tokens * cost / gained
        return tokens / seconds

    def plain(self) -> float:
        return self.fixed(0)

    def best(self, widths: Sequence[int] = (1,)) -> float:
        lengths = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
        shapes = [(k, w) for k in lengths for w in widths if k * w < MAX_ROWS]
        return max(self.plain(), *(self.fixed(*shape) for shape in shapes))

    def cut(self, share: float) -> World:
        """This world with so much of its text."""
        phases = [replace(p, tokens=int(p.tokens * share)) for p in self.phases]
        return replace(self, phases=phases)


@dataclass
class Play:
    """One policy's stay in a world."""

    tokens: int = 0
    expected: float = 0.0
    """The mean of ``tokens`` over what the target could have chosen, for the same shapes."""
    seconds: float = 0.0
    rounds: int = 0
    drafter_steps: int = 0

    @property
    def rate(self) -> float:
        return self.expected / self.seconds


def play(world: World, policy: Any, seed: int, *, width: int = 1, stream: int | None = 256) -> Play:
    """Runs a policy through a world in streams of so many tokens; None: in one."""
    rng = random.Random(seed)
    result = Play()
    for phase in world.phases:
        end = result.tokens + phase.tokens
        begun = -1
        if stream is None and result.tokens == 0:
            policy.start_stream()
        while result.tokens < end:
            if stream and (result.tokens - (end - phase.tokens)) // stream != begun:
                begun = (result.tokens - (end - phase.tokens)) // stream
                policy.start_stream()
            _round(world, phase, policy, width, rng, result)
    return result


def _round(
    world: World, phase: Phase, policy: Any, width: int, rng: random.Random, result: Play
) -> None:
    depth, widest, asked = policy.begin(MAX_DEPTH, MAX_ROWS - 1, width, world.block is not None)
    assert 0 <= depth <= MAX_DEPTH
    assert 1 <= widest <= max(width, 1)
    assert asked >= widest
    as_block = world.block is not None and widest == 1
    odds: list[tuple[float, float]] = []  # of a block: sums by token and by block
    steps, nodes, accepted, chosen, sibling = 0, 0, 0, -1, 0
    drafted = 0
    reached, expected = 1.0, 1.0
    alive = True  # the chain so far is what the target chooses
    go_on = depth > 0
    while go_on:
        best, *others = phase.chances(steps, rng)[:asked]
        beliefs = [phase.believes(chance) for chance in (best, *others)]
        known = [belief for belief in beliefs if belief is not None]
        checked, go_on = policy.branch(steps, known, widest)
        assert 0 <= checked <= widest
        assert checked > 0 or not go_on
        chances = [best, *(chance * world.siblings for chance in others)]
        bonus = world.bonus(steps, widest)
        expected += reached * (sum(chances[:checked]) + best * (bonus - 1) * (checked > 0))
        reached *= best
        if as_block and checked > 0:
            by_token, by_block = odds[-1] if odds else (0.0, 0.0)
            odds.append((by_token + reached, by_block + reached * bonus))
        if alive:
            draw = rng.random()
            sums = [sum(chances[: i + 1]) for i in range(len(chances))]
            chosen = next((i for i, bar in enumerate(sums) if draw < bar), -1)
            if chosen == 0 and checked > 0:
                accepted, chosen = accepted + 1, -1
            else:
                alive = False
                sibling = int(0 < chosen < checked)
        steps += 1
        drafted += checked > 0
        nodes += checked
    assert steps <= depth
    assert nodes < MAX_ROWS
    target, draft = world.step(1 + nodes), steps * world.draft
    result.tokens += 1 + accepted + sibling
    result.expected += expected
    result.seconds += target + draft
    result.rounds += 1
    result.drafter_steps += steps

    def measured(seconds: float) -> float:
        interrupted = 3.0 if rng.random() < world.interruptions else 1.0
        slow = world.slows(result.rounds)
        return seconds * slow * interrupted * rng.lognormvariate(0, world.noise)

    policy.observe(
        drafted=drafted,
        rows=1 + nodes,
        accepted=accepted,
        chosen=chosen if world.block is None or sibling else UNKNOWN,
        all_compared=world.block is None,
        draft_seconds=measured(draft) if steps else 0.0,
        target_seconds=measured(target),
        by_token=[by_token for by_token, _ in odds],
        by_block=[by_block for _, by_block in odds],
    )


def play_together(
    world: World, policies: Sequence[Any], costs: Any, seed: int, prefill: int = 0
) -> Play:
    """Policies that share the steps of a world's first phase, chains alone; its tokens are those of
    all of them. ``costs`` are of the target's step by the rows of all, of the drafter's by the
    sequences in it, and who shares that; of its seconds ``world.draft`` is the first's, and each
    other one's a tenth of that. A prompt's step of ``prefill`` rows may come first."""
    rng = random.Random(seed)
    (phase,) = world.phases
    count = len(policies)
    for policy in policies:
        policy.start_stream()
        policy.set_shared(*costs, count)
    if prefill:
        costs[0].add_target(prefill, world.step(prefill))
    result = Play()
    while result.tokens < phase.tokens:
        outcomes = []
        at_depth = [0] * (MAX_DEPTH + 1)
        rows = 0
        costs[2].begin(count, lambda i: policies[i].gain(MAX_DEPTH, MAX_ROWS - 1, 1))
        for policy in policies:
            depth, _, _ = policy.begin(MAX_DEPTH, MAX_ROWS - 1, 1)
            steps, drafted, accepted, expected, reached = 0, 0, 0, 1.0, 1.0
            alive, go_on = True, depth > 0
            while go_on:
                (chance, *_) = phase.chances(steps, rng)
                checked, go_on = policy.branch(steps, [chance])
                at_depth[steps] += 1
                steps, drafted, reached = steps + 1, drafted + checked, reached * chance
                expected += reached * checked
                alive = alive and rng.random() < chance
                accepted += alive and checked
            rows += 1 + drafted
            result.tokens += 1 + accepted
            result.expected += expected
            outcomes.append((drafted, accepted))
        seconds = world.step(rows)
        costs[0].add_target(rows, seconds * rng.lognormvariate(0, world.noise))
        for depth in range(at_depth.index(0) + 1):
            costs[2].add(depth, at_depth[depth])
        for together in filter(None, at_depth):
            draft = world.draft * (1 + 0.1 * (together - 1))
            costs[1].add_target(together, draft * rng.lognormvariate(0, world.noise))
            seconds += draft
        result.seconds += seconds
        result.rounds += 1
        for policy, (drafted, accepted) in zip(policies, outcomes, strict=True):
            policy.observe(
                drafted=drafted,
                rows=1 + drafted,
                accepted=accepted,
                chosen=-1 if accepted < drafted else UNKNOWN,
                all_compared=True,
                draft_seconds=0.0,
                target_seconds=seconds,
            )
    return result


def line(slope: float) -> Callable[[int], float]:
    """A step of one row takes a second, each further row so much more."""
    return lambda rows: 1 + slope * (rows - 1)


def steady(*accepted: float, tokens: int = 4000, **options: Any) -> list[Phase]:
    return [Phase(tokens, accepted, **options)]


WORLDS = {
    "flat": World(line(0.02), 0.1, steady(0.7)),
    "flat, sure": World(line(0.02), 0.1, steady(0.92)),
    "flat, middling": World(line(0.03), 0.2, steady(0.5)),
    "steep": World(line(0.1), 0.15, steady(0.6)),
    "even positions": World(line(0.06), 0.1, steady(0.8, spread=0.0)),
    "even positions, sure": World(line(0.05), 0.08, steady(0.92, spread=0.0)),
    "too sure": World(line(0.03), 0.15, steady(0.6, believes=too_sure)),
    "too modest": World(line(0.03), 0.15, steady(0.75, believes=unsure)),
    "silent drafter": World(line(0.04), 0.1, steady(0.75, believes=silent)),
    "declining": World(line(0.06), 0.1, steady(0.9, 0.8, 0.6, 0.4, 0.2, spread=0.0)),
    "a step in the cost": World(
        lambda rows: 1.5 if rows > 4 else 1 + 0.02 * rows, 0.1, steady(0.8, spread=0.0)
    ),
    "tiles of eight rows": World(lambda rows: 1 + 0.3 * ((rows - 1) // 8), 0.04, steady(0.85)),
    "free drafts": World(line(0.04), 1e-6, steady(0.5, believes=silent)),
    "perfect drafter": World(line(0.03), 0.1, steady(1.0, spread=0.0)),
    "loud machine": World(line(0.03), 0.15, steady(0.7), noise=0.2, interruptions=0.05),
    "a machine that slows down": World(
        line(0.03), 0.15, steady(0.7), slows=lambda turn: 1.6 if turn // 150 % 2 else 1.0
    ),
    "hardly worth it": World(line(0.05), 0.3, steady(0.42)),
}

# Rules that sample: siblings mean that drafts are checked one by one.
SAMPLED = {
    "blocks": World(line(0.08), 0.12, steady(0.75), block=0.06, siblings=0.2),
    "blocks, silent drafter": World(
        line(0.08), 0.12, steady(0.75, believes=silent), block=0.06, siblings=0.2
    ),
    "blocks or siblings": World(line(0.05), 0.2, steady(0.5), block=0.05, siblings=0.5),
    "siblings": World(line(0.03), 0.25, steady(0.45), block=0.03),
}

LOSING = {
    "nothing accepted": World(line(0.05), 0.25, steady(0.02)),
    "nothing accepted, sure of it": World(line(0.05), 0.25, steady(0.01, believes=constant)),
    "nothing accepted, dear": World(line(0.1), 0.6, steady(0.02, believes=constant)),
    "a dear drafter": World(line(0.2), 0.5, steady(0.35)),
    "nearly worth it": World(line(0.15), 0.3, steady(0.4, believes=silent)),
    "silent and wrong": World(line(0.05), 0.25, steady(0.02, believes=silent)),
}
