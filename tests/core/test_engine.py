"""The engine end to end on toy models: equality with plain decoding, limits, reuse, totals."""

from __future__ import annotations

import time

import numpy as np
import pytest
from toy import Toy, near, plain_text, run_stream, stream_options
from toy_pairs import (
    DRAFTERS,
    HEAD,
    PENALTIES,
    PROMPT,
    TABLE,
    V,
    attached_pair,
    drafter_of,
    drafter_toy,
    speculative,
)

from specdec import _core
from specdec.errors import ContextFullError, InvalidInputError

# --- the text does not depend on how it was drafted ---


@pytest.mark.parametrize("min_width", [1, 2])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_greedy_text_is_that_of_the_target_alone(kind: str, min_width: int) -> None:
    for extra in ({}, PENALTIES, {"logit_bias": [(4, 2.0), (1, float("-inf"))]}):
        options = stream_options(temperature=0, max_tokens=150, **extra)
        plain = plain_text(TABLE, PROMPT, options, min_width=min_width)
        assert len(plain) == 150
        for k in [*range(1, 17), _core.AUTO]:
            assert speculative(kind, k, options, min_width=min_width) == plain, (k, extra)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_coupled_text_is_that_of_the_target_alone(kind: str) -> None:
    for seed, extra in enumerate(({}, PENALTIES, {"top_p": 0.8, "top_k": 7, "min_p": 0.1})):
        options = stream_options(rule="coupled", seed=seed, max_tokens=150, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k in [1, 2, 3, 5, 8, 16, _core.AUTO]:
            assert speculative(kind, k, options, min_width=2) == plain, (k, extra)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_same_seed_same_text(rule: str) -> None:
    texts = [
        speculative("near", 4, stream_options(rule=rule, seed=seed, max_tokens=60))
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_target_with_a_trimmed_head() -> None:
    table = TABLE[:, :, HEAD]
    options = stream_options(temperature=0, max_tokens=100)
    plain = plain_text(table, PROMPT, options, head_ids=HEAD)
    assert set(plain) <= set(HEAD)
    for rule in ("token", "block", "coupled"):
        sampled = stream_options(rule=rule, max_tokens=100, seed=1)
        for kind in DRAFTERS:
            toy = Toy(table, head_ids=HEAD)
            engine = _core.Engine(toy.decoder, drafter_of(kind))
            engine.set_draft_length(4)
            assert set(run_stream(engine, PROMPT, sampled)) <= set(HEAD)
            assert run_stream(engine, PROMPT, options) == plain


def test_steps_are_never_narrower_than_min_width() -> None:
    target, draft = Toy(TABLE, min_width=2), drafter_toy("near", 2)
    target.record = draft.record = True
    engine = _core.Engine(target.decoder, _core.ModelDrafter(draft.decoder))
    engine.set_draft_length(1)
    run_stream(engine, PROMPT, stream_options(max_tokens=30))
    run_stream(engine, PROMPT[:1], stream_options(max_tokens=30))
    assert min(target.widths) == min(draft.widths) == 2


@pytest.mark.parametrize("chunk", [2, 3, 7])
def test_prompt_in_chunks(chunk: int) -> None:
    prompt = [int(x) for x in np.random.default_rng(3).integers(0, V, 50)]
    options = stream_options(temperature=0, max_tokens=20)
    plain = plain_text(TABLE, prompt, options)
    toy, draft = Toy(TABLE, max_width=chunk), Toy(near(TABLE, 1), max_width=chunk, min_width=2)
    engine = _core.Engine(toy.decoder, _core.ModelDrafter(draft.decoder))
    with pytest.raises(InvalidInputError, match=f"must be 1 to {chunk - 1} or"):
        engine.set_draft_length(chunk)  # one more than a step of the target has room for
    assert run_stream(engine, prompt, options) == plain
    engine.set_draft_length(chunk - 1)
    assert run_stream(engine, prompt, options) == plain


# --- prefix reuse ---


def test_a_shared_prefix_stays_in_the_caches() -> None:
    rng = np.random.default_rng(5)
    shared = [int(x) for x in rng.integers(0, V, 30)]
    target, draft = Toy(TABLE), drafter_toy("near")
    engine = _core.Engine(target.decoder, _core.ModelDrafter(draft.decoder))
    engine.set_draft_length(4)
    options = stream_options(temperature=0, max_tokens=25)
    first = run_stream(engine, shared, options)
    assert engine.totals.prefilled_tokens == 29  # the last one belongs to the first round
    assert engine.totals.prompt_tokens == 30

    # The conversation goes on: prompt and text are known but for the last token.
    more = [*shared, *first, 4, 5, 6]
    second = run_stream(engine, more, options)
    assert engine.totals.prefilled_tokens == 3
    assert second == plain_text(TABLE, more, options)

    # A prompt that leaves the last one midway.
    other = [*shared[:20], 9, 9, 1]
    assert run_stream(engine, other, options) == plain_text(TABLE, other, options)
    assert engine.totals.prefilled_tokens == 2

    # The same again, and one that is a prefix of it.
    assert run_stream(engine, other, options) == plain_text(TABLE, other, options)
    assert engine.totals.prefilled_tokens == 0
    assert run_stream(engine, shared[:7], options) == plain_text(TABLE, shared[:7], options)
    assert engine.totals.prefilled_tokens == 0


@pytest.mark.parametrize("kind", DRAFTERS)
def test_many_streams_of_one_engine(kind: str) -> None:
    rng = np.random.default_rng(8)
    engine = _core.Engine(Toy(TABLE, min_width=2).decoder, drafter_of(kind, 2))
    base = [int(x) for x in rng.integers(0, V, 12)]
    for turn in range(30):
        cut = int(rng.integers(1, 12))
        prompt = base[:cut] + [int(x) for x in rng.integers(0, V, rng.integers(1, 6))]
        options = stream_options(
            rule="coupled", temperature=float(turn % 2), seed=turn, max_tokens=20
        )
        engine.set_draft_length(int(rng.integers(1, 9)))
        if turn % 3 == 0:  # leave a stream in the middle
            engine.start(prompt, options)
            engine.prefill()
            engine.round()
        assert run_stream(engine, prompt, options) == plain_text(TABLE, prompt, options)


# --- where a stream ends ---


@pytest.mark.parametrize("k", [1, 4, 16])
def test_stop_ids_end_the_text_inside_a_block(k: int) -> None:
    free = plain_text(TABLE, PROMPT, stream_options(temperature=0, max_tokens=200))
    for stop in sorted(set(free)):
        engine = _core.Engine(Toy(TABLE).decoder, drafter_of("near"))
        engine.set_draft_length(k)
        options = stream_options(temperature=0, max_tokens=200, stop_ids=[stop, 99])
        text = run_stream(engine, PROMPT, options)
        assert text == free[: free.index(stop) + 1]
        assert engine.tokens == PROMPT + text
        # What was drafted past the end is forgotten: the stream goes on as if from the start.
        again = run_stream(engine, PROMPT + text, stream_options(temperature=0, max_tokens=30))
        assert again == plain_text(
            TABLE, PROMPT + text, stream_options(temperature=0, max_tokens=30)
        )


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 17])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_max_tokens(kind: str, max_tokens: int) -> None:
    for rule in ("token", "block", "coupled"):
        options = stream_options(rule=rule, max_tokens=max_tokens, seed=2)
        assert len(speculative(kind, 8, options)) == max_tokens


