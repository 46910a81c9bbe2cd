"""What the cost model must reach in the worlds: for the tests, and for wrong versions of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import policy_worlds as worlds
from policy_worlds import LOSING, WORLDS, Phase, World, line, play

SEEDS = range(2)

# Where the drafter knows which of its drafts are good, rounds that end by that beat any fixed
# shape. Tokens per second over the best fixed shape's, with chains alone.
BETTER = {"flat": 1.02, "flat, middling": 1.03, "steep": 1.02, "too sure": 1.03}

ALTERNATING = World(line(0.04), 0.15, [Phase(400, (0.85, 0.05)[i % 2 :][:1]) for i in range(8)])
RECOVERING = World(line(0.04), 0.2, [Phase(2000, [0.02]), Phase(1500, [0.85])])
FADING = World(line(0.04), 0.2, [Phase(1500, [0.85]), Phase(1500, [0.02])])
# Everything takes twice as long in every second stretch of rounds, and rounds of other shapes
# were measured in the first.
UNSTEADY = World(
    line(0.03), 0.15, [Phase(4000, [0.7])], slows=lambda turn: 2.0 if turn // 60 % 2 else 1.0
)


def new_policy(core: ModuleType, width: int = 1) -> Any:
    policy = core.AutoPolicy(worlds.MAX_DEPTH, worlds.MAX_ROWS)
    policy.set_width(core.AUTO if width > 1 else 1)
    return policy


def rate(core: ModuleType, world: World, width: int = 1) -> float:
    plays = [play(world, new_policy(core, width), seed, width=width) for seed in SEEDS]
    return sum(p.rate for p in plays) / len(plays)


def rate_of_last_phase(core: ModuleType, world: World) -> tuple[float, World]:
    """What is reached in a world's last phase after the others, and that phase as a world."""
    *before, last = world.phases
    only = World(world.step, world.draft, [last])
    rates = []
    for seed in SEEDS:
        policy = new_policy(core)
        play(World(world.step, world.draft, before), policy, seed)
        rates.append(play(only, policy, seed + 100).rate)
    return sum(rates) / len(rates), only


def shares(core: ModuleType) -> Iterator[tuple[str, float, float]]:
    """What is compared, the share that is reached, and the least that it must be."""
    for name, world in WORLDS.items():
        least = BETTER.get(name, 0.97)
        yield f"chains, {name}", rate(core, world) / world.best(), least
    for name in ("flat", "flat, middling", "steep", "declining", "tiles of eight rows"):
        world, widths = WORLDS[name], range(1, worlds.CANDIDATES + 1)
        share = rate(core, world, worlds.CANDIDATES) / world.best(widths)
        yield f"trees, {name}", share, max(BETTER.get(name, 0), 0.97)
    for name, world in LOSING.items():
        yield f"losing, {name}", rate(core, world) / world.plain(), 0.98
        short = world.cut(1 / 8)
        yield f"losing soon, {name}", rate(core, short) / short.plain(), 0.97
    yield "alternating", rate(core, ALTERNATING) / ALTERNATING.best(), 1.1
    share, only = rate_of_last_phase(core, RECOVERING)
    yield "recovering", share / only.best(), 0.9
    share, only = rate_of_last_phase(core, FADING)
    yield "fading", share / only.plain(), 0.97
    yield "unsteady", rate(core, UNSTEADY) / UNSTEADY.best(), 1.0


def failures(core: ModuleType) -> list[str]:
    return [f"{name}: {share:.3f}" for name, share, least in shares(core) if share < least]
