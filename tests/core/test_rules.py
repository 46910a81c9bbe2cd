"""Each acceptance rule gives the target's own distribution, and the tests would notice if not."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy_rules
import pytest
from rules import (
    Batch,
    Case,
    Floats,
    Ints,
    Outcome,
    cases,
    check,
    complete,
    core_draw,
    core_verifier,
    draw_rows,
    make_batch,
    random_rows,
    text_of,
)
from statistic import SHARE, SMALLEST_P, chi_square_p, draws

from specdec import _core

SAMPLING_RULES = ["token", "block", "coupled"]
CASES = {case.name: case for case in cases()}
SEED = 1


@cache
def outcome(rule: str, name: str) -> Outcome:
    return check(
        CASES[name],
        core_verifier(_core, rule),
        core_draw(_core, rule, SEED),
        draws(100_000),
        SEED + list(CASES).index(name),
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rule", SAMPLING_RULES)
def test_text_follows_the_target(rule: str, name: str) -> None:
    p_values = outcome(rule, name).p_values
    assert min(p_values.values()) > SMALLEST_P, p_values


@pytest.mark.parametrize("rule", SAMPLING_RULES)
def test_at_least_a_million_positions(rule: str) -> None:
    assert sum(outcome(rule, name).positions for name in CASES) >= 1_000_000 * min(SHARE, 1)


@pytest.mark.parametrize("k", range(1, 9))
def test_greedy_accepts_what_is_most_probable(k: int) -> None:
    rng = np.random.default_rng(k)
    n, v = draws(130_000) // k, 7
    # Few values, so that there are ties: the first of equals is the most probable.
    p = rng.integers(1, 6, (n, k + 1, v)).astype(np.float32)
    p /= p.sum(2, keepdims=True)
    best = p.argmax(2)
    tokens = np.where(rng.random((n, k)) < 0.7, best[:, :k], rng.integers(0, v, (n, k)))
    q = np.full((n, k, v), 1 / v, np.float32)
    seeds = np.arange(n, dtype=np.uint64)
    accepted, following = _core.verify_batch("greedy", p, q, tokens.astype(np.int32), seeds, 5)
    agree = np.cumprod(tokens == best[:, :k], axis=1).sum(1)
    assert (accepted == agree).all()
    assert (following == best[np.arange(n), agree]).all()


@pytest.mark.parametrize("name", ["near, k=4", "near, k=8", "far, k=3", "far, k=8", "trimmed q"])
def test_block_accepts_at_least_as_many_as_token(name: str) -> None:
    case = CASES[name]
    n = draws(200_000)
    seeds = np.arange(n, dtype=np.uint64)
    batch = make_batch(case, np.zeros(n, np.int64), seeds, 3, core_draw(_core, "block", 8))
    block, _ = core_verifier(_core, "block")(batch)
    token, _ = core_verifier(_core, "token")(batch)
    gain = (block - token).astype(np.float64)
    error = gain.std() / np.sqrt(n)
    assert gain.mean() > -3 * error
    if SHARE >= 1:
        assert gain.mean() > 3 * error  # all these cases have something to gain


def test_rules_agree_on_the_first_draft() -> None:
    # With k = 1 block verification is token verification, draw by draw.
    case = CASES["near, k=1"]
    n = draws(100_000)
    seeds = np.arange(n, dtype=np.uint64)
    batch = make_batch(case, np.zeros(n, np.int64), seeds, 3, core_draw(_core, "block", 9))
    for a, b in zip(
        core_verifier(_core, "block")(batch), core_verifier(_core, "token")(batch), strict=True
    ):
        assert (a != b).mean() < 1e-4  # u * q < p and u < p / q may round apart


@pytest.mark.parametrize("rule", ["token", "block"])
def test_equal_distributions_accept_everything(rule: str) -> None:
    assert outcome(rule, "p is q").accepted == CASES["p is q"].k


def test_coupled_text_is_the_same_for_every_drafter_and_k() -> None:
    rng = np.random.default_rng(4)
    p = random_rows(rng, 11, 1.5, 0.2)
    n, length, position = draws(10_000), 9, 40
    seeds = rng.integers(0, 2**63, n).astype(np.uint64)
    plain = np.empty((n, length), np.int64)  # what the target alone writes
    last = np.zeros(n, np.int64)
    for i in range(length):
        last = _core.race_batch(p[last].astype(np.float32), seeds, position + i).astype(np.int64)
        plain[:, i] = last
    drafters = {"near": p**0.7 / (p**0.7).sum(1, keepdims=True), "far": random_rows(rng, 11, 2.0)}
    accepted_mean = {}
    for k in range(1, 9):
        for name, q in drafters.items():
            case = Case(name, p, q, k)
            for kind in ("coupled", "token"):  # drafts from the race, or from anywhere
                draw = core_draw(_core, kind, k)
                batch = make_batch(case, np.zeros(n, np.int64), seeds, position, draw)
                accepted, following = core_verifier(_core, "coupled")(batch)
                text = text_of(batch, accepted, following, length)
                assert (text[text >= 0] == plain[text >= 0]).all()
                accepted_mean[name, kind, k] = accepted.mean()
    # The shared race is what makes drafts agree.
    assert accepted_mean["near", "coupled", 8] > 2 * accepted_mean["near", "token", 8]


def test_a_round_is_a_function_of_its_arguments() -> None:
    case = CASES["near, k=4"]
    seeds = np.arange(1000, dtype=np.uint64)
    batch = make_batch(case, np.zeros(1000, np.int64), seeds, 3, core_draw(_core, "block", 1))
    for rule in SAMPLING_RULES:
        verify = core_verifier(_core, rule)
        for a, b in zip(verify(batch), verify(batch), strict=True):
            assert (a == b).all()


# --- the checks themselves: what is right passes, what is wrong is caught ---


def numpy_outcome(rule: str, name: str, **wrong: bool) -> Outcome:
    rng = np.random.default_rng([SEED, 77])
    make = {
        "token": numpy_rules.token_rule,
        "block": numpy_rules.block_rule,
        "coupled": numpy_rules.coupled_rule,
    }[rule]
    draw = numpy_rules.race_draw if rule == "coupled" else core_draw(_core, rule, SEED)
    return check(CASES[name], make(rng, **wrong), draw, 100_000, SEED)


@pytest.mark.parametrize("rule", SAMPLING_RULES)
def test_independent_implementation_passes_and_agrees(rule: str) -> None:
    right = numpy_outcome(rule, "near, k=4")
    assert min(right.p_values.values()) > SMALLEST_P, right.p_values
    assert right.accepted == pytest.approx(
        outcome(rule, "near, k=4").accepted, abs=4 / SHARE**0.5 / 200
    )


@pytest.mark.parametrize(
    ("rule", "name", "wrong"),
    [
        ("token", "near, k=4", "residual_is_p"),
        ("token", "one-hot q", "residual_is_p"),
        ("block", "near, k=4", "pass_is_ratio"),
        ("block", "far, k=3", "pass_is_ratio"),
        ("block", "trimmed q", "residual_mass_is_1"),
        ("block", "zero mass in q", "residual_mass_is_1"),
        ("coupled", "near, k=4", "race_again_without_draft"),
        ("coupled", "far, k=3", "race_again_without_draft"),
    ],
)
def test_wrong_rule_is_caught(rule: str, name: str, wrong: str) -> None:
    p_values = numpy_outcome(rule, name, **{wrong: True}).p_values
    assert min(p_values.values()) < 1e-6, p_values


def two_block_rounds(case: Case, rounds: int, seed: int, *, by_position: bool) -> float:
    """Two rounds of block verification, the accept noise keyed by (round, offset), as it must be,
    or by the absolute position, so that the second round meets noise that the first has used."""
    rng = np.random.default_rng(seed)
    v, k, length = case.vocabulary, case.k, 4
    counts = np.zeros(v**length, np.int64)

    def independent(q: Floats, _seeds: Ints, _position: int) -> Ints:
        return draw_rows(rng, q.astype(np.float64))

    for _ in range(rounds // 50_000):
        n = 50_000
        noise = rng.random((n, 2 * k + 1))  # by absolute position, from the first round's start
        text = np.full((n, 2 * (k + 1)), -1, np.int64)
        start = np.full(n, case.context)
        begin = np.zeros(n, np.int64)
        for turn in range(2):
            seeds = np.zeros(n, np.uint64)
            batch = make_batch(case, start, seeds, 0, independent)
            accept_noise = rng.random((n, k))
            if by_position or turn == 0:
                accept_noise = noise[np.arange(n)[:, None], begin[:, None] + np.arange(k)]
            accepted, following = numpy_rules.block_decide(
                batch.p.astype(np.float64),
                batch.q.astype(np.float64),
                batch.tokens.astype(np.int64),
                accept_noise,
                rng.random(n),
            )
            new = text_of(batch, accepted, following, k + 1)
            for column in range(k + 1):
                given = new[:, column] >= 0
                text[given, begin[given] + column] = new[given, column]
            start, begin = following, begin + accepted + 1
        whole = complete(rng, case, text[:, :length])
        counts += np.bincount(whole @ v ** np.arange(length)[::-1], minlength=v**length)
    exact = case.p[case.context]
    for _ in range(length - 1):
        exact = (exact.reshape(-1, v)[:, :, None] * case.p).ravel()
    return chi_square_p(counts, exact / exact.sum() * counts.sum())


def test_noise_keyed_by_position_alone_is_biased() -> None:
    p, q = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.9, 0.1], [0.9, 0.1]])
    case = Case("a coin", p, q, 3)
    right = two_block_rounds(case, 200_000, 5, by_position=False)
    wrong = two_block_rounds(case, 200_000, 5, by_position=True)
    assert right > SMALLEST_P
    assert wrong < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_odds_of_a_block_are_what_is_accepted_in_the_mean(name: str) -> None:
    """Of the given drafts, whatever part of the block is verified; one by one as well."""
    case = CASES[name]
    n = draws(100_000)
    seeds = np.arange(n, dtype=np.uint64)
    start = np.arange(n) % case.vocabulary
    batch = make_batch(case, start, seeds, 3, core_draw(_core, "block", SEED))
    odds = _core.block_odds(batch.p, batch.q, batch.tokens)
    for rule, expected in zip(("token", "block"), odds, strict=True):
        for k in range(1, case.k + 1):
            part = Batch(batch.p[:, : k + 1], batch.q[:, :k], batch.tokens[:, :k], seeds, 3)
            accepted, _ = core_verifier(_core, rule)(part)
            difference = accepted - expected[:, k - 1]
            sigma = difference.std() / n**0.5
            assert abs(difference.mean()) <= 5 * sigma + 1e-6, (rule, k)
    more = odds[1] - odds[0]
    assert np.all(more.mean(0) >= -5 * more.std(0) / n**0.5 - 1e-9)
