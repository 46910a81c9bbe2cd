"""The cost model behind "auto", in simulation: costs and acceptance given, no clock."""

from __future__ import annotations

import random
from typing import Any

import policy_checks
import pytest
from policy_worlds import MAX_DEPTH, MAX_ROWS, WORLDS, World, line, play, steady

from specdec import _core


@pytest.mark.parametrize("name", policy_checks.CHECKS)
def test_comes_near_what_can_be_reached(name: str) -> None:
    check = policy_checks.CHECKS[name]
    assert check.share(_core) >= check.least


def new_policy(width: int = 1) -> Any:
    policy = _core.AutoPolicy(MAX_DEPTH, MAX_ROWS)
    policy.set_width(width)
    return policy


def test_a_later_stream_begins_with_what_was_learnt() -> None:
    world = World(line(0.03), 0.15, steady(0.75, tokens=64))
    policy = new_policy()
    play(World(line(0.03), 0.15, steady(0.75, tokens=1000)), policy, 1)
    later = [play(world, policy, seed).rate for seed in range(8)]
    first = [play(world, new_policy(), seed).rate for seed in range(8)]
    assert sum(later) / 8 > 0.98 * world.best()
    assert sum(later) > sum(first)


def test_what_a_stream_pays_for_its_set_up_is_no_cost_of_a_step() -> None:
    def rate(set_up: float) -> float:
        world = World(line(0.03), 0.15, steady(0.75, tokens=64))
        policy = new_policy()
        total = 0.0
        for seed in range(12):
            slows = {}
            # play() counts rounds from 1, and every stream is its own play.
            slows[1] = set_up
            with_set_up = World(
                world.step, world.draft, world.phases, slows=lambda turn, s=slows: s.get(turn, 1.0)
            )
            total += play(with_set_up, policy, seed).rate
        return total

    assert rate(50.0) == rate(1.0)


def test_a_set_width_leaves_the_length_to_the_model() -> None:
    world = WORLDS["flat"]
    result = play(world, new_policy(width=2), 1, width=4)
    assert result.rate > max(world.fixed(k, 2) for k in range(1, 9))


@pytest.mark.parametrize(
    ("block", "siblings", "wide"), [(0.0, 1.0, True), (0.3, 1.0, False), (0.0, 0.4, False)]
)
def test_siblings_or_a_block_by_what_they_bring(block: float, siblings: float, wide: bool) -> None:
    world = World(line(0.02), 0.1, steady(0.7, tokens=1500), block=block, siblings=siblings)
    for seed in range(3):
        policy = new_policy(width=_core.AUTO)
        play(world, policy, seed, width=4)
        _, width, _ = policy.begin(MAX_DEPTH, MAX_ROWS - 1, 4, True)
        assert (width > 1) == wide


def test_rules_without_blocks_may_always_have_siblings() -> None:
    world = World(line(0.02), 0.1, steady(0.7, tokens=500), block=0.3)
    policy = new_policy(width=_core.AUTO)
    play(world, policy, 1, width=4)
    assert policy.begin(MAX_DEPTH, MAX_ROWS - 1, 4, True)[1] == 1
    assert policy.begin(MAX_DEPTH, MAX_ROWS - 1, 4, False)[1] == 4


@pytest.mark.parametrize(("depth", "nodes"), [(0, 0), (1, 1), (2, 5), (5, 5), (16, 16)])
def test_limits_of_a_round_are_kept(depth: int, nodes: int) -> None:
    rng = random.Random(depth)
    for width in (_core.AUTO, 1, 2, 3):
        policy = new_policy(width)
        for _ in range(200):
            plan, widest, _ = policy.begin(depth, nodes, 4)
            assert plan <= depth
            checked, steps, drafted, go_on = 0, 0, 0, plan > 0
            while go_on:
                candidates = sorted((rng.random() for _ in range(widest)), reverse=True)
                taken, go_on = policy.branch(steps, candidates, widest)
                assert 0 <= taken <= widest
                checked, drafted, steps = checked + taken, drafted + (taken > 0), steps + 1
            assert steps <= plan
            assert checked <= nodes
            policy.observe(
                drafted=drafted,
                rows=1 + checked,
                accepted=rng.randint(0, drafted),
                chosen=-1,
                all_compared=True,
                draft_seconds=0.01 * steps,
                target_seconds=1.0,
            )