@pytest.mark.parametrize("min_width", [1, 2])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_the_context_fills_to_its_last_token(kind: str, min_width: int) -> None:
    options = stream_options(temperature=0)
    capacity = 33
    plain = plain_text(TABLE, PROMPT, stream_options(temperature=0, max_tokens=capacity - 5))
    for k in (1, 3, 8):
        toy = Toy(TABLE, capacity=capacity, min_width=min_width)
        engine = _core.Engine(toy.decoder, drafter_of(kind, min_width))
        engine.set_draft_length(k)
        engine.start(PROMPT, options)
        engine.prefill()
        text: list[int] = []
        while True:
            result = engine.round()
            text += result.tokens
            if result.finish != _core.Finish.none:
                break
        assert result.finish == _core.Finish.length
        assert text == plain
        assert len(engine.tokens) == capacity == engine.max_context


def test_a_prompt_that_nearly_fills_the_context() -> None:
    prompt = [1] * 15
    toy = Toy(TABLE, capacity=16, min_width=2)
    engine = _core.Engine(toy.decoder, drafter_of("near", 2))
    assert len(run_stream(engine, prompt, stream_options())) == 1
    with pytest.raises(ContextFullError, match="16 tokens and the context 16"):
        engine.start([1] * 16, stream_options())


# --- what the totals say ---


def test_totals_add_up() -> None:
    engine = _core.Engine(Toy(TABLE).decoder, drafter_of("near"))
    engine.set_draft_length(4)
    options = stream_options(max_tokens=200, seed=1)
    began = time.perf_counter()
    engine.start(PROMPT, options)
    engine.prefill()
    rounds = drafted = tokens = 0
    while True:
        result = engine.round()
        rounds, drafted = rounds + 1, drafted + result.drafted
        tokens += len(result.tokens)
        if result.finish != _core.Finish.none:
            break
    elapsed = time.perf_counter() - began
    totals = engine.totals
    assert totals.rounds == rounds
    assert totals.tokens == tokens == 200
    assert sum(totals.accepted_at) == drafted
    assert totals.drafted_at[0] <= rounds
    assert len(totals.drafted_at) == 4
    assert all(a <= b for a, b in zip(totals.accepted_at, totals.drafted_at, strict=True))
    assert sorted(totals.accepted_at, reverse=True) == totals.accepted_at
    phases = [totals.prefill_seconds, totals.draft_seconds, totals.verify_seconds]
    assert 0 < totals.model_seconds <= sum(phases)
    assert sum(phases) + totals.accept_seconds <= elapsed


def test_costs_are_learnt_anew_where_the_text_has_grown_long() -> None:
    target, _, engine = attached_pair(capacity=2048)
    target.before_run = lambda run: time.sleep(0.003)
    engine.set_draft_length(_core.AUTO)
    engine.start([1, 2, 3] * 10, stream_options(temperature=0, max_tokens=1500))
    engine.prefill()
    drafted = {}  # by the length of the text before the round
    length = 30
    finish = _core.Finish.none
    while finish == _core.Finish.none:
        result = engine.round()
        finish = result.finish
        drafted[length] = result.drafted
        length += len(result.tokens)
    # From 30 tokens on costs are the same up to 2 * 30 + 1,024. Then a plain step's is asked for
    # after three rounds, and not, as before, after 48 and more.
    behind = [count for begin, count in drafted.items() if begin > 2 * 30 + 1024]
    assert 0 in behind[:5]
    before = [count for begin, count in drafted.items() if 200 < begin <= 2 * 30 + 1024]
    assert before.count(0) < len(before) / 48
