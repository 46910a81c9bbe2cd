"""Rounds of speculative sampling against a known Markov chain, and checks of the text they give.

A *verifier* takes one batch of rounds and says how many drafts of each are accepted and which
token follows: the core's own rules, or a rule written here in numpy (right, or wrong on purpose).
All go through the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from statistic import chi_square_p

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    p: NDArray[np.float32]  # [n, k + 1, V]
    q: NDArray[np.float32]  # [n, k, V]
    tokens: NDArray[np.int32]  # [n, k]
    seeds: NDArray[np.uint64]  # [n]
    position: int


Verifier = Callable[[Batch], tuple[Ints, Ints]]  # accepted [n], next [n]
# Draws n drafts from q [n, V] at an absolute position.
Draw = Callable[[NDArray[np.float32], NDArray[np.uint64], int], Ints]


@dataclass(frozen=True)
class Case:
    """Target and drafter as Markov chains: row x is the distribution after token x."""

    name: str
    p: Floats  # [V, V]
    q: Floats  # [V, V]
    k: int
    context: int = 0  # the token before the first draft

    @property
    def vocabulary(self) -> int:
        return len(self.p)


def random_rows(
    rng: np.random.Generator, vocabulary: int, spread: float, zeros: float = 0.0
) -> Floats:
    logits = rng.normal(0, spread, (vocabulary, vocabulary))
    weights = np.exp(logits)
    weights[rng.random(weights.shape) < zeros] = 0
    weights[np.arange(vocabulary), rng.integers(0, vocabulary, vocabulary)] += 0.1
    return as_single(weights)


def as_single(weights: Floats) -> Floats:
    """Rows that sum to 1 up to single precision, which is what the core is given."""
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)


def one_hot_rows(rng: np.random.Generator, vocabulary: int) -> Floats:
    return np.eye(vocabulary)[rng.integers(0, vocabulary, vocabulary)]


def cases() -> list[Case]:
    rng = np.random.default_rng(20240607)
    result = []

    def add(name: str, p: Floats, q: Floats, k: int) -> None:
        result.append(Case(name, p, q, k))

    p = random_rows(rng, 6, 1.0)
    near = as_single(p * np.exp(rng.normal(0, 0.4, p.shape)))
    add("near, k=1", p, near, 1)
    add("near, k=2", p, near, 2)
    add("near, k=4", p, near, 4)
    add("near, k=8", p, near, 8)
    add("far, k=3", random_rows(rng, 7, 2.0), random_rows(rng, 7, 2.0), 3)
    add("far, k=8", random_rows(rng, 5, 2.5), random_rows(rng, 5, 2.5), 8)
    add("zero mass in p", random_rows(rng, 8, 1.0, 0.5), random_rows(rng, 8, 1.0), 4)
    add("zero mass in q", random_rows(rng, 8, 1.0), random_rows(rng, 8, 1.0, 0.5), 4)
    add("zero mass in both", random_rows(rng, 8, 1.0, 0.4), random_rows(rng, 8, 1.0, 0.4), 5)
    add("one-hot q", random_rows(rng, 6, 1.0), one_hot_rows(rng, 6), 5)
    add("one-hot p", one_hot_rows(rng, 6), random_rows(rng, 6, 1.0), 6)
    trimmed = random_rows(rng, 9, 1.0)
    trimmed[:, 1::2] = 0
    add("trimmed q", random_rows(rng, 9, 1.0), as_single(trimmed), 6)
    same = random_rows(rng, 6, 1.0)
    add("p is q", same, same, 7)
    return result


def draw_rows(rng: np.random.Generator, rows: Floats) -> Ints:
    """One index from each row [n, V]."""
    cumulative = np.cumsum(rows, axis=1)
    u = rng.random(len(rows)) * cumulative[:, -1]
    # `side="right"` for every row at once; a token without weight is never hit.
    return np.asarray((cumulative <= u[:, None]).sum(1), dtype=np.int64)


def make_batch(
    case: Case,
    start: Ints,
    seeds: NDArray[np.uint64],
    position: int,
    draw: Draw,
) -> Batch:
    """Drafts after the tokens start[n], and the rows of both models that go with them."""
    p32, q32 = case.p.astype(np.float32), case.q.astype(np.float32)
    n = len(start)
    tokens = np.empty((n, case.k), np.int32)
    p = np.empty((n, case.k + 1, case.vocabulary), np.float32)
    q = np.empty((n, case.k, case.vocabulary), np.float32)
    last = start
    for i in range(case.k):
        p[:, i] = p32[last]
        q[:, i] = q32[last]
        last = draw(q[:, i], seeds, position + i)
        tokens[:, i] = last
    p[:, case.k] = p32[last]
    return Batch(p, q, tokens, seeds, position)


def text_of(batch: Batch, accepted: Ints, following: Ints, length: int) -> Ints:
    """The first `length` tokens of each round's text, -1 where the round gave fewer."""
    n, k = batch.tokens.shape
    text = np.full((n, k + 1), -1, np.int64)
    columns = np.arange(k)
    text[:, :k] = np.where(columns < accepted[:, None], batch.tokens, -1)
    text[np.arange(n), accepted] = following
    if length > k + 1:
        text = np.pad(text, ((0, 0), (0, length - k - 1)), constant_values=-1)
    return text[:, :length]