def test_the_same_rounds_give_the_same_decisions() -> None:
    world = WORLDS["loud machine"].cut(1 / 4)
    first, second = (play(world, new_policy(width=_core.AUTO), 5, width=4) for _ in range(2))
    assert (first.rounds, first.seconds) == (second.rounds, second.seconds)


def test_what_it_expects_is_what_it_reaches() -> None:
    world = World(line(0.04), 0.1, steady(0.7))
    policies = [new_policy() for _ in range(5)]
    rates = [play(world, policy, seed).rate for seed, policy in enumerate(policies)]
    assert sum(p.plain_rate for p in policies) / 5 == pytest.approx(1, rel=0.06)
    assert sum(p.expected_rate for p in policies) == pytest.approx(sum(rates), rel=0.06)


class TestStepCosts:
    """Seconds of steps, from measurements with noise."""

    @staticmethod
    def measured(rng: random.Random, seconds: float) -> float:
        return seconds * rng.lognormvariate(0, 0.1) * (4 if rng.random() < 0.03 else 1)

    def test_costs_of_widths_that_ran_and_of_those_that_did_not(self) -> None:
        rng = random.Random(1)
        costs = _core.StepCosts(16)
        for _ in range(150):
            for rows in (1, 3, 4, 8):
                costs.add_target(rows, self.measured(rng, 0.01 * (1 + 0.05 * (rows - 1))))
            costs.add_draft(self.measured(rng, 0.002))
        for rows in (1, 2, 3, 4, 6, 8, 12, 16):
            ratio = costs.target(rows) / costs.target(1)
            assert ratio == pytest.approx(1 + 0.05 * (rows - 1), rel=0.06), rows
        assert costs.draft / costs.target(1) == pytest.approx(0.2, rel=0.08)
        assert costs.target(1) == pytest.approx(0.01, rel=0.15)

    def test_more_rows_never_cost_less(self) -> None:
        rng = random.Random(2)
        costs = _core.StepCosts(12)
        for _ in range(300):
            costs.add_target(rng.randint(1, 12), self.measured(rng, 1.0))
            seconds = [costs.target(rows) for rows in range(1, 13)]
            assert seconds == sorted(seconds)

    def test_one_interruption_changes_little(self) -> None:
        costs = _core.StepCosts(8)
        for _ in range(30):
            costs.add_target(1, 1.0)
            costs.add_target(4, 1.2)
        costs.add_target(4, 30.0)
        assert costs.target(4) / costs.target(1) == pytest.approx(1.2, rel=0.03)
        assert costs.target(1) == pytest.approx(1.0, rel=0.05)

    def test_a_lasting_change_is_learnt(self) -> None:
        costs = _core.StepCosts(8)
        for turn in range(200):
            costs.add_target(1, 1.0)
            costs.add_target(4, 1.2 if turn < 100 else 1.8)
        assert costs.target(4) / costs.target(1) == pytest.approx(1.8, rel=0.1)

    def test_a_slow_machine_is_slow_for_every_width(self) -> None:
        costs = _core.StepCosts(8)
        for _ in range(50):
            costs.add_target(1, 1.0)
            costs.add_target(4, 1.2)
        for _ in range(100):
            costs.add_target(4, 2.4)
        assert costs.target(4) == pytest.approx(2.4, rel=0.05)
        assert costs.target(1) == pytest.approx(2.0, rel=0.15)

    def test_a_lookup_that_takes_no_time(self) -> None:
        costs = _core.StepCosts(4)
        for _ in range(20):
            costs.add_target(2, 0.01)
            costs.add_draft(0.0)
        assert 0 <= costs.draft < 1e-4


