"""What the cost model must reach in the worlds: for the tests, and for wrong versions of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import policy_worlds as worlds
from policy_worlds import LOSING, SAMPLED, WORLDS, Phase, World, line, play

SEEDS = range(2)

# Where the drafter knows which of its drafts are good, rounds that end by that beat any fixed
# shape. Tokens per second over the best fixed shape's, with chains alone.
BETTER = {"flat": 1.02, "flat, middling": 1.03, "steep": 1.02, "too sure": 1.03}

ALTERNATING = World(line(0.04), 0.15, [Phase(400, (0.85, 0.05)[i % 2 :][:1]) for i in range(8)])
DRIFTING = World(line(0.04), 0.15, [Phase(1000, (0.92, 0.4)[i % 2 :][:1]) for i in range(6)])
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


def rate(core: ModuleType, world: World, width: int = 1, stream: int | None = 256) -> float:
    plays = [
        play(world, new_policy(core, width), seed, width=width, stream=stream) for seed in SEEDS
    ]
    return sum(p.rate for p in plays) / len(plays)


def share_of_last_phase(core: ModuleType, world: World, *, plain: bool = False) -> float:
    """What is reached in a world's last phase after the others, over the best fixed length's there
    or plain decoding's."""
    *before, last = world.phases
    only = World(world.step, world.draft, [last])
    rates = []
    for seed in SEEDS:
        policy = new_policy(core)
        play(World(world.step, world.draft, before), policy, seed)
        rates.append(play(only, policy, seed + 100).rate)
    return sum(rates) / len(rates) / (only.plain() if plain else only.best())


@dataclass(frozen=True)
class Check:
    share: Callable[[ModuleType], float]
    """Of a rate that is known, what a core's cost model reaches."""
    least: float


def _chains(world: World) -> Callable[[ModuleType], float]:
    return lambda core: rate(core, world) / world.best()


def _trees(world: World) -> Callable[[ModuleType], float]:
    widths = range(1, worlds.CANDIDATES + 1)
    return lambda core: rate(core, world, worlds.CANDIDATES) / world.best(widths)


def _plain(world: World) -> Callable[[ModuleType], float]:
    return lambda core: rate(core, world) / world.plain()


def _first_stream(world: World) -> Callable[[ModuleType], float]:
    """128 tokens of a cost model that knows nothing, over plain decoding's rate."""
    short = replace(world, phases=[replace(phase, tokens=128) for phase in world.phases])

    def share(core: ModuleType) -> float:
        plays = [play(short, new_policy(core), seed, stream=None) for seed in range(12)]
        return sum(p.expected for p in plays) / sum(p.seconds for p in plays) / world.plain()

    return share


# The first rows of a step cost little, those of a step that is full already much.
FILLING = World(lambda rows: 1 + 0.02 * min(rows, 4) + 0.12 * max(rows - 4, 0), 0.16, [])


def _together(
    sequences: int, accepted: float, tokens: int = 3000, *, prefill: int = 0
) -> Callable[[ModuleType], float]:
    """Several sequences in the steps of one batch, over plain decoding of as many."""
    world = replace(FILLING, phases=[Phase(tokens, [accepted], spread=0.3)])

    def share(core: ModuleType) -> float:
        rates = []
        for seed in SEEDS:
            policies = [new_policy(core) for _ in range(sequences)]
            costs = (
                core.StepCosts(sequences * worlds.MAX_ROWS),
                core.StepCosts(sequences),
                core.Company(),
            )
            rates.append(worlds.play_together(world, policies, costs, seed, prefill).rate)
        return sum(rates) / len(rates) * world.step(sequences) / sequences

    return share


def _together_again(core: ModuleType) -> float:
    """Two sequences whose drafts were bad and are good now, over plain decoding."""
    policies = [new_policy(core) for _ in range(2)]
    costs = core.StepCosts(2 * worlds.MAX_ROWS), core.StepCosts(2), core.Company()
    for tokens, accepted in ((2000, 0.02), (2000, 0.8)):
        world = replace(FILLING, phases=[Phase(tokens, [accepted], spread=0.3)])
        last = worlds.play_together(world, policies, costs, 0)
    return last.rate * FILLING.step(2) / 2


TREES = ("flat", "flat, middling", "steep", "declining", "tiles of eight rows")

CHECKS = {
    **{f"chains, {n}": Check(_chains(w), BETTER.get(n, 0.97)) for n, w in WORLDS.items()},
    **{f"trees, {n}": Check(_trees(WORLDS[n]), BETTER.get(n, 0.97)) for n in TREES},
    **{f"sampled, {n}": Check(_trees(w), 0.97) for n, w in SAMPLED.items()},
    **{f"losing, {n}": Check(_plain(w), 0.98) for n, w in LOSING.items()},
    **{f"losing soon, {n}": Check(_plain(w.cut(1 / 8)), 0.97) for n, w in LOSING.items()},
    **{f"losing at first, {n}": Check(_first_stream(w), 0.97) for n, w in LOSING.items()},
    "losing soon, nearly worth it": Check(_plain(LOSING["nearly worth it"].cut(1 / 8)), 0.982),
    "together, 2, good drafts": Check(_together(2, 0.7), 1.36),
    "together, 4, good drafts": Check(_together(4, 0.85), 1.085),
    "together, 4, good drafts, behind a prefill": Check(_together(4, 0.85, prefill=60), 1.085),
    "together, 8, good drafts": Check(_together(8, 0.6), 0.985),
    "together, 8, bad drafts": Check(_together(8, 0.05), 0.985),
    "together, 8, bad drafts, soon": Check(_together(8, 0.05, 512), 0.98),
    "together, 2, good drafts behind bad ones": Check(_together_again, 1.3),
    "alternating": Check(_chains(ALTERNATING), 1.1),
    "drifting in one stream": Check(
        lambda core: rate(core, DRIFTING, 1, None) / DRIFTING.best(), 1.1
    ),
    "recovering": Check(lambda core: share_of_last_phase(core, RECOVERING), 0.9),
    "fading": Check(lambda core: share_of_last_phase(core, FADING, plain=True), 0.97),
    "unsteady": Check(_chains(UNSTEADY), 1.0),
}