def complete(rng: np.random.Generator, case: Case, text: Ints) -> Ints:
    """Draws what is missing exactly from the target: then the whole text must follow it."""
    text = text.copy()
    for column in range(1, text.shape[1]):
        missing = text[:, column] < 0
        text[missing, column] = draw_rows(rng, case.p[text[missing, column - 1]])
    return text


@dataclass
class Outcome:
    p_values: dict[str, float]
    positions: int  # tokens that the verifier gave
    accepted: float  # mean drafts accepted in a round


def joint(case: Case) -> Floats:
    """Exact probabilities [V, V] of the first two tokens."""
    first = case.p[case.context] / case.p[case.context].sum()
    return np.asarray(first[:, None] * case.p / case.p.sum(1, keepdims=True))


def batches(total: int, size: int = 50_000) -> Iterator[tuple[int, int]]:
    for begin in range(0, total, size):
        yield begin, min(size, total - begin)


def check(case: Case, verifier: Verifier, draw: Draw, rounds: int, seed: int) -> Outcome:
    """Runs rounds and tests the first token, and the first two: where a round gave only one, the
    second once comes exactly from the target and once from a second round."""
    v = case.vocabulary
    rng = np.random.default_rng([seed, 1])
    completed = np.zeros(v * v, np.int64)
    continued = np.zeros(v * v, np.int64)
    positions = accepted_sum = 0
    for begin, n in batches(rounds):
        seeds = (np.arange(begin, begin + n) + seed * 1_000_003).astype(np.uint64)
        batch = make_batch(case, np.full(n, case.context), seeds, 17, draw)
        accepted, following = verifier(batch)
        positions += int(accepted.sum()) + n
        accepted_sum += int(accepted.sum())
        text = text_of(batch, accepted, following, 2)
        whole = complete(rng, case, text)
        completed += np.bincount(whole[:, 0] * v + whole[:, 1], minlength=v * v)

        short = np.flatnonzero(text[:, 1] < 0)
        if len(short):
            second = make_batch(case, text[short, 0], seeds[short], 18, draw)
            again, after = verifier(second)
            positions += int(again.sum()) + len(short)
            text[short, 1] = text_of(second, again, after, 1)[:, 0]
        continued += np.bincount(text[:, 0] * v + text[:, 1], minlength=v * v)
    exact = joint(case) * rounds
    return Outcome(
        {
            "first": chi_square_p(completed.reshape(v, v).sum(1), exact.sum(1)),
            "two, completed": chi_square_p(completed, exact),
            "two, second round": chi_square_p(continued, exact),
        },
        positions,
        accepted_sum / rounds,
    )


def core_verifier(core: ModuleType, rule: str) -> Verifier:
    def verify(batch: Batch) -> tuple[Ints, Ints]:
        accepted, following = core.verify_batch(
            rule, batch.p, batch.q, batch.tokens, batch.seeds, batch.position
        )
        return accepted.astype(np.int64), following.astype(np.int64)

    return verify


def core_draw(core: ModuleType, rule: str, seed: int) -> Draw:
    """Drafts as the rule wants them: from the shared race for coupled, else independent."""
    if rule == "coupled":
        return lambda q, seeds, position: core.race_batch(q, seeds, position).astype(np.int64)
    rng = np.random.default_rng([seed, 2])
    return lambda q, seeds, position: draw_rows(rng, q.astype(np.float64))
