"""A drafter that reads its target's hidden states and shares its K/V, on toy models."""

from __future__ import annotations

import numpy as np
import pytest
from attached_toy import TargetToy
from toy import Toy, near, plain_text, run_stream, stream_options
from toy_pairs import KINDS, PENALTIES, PROMPT, TABLE, V, attached_pair

from specdec import _core

LENGTHS = [1, 2, 3, 5, 8, 16, _core.AUTO]


# --- the text is the target's own ---


@pytest.mark.parametrize("min_width", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_the_target_alone(kind: str, min_width: int) -> None:
    for extra in ({}, PENALTIES, {"logit_bias": [(4, 2.0), (1, float("-inf"))]}):
        options = stream_options(temperature=0, max_tokens=150, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k in LENGTHS:
            _, _, engine = attached_pair(kind, min_width=min_width)
            engine.set_draft_length(k)
            assert run_stream(engine, PROMPT, options) == plain, (k, extra)


@pytest.mark.parametrize("kind", KINDS)
def test_coupled_text_is_that_of_the_target_alone(kind: str) -> None:
    for seed, extra in enumerate(({}, PENALTIES, {"top_p": 0.8, "top_k": 7, "min_p": 0.1})):
        options = stream_options(rule="coupled", seed=seed, max_tokens=150, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k in LENGTHS:
            _, _, engine = attached_pair(kind, min_width=2)
            engine.set_draft_length(k)
            assert run_stream(engine, PROMPT, options) == plain, (k, extra)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_it_drafts_as_a_drafter_of_its_own_would(rule: str) -> None:
    """Same table, same noise: the same text, and as many accepted drafts."""
    options = stream_options(rule=rule, seed=5, max_tokens=300, **PENALTIES)
    alone = _core.Engine(TargetToy(TABLE).decoder, _core.ModelDrafter(Toy(near(TABLE, 1)).decoder))
    _, _, attached = attached_pair()
    for engine in (alone, attached):
        engine.set_draft_length(4)
    assert run_stream(attached, PROMPT, options) == run_stream(alone, PROMPT, options)
    assert attached.totals.accepted_at == alone.totals.accepted_at
    assert attached.totals.accepted_at[0] > 0.5 * attached.totals.drafted_at[0]


def test_draft_lengths_that_change_in_the_stream() -> None:
    options = stream_options(temperature=0, max_tokens=300)
    plain = plain_text(TABLE, PROMPT, options)
    _, draft, engine = attached_pair(min_width=2)
    rng = np.random.default_rng(4)
    engine.start(PROMPT, options)
    engine.prefill()
    text: list[int] = []
    while len(text) < 300:
        engine.set_draft_length(int(rng.choice(LENGTHS)))
        text += engine.round().tokens
    assert text == plain
    assert draft.runs > 0


@pytest.mark.parametrize("min_width", [1, 2])
def test_columns_of_the_committed_text_are_those_of_plain_decoding(min_width: int) -> None:
    options = stream_options(temperature=0, max_tokens=200)
    alone = TargetToy(TABLE, min_width=min_width)
    run_stream(_core.Engine(alone.decoder, None), PROMPT, options)
    for k in LENGTHS:
        target, _, engine = attached_pair("random", min_width=min_width)
        engine.set_draft_length(k)
        run_stream(engine, PROMPT, options)
        length = target.decoder.length
        assert length == alone.decoder.length == len(PROMPT) + 199
        assert target.keys[:length].tobytes() == alone.keys[:length].tobytes()
        assert target.values[:length].tobytes() == alone.values[:length].tobytes()


# --- prompts: in steps, used again, of one token ---


@pytest.mark.parametrize(("row_tile", "chunk"), [(0, 2), (0, 3), (0, 7), (2, 8), (4, 6)])
def test_a_prompt_in_steps_leaves_its_last_hidden_state(row_tile: int, chunk: int) -> None:
    for length in range(2, 30):
        prompt = [int(x) for x in np.random.default_rng(length).integers(0, V, length)]
        options = stream_options(temperature=0, max_tokens=9)
        _, draft, engine = attached_pair(max_width=chunk, min_width=2, row_tile=row_tile)
        engine.set_draft_length(chunk - 1)
        assert run_stream(engine, prompt, options) == plain_text(TABLE, prompt, options)
        assert draft.positions[0] == length - 1  # it drafts from the first round on


def test_a_prompt_of_one_token_begins_with_a_plain_round() -> None:
    options = stream_options(temperature=0, max_tokens=20)
    _, draft, engine = attached_pair(min_width=2)
    engine.set_draft_length(4)
    assert run_stream(engine, [3], options) == plain_text(TABLE, [3], options)
    assert draft.positions[0] == 1
    engine.start([5], options)
    engine.prefill()
    engine.round()
    assert engine.totals.drafted_at == []
    engine.round()
    assert engine.totals.drafted_at == [1, 1, 1, 1]


def test_a_prompt_used_again() -> None:
    rng = np.random.default_rng(5)
    shared = [int(x) for x in rng.integers(0, V, 30)]
    options = stream_options(temperature=0, max_tokens=25)
    _, draft, engine = attached_pair()
    engine.set_draft_length(4)

    def check(prompt: list[int], *, prefilled: int, plain_rounds: int) -> list[int]:
        draft.positions.clear()
        text = run_stream(engine, prompt, options)
        assert text == plain_text(TABLE, prompt, options)
        totals = engine.totals
        assert totals.prefilled_tokens == prefilled
        # Whatever a round drafted in vain, the next one has the hidden state again.
        assert (draft.positions[0] == len(prompt) - 1) == (plain_rounds == 0)
        return text

    first = check(shared, prefilled=29, plain_rounds=0)
    check([*shared, *first, 4, 5, 6], prefilled=3, plain_rounds=0)  # a conversation goes on
    other = [*shared[:20], 9, 9, 1]
    check(other, prefilled=2, plain_rounds=0)
    check(other, prefilled=0, plain_rounds=1)  # the hidden state before its last token is gone
    check(shared[:7], prefilled=0, plain_rounds=1)


@pytest.mark.parametrize("kind", KINDS)
def test_many_streams_of_one_engine(kind: str) -> None:
    rng = np.random.default_rng(8)
    _, _, engine = attached_pair(kind, min_width=2)
    base = [int(x) for x in rng.integers(0, V, 12)]
    for turn in range(60):
        cut = int(rng.integers(1, 12))
        prompt = base[:cut] + [int(x) for x in rng.integers(0, V, rng.integers(0, 6))]
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


@pytest.mark.parametrize("min_width", [1, 2])
@pytest.mark.parametrize("capacity", [6, 7, 8, 16, 33])
def test_the_context_fills_to_its_last_token(capacity: int, min_width: int) -> None:
    options = stream_options(temperature=0)
    plain = plain_text(TABLE, PROMPT, options, capacity=capacity, min_width=min_width)
    for k in LENGTHS:
        _, draft, engine = attached_pair(capacity=capacity, min_width=min_width)
        engine.set_draft_length(k)
        assert run_stream(engine, PROMPT, options) == plain
        assert len(engine.tokens) == capacity
        assert max(draft.positions, default=0) < capacity


def test_a_shorter_context_of_its_own() -> None:
    _, draft, engine = attached_pair("short context")
    engine.set_draft_length(7)
    options = stream_options(temperature=0, max_tokens=100)
    assert run_stream(engine, PROMPT, options) == plain_text(TABLE, PROMPT, options)
    assert max(draft.positions) == 39


def test_stop_ids_end_the_text_inside_a_block() -> None:
    free = plain_text(TABLE, PROMPT, stream_options(temperature=0, max_tokens=100))
    for stop in sorted(set(free)):
        target, _, engine = attached_pair()
        engine.set_draft_length(4)
        options = stream_options(temperature=0, max_tokens=100, stop_ids=[stop])
        assert run_stream(engine, PROMPT, options) == free[: free.index(stop) + 1]
        assert target.decoder.length == len(engine.tokens) - 1
        more = [*engine.tokens, 1]
        assert run_stream(engine, more, options) == plain_text(TABLE, more, options)


def test_totals_count_the_drafters_time() -> None:
    _, _, engine = attached_pair()
    engine.set_draft_length(4)
    run_stream(engine, PROMPT, stream_options(max_tokens=200, seed=1))
    totals = engine.totals
    assert totals.tokens == 200
    assert len(totals.drafted_at) == 4
    assert totals.draft_seconds > 0
    assert totals.model_seconds <= (
        totals.prefill_seconds + totals.draft_seconds + totals.verify_seconds
    )
    assert totals.model_seconds > totals.verify_seconds / 2