def test_costs_move_with_the_context() -> None:
    costs = _core.StepCosts(MAX_ROWS)
    for rows in (1, 4) * 10:
        costs.add_target(rows, 1.0 if rows == 1 else 1.1)
    learnt = costs.target(4)
    assert not costs.move_behind(1000)
    assert costs.target(4) == learnt
    assert costs.move_behind(1100)
    assert costs.target(4) == _core.StepCosts(MAX_ROWS).target(4)
    costs.add_target(1, 2.0)
    assert not costs.move_behind(3000)
    assert not costs.move_behind(100)
    assert costs.target(1) == pytest.approx(2.0)
    assert costs.move_behind(30)


def test_costs_are_learnt_anew_behind_a_context_of_another_size() -> None:
    policy = new_policy()

    def learn(length: int, one: float, four: float) -> float:
        policy.start_stream()
        policy.move_behind(length)
        for turn in range(40):
            rows = (1, 4)[turn % 2]
            policy.begin(rows - 1, rows - 1, 1)
            policy.observe(
                drafted=rows - 1, rows=rows, accepted=0, chosen=-1, all_compared=True,
                draft_seconds=0.1, target_seconds=(one, four)[turn % 2],
            )  # fmt: skip
        return policy.seconds(4) / policy.seconds(1)

    near = learn(60, 1.0, 1.1)
    assert near < 1.25
    policy.move_behind(1000)
    assert policy.seconds(4) / policy.seconds(1) == near
    policy.move_behind(4000)
    unknown = new_policy()
    assert policy.seconds(4) / policy.seconds(1) == unknown.seconds(4) / unknown.seconds(1)
    assert learn(4100, 3.0, 6.0) > 1.6
    policy.move_behind(60)
    assert policy.seconds(4) / policy.seconds(1) == unknown.seconds(4) / unknown.seconds(1)


def lookups(accepted: float, model: float, rounds: int = 600) -> tuple[float, float]:
    """Rounds of the last third that drafted what was looked up, as a share, and tokens per plain
    step's time, where each of its drafts is accepted so often and each of the model's so often."""
    rng = random.Random(5)
    policy = new_policy()
    policy.start_stream()
    tokens = seconds = 0.0
    used = 0
    for turn in range(rounds):
        depth, width, lookup = policy.begin(MAX_DEPTH, MAX_ROWS - 1, 1, False, 0.8)
        assert width == 1
        chance = accepted if lookup else model
        used += bool(lookup and depth > 0 and turn >= rounds * 2 // 3)
        drafted, steps, go_on = 0, 0, depth > 0
        while go_on:
            checked, go_on = policy.branch(steps, [0.8 if lookup else model])
            steps, drafted = steps + 1, drafted + checked
        taken = 0
        while taken < drafted and rng.random() < chance:
            taken += 1
        target, draft = 1 + 0.08 * drafted, 0.0 if lookup else 0.25 * steps
        tokens, seconds = tokens + 1 + taken, seconds + target + draft
        policy.observe(
            drafted=drafted,
            rows=1 + drafted,
            accepted=taken,
            chosen=-1 if taken < drafted else -2,
            all_compared=True,
            draft_seconds=draft * rng.lognormvariate(0, 0.05),
            target_seconds=target * rng.lognormvariate(0, 0.05),
        )
    return used / (rounds // 3), tokens / seconds


def test_what_was_looked_up_is_drafted_where_it_pays() -> None:
    share, rate = lookups(accepted=0.9, model=0.5)
    assert share > 0.9
    assert rate > 3


def test_what_was_looked_up_is_left_alone_where_it_does_not() -> None:
    share, rate = lookups(accepted=0.02, model=0.85)
    assert share < 0.05
    assert rate > 0.97 * lookups(accepted=0.0, model=0.85)[1]
    share, rate = lookups(accepted=0.02, model=0.02)
    assert share < 0.15
    assert rate > 0.97
