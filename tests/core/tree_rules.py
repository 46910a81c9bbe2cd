"""Rounds of a chain with siblings against a known Markov chain, as `rules` has them for chains."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from rules import Case, Floats, Ints, batches, complete, draw_rows, joint
from statistic import chi_square_p


def draw_without_replacement(rng: np.random.Generator, rows: Floats, count: int) -> Ints:
    """Draws [n, count] from rows [n, V] one after the other; each row has that many to give."""
    assert ((rows > 0).sum(1) >= count).all()
    rest = rows.copy()
    drawn = np.empty((len(rows), count), np.int64)
    for i in range(count):
        drawn[:, i] = draw_rows(rng, rest)
        rest[np.arange(len(rows)), drawn[:, i]] = 0
    return drawn


def tree_round(
    core: ModuleType, rule: str, case: Case, width: int, rng: np.random.Generator, n: int, seed: int
) -> tuple[Ints, Ints, Ints]:
    """Texts [n, 2] of rounds with `width` candidates for each of k positions, -1 where a round gave
    one token only; how many drafts of each were accepted, and which of them ended in a sibling."""
    k, v = case.k, case.vocabulary
    seeds = (np.arange(n) + seed).astype(np.uint64)
    last = np.full(n, case.context)
    p = np.empty((n, k + 1 + k * (width - 1), v), np.float32)
    q = np.empty((n, k, v), np.float32)
    tokens = np.empty((n, k), np.int64)
    siblings = np.empty((n, k, width - 1), np.int64)
    for i in range(k):
        p[:, i], q[:, i] = case.p[last], case.q[last]
        drawn = draw_without_replacement(rng, case.q[last], width)
        tokens[:, i], siblings[:, i] = drawn[:, 0], drawn[:, 1:]
        last = drawn[:, 0]
    p[:, k] = case.p[last]
    flat = siblings.reshape(n, -1)
    p[:, k + 1 :] = case.p[flat]
    accepted, following, taken = core.verify_batch(
        rule, p, q, tokens.astype(np.int32), seeds, 17, flat.astype(np.int32),
        [i for i in range(k) for _ in range(width - 1)],
    )  # fmt: skip
    text = np.full((n, k + 1), -1, np.int64)
    text[:, :k] = np.where(np.arange(k) < accepted[:, None], tokens, -1)
    ended = np.flatnonzero(taken >= 0)
    assert (taken[ended] // (width - 1) == accepted[ended] - 1).all()
    text[ended, accepted[ended] - 1] = flat[ended, taken[ended]]
    text[np.arange(n), accepted] = following
    if k == 1:
        text = np.pad(text, ((0, 0), (0, 1)), constant_values=-1)
    return text[:, :2], accepted.astype(np.int64), taken >= 0


def check_tree(
    core: ModuleType, rule: str, case: Case, width: int, rounds: int, seed: int
) -> tuple[dict[str, float], int, NDArray[np.float64]]:
    """p-values of the first token and of the first two, the tokens that the rounds gave, and the
    means of accepted drafts and of rounds that ended in a sibling."""
    v = case.vocabulary
    rng = np.random.default_rng([seed, 5])
    counts = np.zeros(v * v, np.int64)
    tokens = 0
    sums = np.zeros(2)
    for begin, n in batches(rounds):
        text, accepted, ended = tree_round(core, rule, case, width, rng, n, seed * 10**7 + begin)
        tokens += int(accepted.sum()) + n
        sums += accepted.sum(), ended.sum()
        whole = complete(rng, case, text)
        counts += np.bincount(whole[:, 0] * v + whole[:, 1], minlength=v * v)
    exact = joint(case) * rounds
    p_values = {
        "first": chi_square_p(counts.reshape(v, v).sum(1), exact.sum(1)),
        "two": chi_square_p(counts, exact),
    }
    return p_values, tokens, sums / rounds
