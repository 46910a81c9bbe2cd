"""Batches: every sequence's text is the one that it has alone, whatever else is in the steps."""

from __future__ import annotations

import time
from typing import Any

import pytest
from batch_toy import Batch
from toy import plain_text, stream_options
from toy_pairs import PENALTIES, TABLE, Broken, V, speculative

from specdec import _core
from specdec.errors import ModelRunError

SIZES = [1, 2, 3, 8]
STANDALONE = ["near", "random", "trimmed", "constant", "short context"]
ATTACHED = [f"{kind} attached" for kind in STANDALONE]
# Of many lengths: one token, some, and several steps of a prefill.
PROMPTS = [
    [(3 * i + 5 * (i // 7) + length) % V for i in range(length)]
    for length in (5, 1, 300, 12, 2, 70, 40, 1, 9, 130, 3)
]
LENGTHS = [1, 4, 2, 7, 3, 16, 1, 5, 2, 8, 3]
ENDS = [40, 3, 25, 60, 1, 33, 90, 18, 2, 11, 50]


def options_of(rule: str, **sampling: Any) -> list[Any]:
    return [
        stream_options(rule=rule, max_tokens=end, seed=seed, **sampling)
        for seed, end in enumerate(ENDS)
    ]


def alone(options: list[Any]) -> list[list[int]]:
    pairs = zip(PROMPTS, options, strict=True)
    return [plain_text(TABLE, prompt, option, takes_rows=True) for prompt, option in pairs]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", ["greedy", "coupled"])
def test_plain_texts_are_those_of_each_prompt_alone(size: int, rule: str) -> None:
    for extra in ({}, PENALTIES):
        temperature = 0 if rule == "greedy" else 1
        options = options_of(rule, temperature=temperature, **extra)
        assert Batch(size).texts(PROMPTS, options) == alone(options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [*STANDALONE, *ATTACHED, "ngram"])
def test_texts_do_not_depend_on_the_drafts(kind: str, size: int) -> None:
    for rule, temperature in (("greedy", 0), ("coupled", 1)):
        options = options_of(rule, temperature=temperature)
        batch = Batch(size, kind)
        assert batch.texts(PROMPTS, options, LENGTHS) == alone(options)
        assert batch.texts(PROMPTS[::-1], options[::-1], LENGTHS) == alone(options)[::-1]


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("kind", ["near", "trimmed", "ngram"])
def test_sampled_texts_are_those_of_the_same_drafts_alone(kind: str, rule: str) -> None:
    """Which follow the target's distribution: the rules' own tests say so."""
    options = options_of(rule)
    expected = [
        speculative(kind, k, option, prompt=prompt)
        for prompt, option, k in zip(PROMPTS, options, LENGTHS, strict=True)
    ]
    for size in (2, 8):
        assert Batch(size, kind).texts(PROMPTS, options, LENGTHS) == expected


@pytest.mark.parametrize("kind", ["near", "near attached"])
def test_siblings_change_no_text(kind: str) -> None:
    options = options_of("greedy", temperature=0)
    batch = Batch(3, kind)
    for engine in batch.engines:
        engine.set_draft_width(3)
    assert batch.texts(PROMPTS, options, LENGTHS) == alone(options)
    assert sum(engine.totals.checked for engine in batch.engines) > sum(
        sum(engine.totals.drafted_at) for engine in batch.engines
    )


def test_all_sequences_share_each_step() -> None:
    size, rounds, k = 4, 20, 3
    batch = Batch(size, "random attached")
    option = stream_options(temperature=0, max_tokens=500)
    for engine in batch.engines:
        engine.set_draft_length(k)
        engine.start([1, 2, 3], option)
    batch.core.round()  # the prefill of all
    assert batch.target.steps == [[2] * size]
    for _ in range(rounds):
        assert all(outcome.tokens for outcome in batch.core.round())
    assert batch.target.steps[1:] == [[k + 1] * size] * rounds
    assert batch.drafter.steps == [size] * (k * rounds)
    for engine in batch.engines:
        assert engine.totals.rounds == rounds
        assert engine.totals.drafted_at == [rounds] * k


def test_a_long_prompt_does_not_hold_up_the_others() -> None:
    batch = Batch(2, max_width=64)
    option = stream_options(temperature=0, max_tokens=200)
    batch.engines[0].start([1, 2], option)
    batch.core.round()
    batch.engines[1].start(PROMPTS[2] * 3, option)
    rounds = 0
    while batch.core.round()[1] is None:
        rounds += 1
        assert batch.engines[0].totals.rounds == rounds
    assert rounds > 5
    assert max(rows[1] for rows in batch.target.steps) == 64


def test_long_prompts_together_leave_room_for_the_others() -> None:
    batch = Batch(6)
    option = stream_options(temperature=0, max_tokens=200)
    batch.engines[0].start([1, 2], option)
    batch.core.round()
    for engine in batch.engines[1:]:
        engine.start(PROMPTS[2], option)
    while any(outcome is None for outcome in batch.core.round()):
        assert batch.engines[0].totals.rounds == len(batch.target.steps) - 1
    assert max(map(sum, batch.target.steps)) == 128


@pytest.mark.parametrize("kind", [None, "near", "near attached"])
def test_an_error_of_one_sequence_does_not_lose_the_others(kind: str | None) -> None:
    options = options_of("greedy", temperature=0)
    size, bad = 3, 1
    batch = Batch(size, kind)
    steps = 0

    def fail(sequences: set[int]) -> None:
        nonlocal steps
        steps += 1
        if bad in sequences and steps > 8:
            raise Broken("sequence 1")

    batch.target.before_run = fail
    found = batch.outcomes(PROMPTS[:size], options[:size], LENGTHS[:size])
    expected = alone(options)[:size]
    for index, (text, error) in enumerate(found):
        if index == bad:
            continue
        assert (text, error) == (expected[index], None)
    assert [type(error) for _, error in found].count(Broken) <= 1
    batch.target.before_run = None
    assert batch.texts(PROMPTS, options, LENGTHS) == alone(options)


def test_an_error_that_ends_its_sequence() -> None:
    options = [stream_options(temperature=0, max_tokens=30) for _ in range(3)]
    batch = Batch(3, "near")

    def fail(sequences: set[int]) -> None:
        if 1 in sequences:
            raise Broken("sequence 1")

    batch.target.before_run = fail
    (_, first), (text, error), (_, last) = batch.outcomes(PROMPTS[3:6], options, [2, 3, 4])
    assert (first, text, last) == (None, [], None)
    assert isinstance(error, Broken)


def test_a_row_that_is_no_number_ends_its_sequence_alone() -> None:
    """What fails after a step, in the sequence's own acceptance."""
    batch = Batch(2)
    good, bad = (stream_options(temperature=t, max_tokens=20, seed=1) for t in (0, 1))
    engines = batch.engines
    engines[0].start([1, 2], good)
    engines[1].start([3, 4], bad)
    batch.core.round()
    context = 3 * V + 4
    kept = batch.target.table[context].copy()
    batch.target.table[context] = float("nan")
    first, second = batch.core.round()
    assert first.tokens
    assert isinstance(second, ModelRunError)
    assert batch.core.round()[1] is None
    batch.target.table[context] = kept
    assert batch.texts([[3, 4]], [bad]) == [plain_text(TABLE, [3, 4], bad, takes_rows=True)]


def test_an_interrupt_ends_the_round_of_all() -> None:
    options = options_of("greedy", temperature=0)
    batch = Batch(3, "near attached")

    def interrupt(sequences: set[int]) -> None:
        if len(batch.target.steps) == 12:
            raise KeyboardInterrupt

    batch.target.before_run = interrupt
    with pytest.raises(KeyboardInterrupt):
        batch.texts(PROMPTS, options, LENGTHS)
    for engine, decoder in zip(batch.engines, batch.target.decoders, strict=True):
        assert decoder.length < max(len(engine.tokens), 1)
    batch.target.before_run = None
    assert batch.core.round() == [None] * 3
    assert batch.texts(PROMPTS, options, LENGTHS) == alone(options)


def test_one_sequence_is_cancelled() -> None:
    option = stream_options(temperature=0, max_tokens=100)
    batch = Batch(2, "near")
    for engine in batch.engines:
        engine.start([1, 2, 3], option)
    for _ in range(4):
        batch.core.round()
    batch.engines[0].cancel()
    first, second = batch.core.round()
    assert (first.tokens, first.finish) == ([], _core.Finish.cancelled)
    assert second.tokens
    assert batch.core.round()[0] is None


def test_a_prompt_that_is_cancelled_in_its_prefill() -> None:
    option = stream_options(temperature=0, max_tokens=100)
    batch = Batch(1, max_width=16)
    batch.engines[0].start(PROMPTS[2], option)
    assert batch.core.round() == [None]
    batch.engines[0].cancel()
    assert batch.core.round()[0].finish == _core.Finish.cancelled
    # What is in the caches is right, and is used.
    expected = plain_text(TABLE, PROMPTS[2], option, takes_rows=True)
    assert batch.texts([PROMPTS[2]], [option]) == [expected]
    assert batch.engines[0].totals.prefilled_tokens < len(PROMPTS[2]) - 16


def test_the_share_of_a_step_is_what_its_rows_add() -> None:
    """And an equal part of what any step costs. By rows alone it would be 1 to 4."""
    base, row = 0.003, 0.0003
    costs = _core.StepCosts(64)
    for turn in range(40):
        rows = 1 + 7 * turn % 31
        costs.add_target(rows, base + row * rows)
    for parts in ([2, 8], [1], [1, 1, 1], [5, 1, 30, 1]):
        shares = _core.split_step(costs, parts)
        whole = base + row * sum(parts)
        expected = [(base / len(parts) + row * own) / whole for own in parts]
        assert shares == pytest.approx(expected, rel=0.03)
        assert sum(shares) == pytest.approx(1)


def test_auto_drafts_where_that_pays() -> None:
    batch = Batch(3, "near attached")
    batch.target.before_run = lambda sequences: time.sleep(0.003)
    options = [stream_options(temperature=0, max_tokens=150) for _ in range(3)]
    prompts = [[1, 2, 3], [4, 5], [6] * 9]
    expected = [
        plain_text(TABLE, prompt, option, takes_rows=True)
        for prompt, option in zip(prompts, options, strict=True)
    ]
    assert batch.texts(prompts, options, [_core.AUTO] * 3) == expected
    for engine in batch.engines:
        assert engine.totals.tokens > 1.5 * engine.totals.rounds


def test_costs_of_steps_are_learnt_anew_behind_a_much_longer_context() -> None:
    batch = Batch(1, "near attached", capacity=4096)
    batch.target.before_run = lambda sequences: time.sleep(0.003)

    firsts = iter(range(1, 6))

    def first_round(prompt_steps: int) -> int:
        """Rows of the first round of a text behind a new prompt that takes so many whole steps."""
        prompt = [next(firsts)] + [1] * (64 * prompt_steps)
        before = len(batch.target.steps)
        batch.texts([prompt], [stream_options(temperature=0, max_tokens=60)], [_core.AUTO])
        steps = [rows for (rows,) in batch.target.steps[before:]]
        assert steps[:prompt_steps] == [64] * prompt_steps
        return steps[prompt_steps]

    assert first_round(1) == 1  # what a plain step costs is found out first
    assert first_round(1) > 1
    assert first_round(40) == 1
    assert first_round(40) > 1
    assert first_round(1) == 1


def test_seconds_of_the_sequences_add_up_to_those_of_the_steps() -> None:
    batch = Batch(3, "near attached")
    option = stream_options(temperature=0, max_tokens=30)
    start = time.perf_counter()
    batch.texts([[1, 2, 3]] * 3, [option] * 3, [2, 3, 4])
    wall = time.perf_counter() - start
    seconds = 0.0
    for engine in batch.engines:
        totals = engine.totals
        seconds += totals.prefill_seconds + totals.draft_seconds
        seconds += totals.verify_seconds + totals.accept_seconds
    assert 0.3 * wall < seconds < wall
