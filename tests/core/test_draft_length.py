"""The choice of the draft length, in simulation: costs and acceptance given, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from specdec import _core

MAX_K = 16
SEEDS = range(3)


@dataclass(frozen=True)
class World:
    step: Callable[[int], float]  # seconds of a target step that checks k drafts
    draft: float  # seconds per draft
    # of a round -> acceptance of draft i given those before it; the last goes on
    acceptance: Callable[[int], Sequence[float]]

    def rate(self, policy: Any, rounds: int, seed: int) -> float:
        """Tokens per second. A policy is a fixed k, or chooses and observes."""
        rng = np.random.default_rng(seed)
        tokens, seconds = 0, 0.0
        for turn in range(rounds):
            k = policy if isinstance(policy, int) else policy.choose()
            assert 0 <= k <= MAX_K
            chances = self.acceptance(turn)
            accepted = 0
            while accepted < k and rng.random() < chances[min(accepted, len(chances) - 1)]:
                accepted += 1
            # A few percent of noise, and sometimes the system is busy elsewhere.
            target = self.step(k) * rng.lognormal(0, 0.05) * (3 if rng.random() < 0.01 else 1)
            draft = k * self.draft * rng.lognormal(0, 0.05)
            if not isinstance(policy, int):
                policy.observe(k, accepted, draft, target)
            tokens += accepted + 1
            seconds += target + draft
        return tokens / seconds

    def auto(self, rounds: int) -> float:
        rates = [self.rate(_core.DraftLength(MAX_K), rounds, seed) for seed in SEEDS]
        return float(np.mean(rates))

    def fixed(self, k: int, rounds: int) -> float:
        return float(np.mean([self.rate(k, rounds, seed) for seed in SEEDS]))

    def best(self, rounds: int) -> float:
        return max(self.fixed(k, rounds) for k in (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16))


def steady(*chances: float) -> Callable[[int], Sequence[float]]:
    return lambda _turn: chances


@pytest.mark.parametrize(
    "world",
    [
        World(lambda k: 1 + 0.06 * k, 0.1, steady(0.8)),
        World(lambda k: 1 + 0.05 * k, 0.08, steady(0.92)),
        World(lambda k: 1 + 0.1 * k, 0.15, steady(0.6)),
        World(lambda k: 1.5 if k > 3 else 1 + 0.02 * k, 0.1, steady(0.8)),
        World(lambda k: 1 + 0.06 * k, 0.1, steady(0.9, 0.8, 0.6, 0.4, 0.2)),
        World(lambda k: 1 + 0.04 * k, 1e-6, steady(0.5)),  # drafts from a lookup cost nothing
    ],
    ids=["good", "very good", "middling", "a step in the cost", "declining", "free drafts"],
)
def test_comes_near_the_best_fixed_length(world: World) -> None:
    assert world.auto(1500) > 0.94 * world.best(1500)


LOSING = {
    "a dear drafter": World(lambda k: 1 + 0.3 * k, 0.3, steady(0.3)),
    "very dear": World(lambda k: 1 + 0.5 * k, 0.5, steady(0.3)),
    "nothing accepted": World(lambda k: 1 + 0.1 * k, 0.3, steady(0.02)),
    "nearly worth it": World(lambda k: 1 + 0.2 * k, 0.25, steady(0.45)),
}


@pytest.mark.parametrize("name", LOSING)
def test_loses_little_where_plain_decoding_is_best(name: str) -> None:
    assert LOSING[name].auto(2000) > 0.97 * LOSING[name].fixed(0, 2000)


def test_follows_a_drifting_acceptance() -> None:
    world = World(lambda k: 1 + 0.06 * k, 0.1, lambda turn: [0.9 if turn // 500 % 2 == 0 else 0.5])
    assert world.auto(2000) > world.best(2000)  # better than any fixed length


def test_drafts_again_once_it_is_worth_it() -> None:
    world = World(lambda k: 1 + 0.2 * k, 0.2, lambda turn: [0.85 if turn >= 1000 else 0.1])
    assert world.auto(2000) > 1.08 * world.fixed(0, 2000)


def test_a_length_of_zero_drafts_nothing() -> None:
    policy = _core.DraftLength(0)
    for _ in range(100):
        assert policy.choose() == 0
        policy.observe(0, 0, 0.0, 1.0)
