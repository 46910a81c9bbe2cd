"""A drafter that reads its target's hidden states and shares its K/V, on toy models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attached_toy import AttachedToy, TargetToy
from toy import Toy, near, plain_text, random_table, run_stream, stream_options

from specdec import _core
from specdec.errors import ContextFullError, InvalidInputError, ModelRunError

V = 12
TABLE = random_table(21, V)
HEAD = [0, 2, 3, 5, 8, 9, 11]
PROMPT = [1, 2, 3, 1, 2]
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
KINDS = ["near", "random", "trimmed", "constant", "short context"]
LENGTHS = [1, 2, 3, 5, 8, 16, _core.AUTO]


def pair(kind: str = "near", **target: Any) -> tuple[TargetToy, AttachedToy, Any]:
    """A target, the drafter attached to it, and an engine of the two."""
    toy = TargetToy(TABLE, **target)
    if kind == "near":
        draft = AttachedToy(near(TABLE, 1), toy)
    elif kind == "random":
        draft = AttachedToy(random_table(77, V), toy)
    elif kind == "trimmed":
        draft = AttachedToy(near(TABLE, 2)[:, :, HEAD], toy, head_ids=HEAD)
    elif kind == "constant":
        draft = AttachedToy(np.zeros((V, V, 1), np.float32), toy, head_ids=[7])
    else:
        assert kind == "short context"
        draft = AttachedToy(near(TABLE, 3), toy, context=40)
    return toy, draft, _core.Engine(toy.decoder, _core.AttachedDrafter(draft.decoder))


# --- the text is the target's own ---


@pytest.mark.parametrize("min_width", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_the_target_alone(kind: str, min_width: int) -> None:
    for extra in ({}, PENALTIES, {"logit_bias": [(4, 2.0), (1, float("-inf"))]}):
        options = stream_options(temperature=0, max_tokens=150, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k in LENGTHS:
            _, _, engine = pair(kind, min_width=min_width)
            engine.set_draft_length(k)
            assert run_stream(engine, PROMPT, options) == plain, (k, extra)


@pytest.mark.parametrize("kind", KINDS)
def test_coupled_text_is_that_of_the_target_alone(kind: str) -> None:
    for seed, extra in enumerate(({}, PENALTIES, {"top_p": 0.8, "top_k": 7, "min_p": 0.1})):
        options = stream_options(rule="coupled", seed=seed, max_tokens=150, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k in LENGTHS:
            _, _, engine = pair(kind, min_width=2)
            engine.set_draft_length(k)
            assert run_stream(engine, PROMPT, options) == plain, (k, extra)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_it_drafts_as_a_drafter_of_its_own_would(rule: str) -> None:
    """Same table, same noise: the same text, and as many accepted drafts."""
    options = stream_options(rule=rule, seed=5, max_tokens=300, **PENALTIES)
    alone = _core.Engine(TargetToy(TABLE).decoder, _core.ModelDrafter(Toy(near(TABLE, 1)).decoder))
    _, _, attached = pair()
    for engine in (alone, attached):
        engine.set_draft_length(4)
    assert run_stream(attached, PROMPT, options) == run_stream(alone, PROMPT, options)
    assert attached.totals.accepted_at == alone.totals.accepted_at
    assert attached.totals.accepted_at[0] > 0.5 * attached.totals.drafted_at[0]


def test_draft_lengths_that_change_in_the_stream() -> None:
    options = stream_options(temperature=0, max_tokens=300)
    plain = plain_text(TABLE, PROMPT, options)
    _, draft, engine = pair(min_width=2)
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
        target, _, engine = pair("random", min_width=min_width)
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
        _, draft, engine = pair(max_width=chunk, min_width=2, row_tile=row_tile)
        engine.set_draft_length(chunk - 1)
        assert run_stream(engine, prompt, options) == plain_text(TABLE, prompt, options)
        assert draft.positions[0] == length - 1  # it drafts from the first round on


def test_a_prompt_of_one_token_begins_with_a_plain_round() -> None:
    options = stream_options(temperature=0, max_tokens=20)
    _, draft, engine = pair(min_width=2)
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
    _, draft, engine = pair()
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
    _, _, engine = pair(kind, min_width=2)
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


# --- which hidden states the target has ---


def test_hidden_states_of_committed_positions() -> None:
    target = TargetToy(TABLE, min_width=2, max_width=8, max_logit_rows=8, capacity=16)
    decoder = target.decoder

    def known() -> list[int]:
        rows = {at: decoder.hidden(at) for at in range(-2, 20)}
        for at, row in rows.items():
            assert row is None or row[1] == at
        return [at for at, row in rows.items() if row is not None]

    assert known() == []
    decoder.forward([1, 2, 3, 4, 5], 5)
    assert known() == []  # computed, and not committed
    decoder.commit(3)
    assert known() == [0, 1, 2]
    decoder.truncate(2)
    assert known() == [0, 1]
    decoder.forward([6], 1)  # padded to two rows: the second one is nobody's
    decoder.commit(1)
    assert known() == [2]
    decoder.truncate(1)
    assert known() == []
    for count in (3, 8):
        decoder.forward([1] * count, 1)
        decoder.commit(count)
    with pytest.raises(ContextFullError):
        decoder.forward([1] * 8, 1)
    assert known() == list(range(4, 12))  # a step that did not begin changed nothing

    def fail(run: int) -> None:
        raise Broken

    target.before_run = fail
    with pytest.raises(Broken):
        decoder.forward([1], 1)
    assert known() == []


def test_a_target_without_hidden_states() -> None:
    toy = Toy(TABLE)
    toy.decoder.forward(PROMPT, 1)
    toy.decoder.commit(5)
    assert toy.decoder.hidden(4) is None
    assert "hidden" not in toy.decoder.buffers()
    with pytest.raises(InvalidInputError, match="target whose graph gives hidden states"):
        AttachedToy(TABLE, toy)
    with pytest.raises(InvalidInputError, match="hidden size"):
        Toy(TABLE, hidden=-1)


# --- where a stream ends ---


@pytest.mark.parametrize("min_width", [1, 2])
@pytest.mark.parametrize("capacity", [6, 7, 8, 16, 33])
def test_the_context_fills_to_its_last_token(capacity: int, min_width: int) -> None:
    options = stream_options(temperature=0)
    plain = plain_text(TABLE, PROMPT, options, capacity=capacity, min_width=min_width)
    for k in LENGTHS:
        _, draft, engine = pair(capacity=capacity, min_width=min_width)
        engine.set_draft_length(k)
        assert run_stream(engine, PROMPT, options) == plain
        assert len(engine.tokens) == capacity
        assert max(draft.positions, default=0) < capacity


def test_a_shorter_context_of_its_own() -> None:
    _, draft, engine = pair("short context")
    engine.set_draft_length(7)
    options = stream_options(temperature=0, max_tokens=100)
    assert run_stream(engine, PROMPT, options) == plain_text(TABLE, PROMPT, options)
    assert max(draft.positions) == 39


def test_stop_ids_end_the_text_inside_a_block() -> None:
    free = plain_text(TABLE, PROMPT, stream_options(temperature=0, max_tokens=100))
    for stop in sorted(set(free)):
        target, _, engine = pair()
        engine.set_draft_length(4)
        options = stream_options(temperature=0, max_tokens=100, stop_ids=[stop])
        assert run_stream(engine, PROMPT, options) == free[: free.index(stop) + 1]
        assert target.decoder.length == len(engine.tokens) - 1
        more = [*engine.tokens, 1]
        assert run_stream(engine, more, options) == plain_text(TABLE, more, options)


def test_cancel_during_a_prefill_and_between_rounds() -> None:
    prompt = [int(x) for x in np.random.default_rng(1).integers(0, V, 41)]
    options = stream_options(temperature=0, max_tokens=30)
    plain = plain_text(TABLE, prompt, options)
    target, draft, engine = pair(max_width=9, min_width=2)
    engine.set_draft_length(4)
    target.before_run = lambda run: engine.cancel() if run == 2 else None
    engine.start(prompt, options)
    engine.prefill()
    assert target.decoder.length == 18
    assert engine.round().finish == _core.Finish.cancelled
    assert draft.runs == 0
    for prefix in (prompt[:19], prompt[:12], prompt):  # in what the last step computed, and before
        assert run_stream(engine, prefix, options) == plain_text(TABLE, prefix, options)

    engine.start(prompt, options)
    engine.prefill()
    engine.round()
    engine.cancel()
    assert engine.round().finish == _core.Finish.cancelled
    assert target.decoder.length == len(engine.tokens) - 1
    assert run_stream(engine, prompt, options) == plain


# --- failures ---


class Broken(Exception):
    pass


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("failing", ["target", "drafter"])
@pytest.mark.parametrize("run", [1, 2, 3, 4, 5, 6, 7, 11])
def test_a_failing_run_leaves_the_committed_prefix(
    failing: str, run: int, temperature: float
) -> None:
    prompt = [int(x) for x in np.random.default_rng(2).integers(0, V, 20)]
    target, draft, engine = pair(max_width=9)
    toy: Any = target if failing == "target" else draft
    engine.set_draft_length(4)
    options = stream_options(rule="coupled", temperature=temperature, seed=1, max_tokens=60)

    def fail(number: int) -> None:
        if number == run:
            target.hidden[...] = np.nan if failing == "target" else target.hidden
            raise Broken("the model broke")

    toy.before_run = fail
    with pytest.raises(Broken, match="the model broke"):
        run_stream(engine, prompt, options)
    committed = engine.tokens
    length = target.decoder.length
    assert length == len(committed) - 1 or (failing == "target" and run <= 3)
    assert target.keys[:length].tolist() == committed[:length]
    assert target.values[:length].tolist() == list(range(1, length + 1))
    toy.before_run = None
    # On from where it broke, and once more from the beginning.
    for again in (committed, [*committed, 3], prompt):
        assert run_stream(engine, again, options) == plain_text(TABLE, again, options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("failing", ["target", "drafter"])
def test_logits_that_are_no_numbers(failing: str, temperature: float) -> None:
    target, draft, engine = pair()
    toy: Any = target if failing == "target" else draft
    engine.set_draft_length(3)
    options = stream_options(rule="coupled", temperature=temperature, max_tokens=40)
    whole = toy.rows

    def spoil(number: int) -> None:
        toy.rows = np.full_like(whole, np.nan) if number == 5 else whole

    toy.before_run = spoil
    with pytest.raises(ModelRunError, match="no finite numbers"):
        run_stream(engine, PROMPT, options)
    assert target.decoder.length == len(engine.tokens) - 1
    toy.before_run, toy.rows = None, whole
    committed = engine.tokens
    for again in (committed, PROMPT):
        assert run_stream(engine, again, options) == plain_text(TABLE, again, options)


# --- by hand ---


def test_a_step_never_touches_committed_columns() -> None:
    target, draft, _ = pair()
    decoder = draft.decoder
    refused = "continues the one before, or follows its target"
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([1], 1)
    assert not decoder.follow(0)  # there is no hidden state before the first token
    target.decoder.forward(PROMPT, 1)
    target.decoder.commit(5)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([1], 1)
    assert not decoder.follow(4)
    assert decoder.follow(5)
    decoder.forward([1], 1)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([1], 1)  # not committed: no features for that column any more
    decoder.commit(1)
    decoder.forward([2], 1)
    decoder.commit(1)
    assert (decoder.length, target.decoder.length) == (7, 5)
    # The target goes on in the meantime.
    target.decoder.forward([1] * 4, 1)
    target.decoder.commit(4)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([3], 1)
    assert decoder.follow(9)
    decoder.truncate(3)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([3], 1)
    assert target.values[:9].tolist() == list(range(1, 10))
    with pytest.raises(InvalidInputError, match="a step of 2 tokens"):
        decoder.forward([1, 2], 1)


def test_an_engine_of_another_target_gets_no_drafts() -> None:
    _, draft, _ = pair()
    engine = _core.Engine(TargetToy(TABLE).decoder, _core.AttachedDrafter(draft.decoder))
    engine.set_draft_length(4)
    options = stream_options(temperature=0, max_tokens=20)
    assert run_stream(engine, PROMPT, options) == plain_text(TABLE, PROMPT, options)
    assert draft.runs == 0


@pytest.mark.parametrize("layers", [(), (1,), (-1,), (0, 0)], ids=str)
def test_layers_that_the_target_lacks(layers: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="different layers of the target"):
        AttachedToy(TABLE, TargetToy(TABLE), target_layers=layers)


def test_its_layers_are_the_targets_memory_and_keep_it_alive() -> None:
    def ignore(width: int, head: int) -> None:
        pass

    target = _core.InPlaceDecoder(
        vocabulary=4, head_ids=[], layers=4, kv_heads=2, head_dim=8, capacity=16, min_width=1,
        max_width=4, max_logit_rows=4, hidden=5, run=ignore,
    )  # fmt: skip
    drafter = _core.AttachedDecoder(
        vocabulary=4, head_ids=[], target=target, target_layers=[0, 3], context=16, run=ignore
    )
    ours, theirs = target.buffers(), drafter.buffers()
    assert theirs["features"].shape == theirs["hidden"].shape == (1, 5)
    assert not any(name.endswith(".2") for name in theirs)
    for layer, target_layer in ((0, 0), (1, 3)):
        for kind in ("key", "value"):
            array = ours[f"{kind}.{target_layer}"]
            assert theirs[f"{kind}.{layer}"].ctypes.data == array.ctypes.data
            assert theirs[f"{kind}.{layer}"].shape == array.shape == (1, 2, 16, 8)
    del target, ours
    theirs["key.1"][...] = 1.5  # under a sanitizer this would tell
    assert drafter.buffers()["key.1"].sum() == 1.5 * 2 * 16 * 8


def test_totals_count_the_drafters_time() -> None:
    _, _, engine = pair()
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


def test_no_decoder() -> None:
    with pytest.raises(TypeError):
        _core.AttachedDrafter(None)
    with pytest.raises(TypeError):
        _core.AttachedDrafter(TargetToy(TABLE).decoder)
    with pytest.raises(TypeError):
        _core.AttachedDecoder(
            vocabulary=4, head_ids=[], target=None, target_layers=[0], context=4, run=print
        )
