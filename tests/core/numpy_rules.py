"""The sampling rules once more, in numpy, with switches that make them wrong.

The right ones show that the checks let a correct rule pass; each wrong one must be caught.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rules import Batch, Floats, Ints, Verifier, draw_rows


def token_rule(rng: np.random.Generator, *, residual_is_p: bool = False) -> Verifier:
    def verify(batch: Batch) -> tuple[Ints, Ints]:
        n, k = batch.tokens.shape
        rows = np.arange(n)
        p, q = batch.p.astype(np.float64), batch.q.astype(np.float64)
        accepted = np.full(n, k)
        for i in reversed(range(k)):
            x = batch.tokens[:, i]
            rejected = rng.random(n) * q[rows, i, x] >= p[rows, i, x]
            accepted[rejected] = i
        target = p[rows, accepted]
        residual = target.copy()
        cut = accepted < k
        if not residual_is_p:
            residual[cut] = np.maximum(target[cut] - q[rows[cut], accepted[cut]], 0)
        return accepted, draw_rows(rng, residual)

    return verify


def block_rule(
    rng: np.random.Generator, *, pass_is_ratio: bool = False, residual_mass_is_1: bool = False
) -> Verifier:
    def verify(batch: Batch) -> tuple[Ints, Ints]:
        n, k = batch.tokens.shape
        return block_decide(
            batch.p.astype(np.float64),
            batch.q.astype(np.float64),
            batch.tokens.astype(np.int64),
            rng.random((n, k)),
            rng.random(n),
            pass_is_ratio=pass_is_ratio,
            residual_mass_is_1=residual_mass_is_1,
        )

    return verify


def block_decide(
    p: Floats,
    q: Floats,
    tokens: Ints,
    accept_noise: Floats,
    next_noise: Floats,
    *,
    pass_is_ratio: bool = False,
    residual_mass_is_1: bool = False,
) -> tuple[Ints, Ints]:
    """Block verification of p [n, k + 1, V], q [n, k, V], tokens [n, k] with given uniforms."""
    n, k = tokens.shape
    rows = np.arange(n)
    mass = np.ones(n)
    accepted = np.zeros(n, np.int64)
    accepted_mass = np.ones(n)
    for i in range(1, k + 1):
        x = tokens[:, i - 1]
        mass = np.minimum(mass * p[rows, i - 1, x] / q[rows, i - 1, x], 1)
        passing = mass
        if i < k and not pass_is_ratio:
            excess = np.maximum(mass[:, None] * p[:, i] - q[:, i], 0).sum(1)
            rest = excess + 1 - mass
            passing = np.where(rest > 1e-12, excess / np.maximum(rest, 1e-12), 1)
        taken = accept_noise[:, i - 1] < passing
        accepted[taken] = i
        accepted_mass[taken] = mass[taken]
    residual = p[rows, accepted].copy()
    cut = accepted < k
    scale = np.ones(cut.sum()) if residual_mass_is_1 else accepted_mass[cut]
    residual[cut] = np.maximum(scale[:, None] * residual[cut] - q[rows[cut], accepted[cut]], 0)
    empty = residual.sum(1) <= 1e-12
    residual[empty] = p[rows[empty], accepted[empty]]
    cumulative = np.cumsum(residual, axis=1)
    following = (cumulative <= (next_noise * cumulative[:, -1])[:, None]).sum(1)
    return accepted, following


def shared_exponentials(seeds: NDArray[np.uint64], position: int, vocabulary: int) -> Floats:
    """Exp(1) variates [n, V] that depend on (seed, position, token) alone: splitmix64."""
    z = seeds[:, None] * np.uint64(0xD1342543DE82EF95)
    z = z + np.uint64(position * 0x9E3779B97F4A7C15 % 2**64)
    z = z + np.arange(vocabulary, dtype=np.uint64) * np.uint64(0xA24BAED4963EE407)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return np.asarray(-np.log1p(-(z >> np.uint64(11)).astype(np.float64) * 2.0**-53))


def race(rows: Floats, seeds: NDArray[np.uint64], position: int) -> Ints:
    with np.errstate(divide="ignore"):
        arrival = shared_exponentials(seeds, position, rows.shape[1]) / rows
    return np.asarray(np.argmin(arrival, axis=1), dtype=np.int64)


def race_draw(q: NDArray[np.float32], seeds: NDArray[np.uint64], position: int) -> Ints:
    return race(q.astype(np.float64), seeds, position)


def coupled_rule(rng: np.random.Generator, *, race_again_without_draft: bool = False) -> Verifier:
    """Its drafts must come from `race_draw`."""

    def verify(batch: Batch) -> tuple[Ints, Ints]:
        n, k = batch.tokens.shape
        p = batch.p.astype(np.float64)
        winners = np.stack(
            [race(p[:, i], batch.seeds, batch.position + i) for i in range(k + 1)], axis=1
        )
        agree = winners[:, :k] == batch.tokens
        accepted = np.where(agree.all(1), k, np.argmin(agree, axis=1))
        following = winners[np.arange(n), accepted]
        if race_again_without_draft:
            cut = np.flatnonzero(accepted < k)
            rest = p[cut, accepted[cut]].copy()
            rest[np.arange(len(cut)), batch.tokens[cut, accepted[cut]]] = 0
            only_draft = rest.sum(1) == 0
            rest[only_draft] = p[cut[only_draft], accepted[cut[only_draft]]]
            following[cut] = draw_rows(rng, rest)
        return accepted, following

    return verify
