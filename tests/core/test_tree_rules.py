"""Rounds with siblings give the target's own distribution."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from rules import Case, as_single, cases
from statistic import SHARE, SMALLEST_P, chi_square_p, draws
from tree_rules import check_tree, draw_without_replacement, tree_round

from specdec import _core
from specdec.errors import InvalidInputError

CASES = {case.name: case for case in cases()}
TREES = [
    ("near, k=1", 2), ("near, k=1", 4), ("near, k=2", 3), ("near, k=4", 2), ("near, k=4", 6),
    ("far, k=3", 2), ("far, k=3", 7), ("far, k=8", 3), ("zero mass in p", 3), ("p is q", 2),
    ("trimmed q", 4),
]  # fmt: skip
SEED = 3


@cache
def outcome(name: str, width: int) -> Any:
    return check_tree(
        _core, "token", CASES[name], width, draws(60_000), SEED + TREES.index((name, width))
    )


@pytest.mark.parametrize(("name", "width"), TREES)
def test_text_follows_the_target(name: str, width: int) -> None:
    p_values, _, _ = outcome(name, width)
    assert min(p_values.values()) > SMALLEST_P, p_values


def test_at_least_a_million_tokens() -> None:
    assert sum(outcome(*tree)[1] for tree in TREES) >= 1_000_000 * min(SHARE, 1)


def test_siblings_are_accepted() -> None:
    for name, width in TREES:
        _, _, (_, ended) = outcome(name, width)
        assert ended > 0.02 or name == "p is q", (name, width)


def test_a_drafter_that_names_every_token_is_never_rejected() -> None:
    # The candidates are all tokens: one of them is the target's.
    case = CASES["far, k=3"]
    rng = np.random.default_rng(7)
    _, accepted, _ = tree_round(_core, "token", case, case.vocabulary, rng, draws(20_000), 0)
    assert accepted.min() == 1


def test_a_nearly_certain_first_candidate() -> None:
    # What is left of q is a millionth: its siblings' probabilities must not be rounding errors.
    q = np.array([[1.0, 6e-7, 3e-7, 1e-7]] * 4)
    p = as_single(np.array([[0.1, 0.3, 0.2, 0.4]] * 4))
    case = Case("sure", p, as_single(q), 1)
    p_values, _, (_, ended) = check_tree(_core, "token", case, 3, draws(200_000), 9)
    assert min(p_values.values()) > SMALLEST_P, p_values
    assert ended > 0.5


@pytest.mark.parametrize("rule", ["greedy", "coupled"])
def test_the_choice_is_found_among_the_candidates(rule: str) -> None:
    # Whatever the candidates are: the target's choice is what it would be without them.
    rng = np.random.default_rng(1)
    n, k, v, width = draws(20_000), 3, 6, 3
    p = rng.random((n, k + 1, v)).astype(np.float32)
    p /= p.sum(2, keepdims=True)
    leaves = rng.random((n, k * (width - 1), v)).astype(np.float32)
    leaves /= leaves.sum(2, keepdims=True)
    drafts = np.stack([draw_without_replacement(rng, np.ones((n, v)), width) for _ in range(k)], 1)
    seeds = np.arange(n, dtype=np.uint64)
    siblings = drafts[:, :, 1:].reshape(n, -1)
    accepted, following, taken = _core.verify_batch(
        rule, np.concatenate([p, leaves], 1), np.full((n, k, v), 1 / v, np.float32),
        drafts[:, :, 0].astype(np.int32), seeds, 5, siblings.astype(np.int32),
        [i for i in range(k) for _ in range(width - 1)],
    )  # fmt: skip

    def choose(rows: Any, position: int) -> Any:
        if rule == "greedy":
            return rows.argmax(1)
        return _core.race_batch(np.ascontiguousarray(rows), seeds, position)

    for i in range(k + 1):
        choice = choose(p[:, i], 5 + i)
        reached = accepted - (taken >= 0) >= i
        here = reached & (accepted == i) & (taken < 0)
        assert (following[here] == choice[here]).all()
        if i == k:
            break
        on = accepted - (taken >= 0) > i
        assert (drafts[on, i, 0] == choice[on]).all()
        leaf = (taken >= 0) & (accepted == i + 1)
        rows = np.flatnonzero(leaf)
        assert (siblings[rows, taken[rows]] == choice[rows]).all()
        after = choose(leaves[np.arange(n), np.maximum(taken, 0)], 5 + i + 1)
        assert (following[rows] == after[rows]).all()
        assert not (drafts[here, i] == choice[here, None]).any()


def test_tables_that_do_not_fit_are_refused() -> None:
    p = np.full((1, 4, 2), 0.5, np.float32)
    q, tokens, seeds = p[:, :2], np.zeros((1, 2), np.int32), np.zeros(1, np.uint64)
    one = np.ones((1, 1), np.int32)
    for siblings, of in ((one, [2]), (one, [-1]), (np.ones((1, 2), np.int32), [0])):
        with pytest.raises(InvalidInputError, match="siblings"):
            _core.verify_batch("token", p, q, tokens, seeds, 0, siblings, of)
    assert len(_core.verify_batch("token", p, q, tokens, seeds, 0, one, [1])) == 3


def test_the_checks_catch_draws_with_replacement() -> None:
    # Siblings that may repeat, checked as if they could not: the text follows another distribution.
    case = CASES["far, k=3"]
    rng = np.random.default_rng(2)
    n, v = 200_000, case.vocabulary
    row, q = case.p[case.context], case.q[case.context]
    drafts = rng.choice(v, (n, 2), p=q / q.sum())
    p = np.empty((n, 3, v), np.float32)
    p[:, 0], p[:, 1], p[:, 2] = row, case.p[drafts[:, 0]], case.p[drafts[:, 1]]
    accepted, following, taken = _core.verify_batch(
        "token", p, np.broadcast_to(q.astype(np.float32), (n, 1, v)),
        drafts[:, :1].astype(np.int32), np.arange(n, dtype=np.uint64), 0,
        drafts[:, 1:].astype(np.int32), [0],
    )  # fmt: skip
    first = np.where(accepted > 0, np.where(taken >= 0, drafts[:, 1], drafts[:, 0]), following)
    assert chi_square_p(np.bincount(first, minlength=v), row / row.sum() * n) < 1e-6
