"""Whole streams on models of fixed shape: the text is that of a model with any other cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fixed_toy import FixedToy
from toy import Toy, near, plain_text, random_table, run_stream, stream_options

from specdec import _core
from specdec.errors import InvalidInputError

V = 12
SINK = 1
TABLE = random_table(21, V)
HEAD = [0, 2, 3, 5, 8, 9, 11]
PROMPT = [SINK, 2, 3, 1, 2]
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
GREEDY = stream_options(temperature=0, max_tokens=80)

KINDS: dict[str, dict[str, Any]] = {
    "uint8": {"kv_bytes": 1},
    "float16": {"kv_bytes": 2, "float16": True},
    "sink": {"sink": SINK},
    "best": {"has_best": True},
    "sink, best": {"sink": SINK, "has_best": True},
}


def engine_of(
    target: FixedToy | Toy, drafter: FixedToy | Toy | None, k: int | None = None
) -> _core.Engine:
    engine = _core.Engine(target.decoder, drafter and _core.ModelDrafter(drafter.decoder))
    if k is not None:
        engine.set_draft_length(k)
    return engine


def plain(toy: FixedToy, options: Any, prompt: list[int] = PROMPT, **toy_options: Any) -> list[int]:
    """By a model of the other kind, with the logits that this one's stand for."""
    return plain_text(toy.table, prompt, options, **toy_options)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_that_of_the_target_alone(kind: str) -> None:
    for options in (
        GREEDY,
        stream_options(temperature=0, max_tokens=60, **PENALTIES),
        stream_options(temperature=0, max_tokens=60, logit_bias=[(4, 2.0)]),
        stream_options(rule="coupled", seed=3, max_tokens=60),
        stream_options(rule="coupled", seed=4, max_tokens=60, top_p=0.8, top_k=7, **PENALTIES),
    ):
        target = FixedToy(TABLE, **KINDS[kind])
        text = plain(target, options)
        assert run_stream(engine_of(target, None), PROMPT, options) == text
        for k in (1, 3, 4, 8, 31, _core.AUTO):
            drafter = FixedToy(near(TABLE, 1), **KINDS[kind])
            engine = engine_of(FixedToy(TABLE, **KINDS[kind]), drafter, k)
            assert run_stream(engine, PROMPT, options) == text, k


@pytest.mark.parametrize("k", range(1, 32))
def test_every_draft_length(k: int) -> None:
    target, drafter = FixedToy(TABLE, sink=SINK), FixedToy(near(TABLE, 1), widths=(2, 6))
    assert run_stream(engine_of(target, drafter, k), PROMPT, GREEDY) == plain(target, GREEDY)
    assert target.past_tokens(target.decoder.length) == (PROMPT + plain(target, GREEDY))[:-1]


def test_a_drafter_of_either_kind() -> None:
    options = stream_options(rule="coupled", seed=9, max_tokens=60)
    fixed = FixedToy(TABLE)
    blurred = near(fixed.table, 1)
    for drafter in (Toy(blurred), Toy(blurred[:, :, HEAD], head_ids=HEAD)):
        assert run_stream(engine_of(fixed, drafter, 5), PROMPT, options) == plain(fixed, options)
    for drafter in (FixedToy(blurred), FixedToy(blurred[:, :, HEAD], head_ids=HEAD)):
        engine = engine_of(Toy(fixed.table), drafter, 5)
        assert run_stream(engine, PROMPT, options) == plain(fixed, options)
        assert engine.totals.accepted_at[0] > 0


def test_block_verification_runs_too() -> None:
    options = stream_options(rule="block", seed=9, max_tokens=60)
    in_place = Toy(FixedToy(TABLE).table), Toy(FixedToy(near(TABLE, 1)).table)
    text = run_stream(engine_of(*in_place, 4), PROMPT, options)
    fixed = FixedToy(TABLE), FixedToy(near(TABLE, 1))
    assert run_stream(engine_of(*fixed, 4), PROMPT, options) == text


# --- the argmax in place of the logits ---


@pytest.mark.parametrize("sink", [None, SINK])
def test_greedy_text_takes_no_logits(sink: int | None) -> None:
    target = FixedToy(TABLE[:, :, HEAD], head_ids=HEAD, has_best=True, sink=sink)
    drafter = FixedToy(near(TABLE, 1)[:, :, HEAD[:5]], head_ids=HEAD[:5], has_best=True, sink=sink)
    engine = engine_of(target, drafter, 4)
    text = plain(target, GREEDY, head_ids=HEAD)
    assert run_stream(engine, PROMPT, GREEDY) == text
    assert engine.totals.accepted_at[0] > 0
    for toy in (target, drafter):
        assert set(toy.heads) == {0, 2}
    # From the first token on, where the sink's row has no graph's argmax.
    assert run_stream(engine, PROMPT[:1], GREEDY) == plain(
        target, GREEDY, PROMPT[:1], head_ids=HEAD
    )
    for altered in ({"presence_penalty": 0.1}, {"logit_bias": [(2, 0.1)]}, {"temperature": 1.0}):
        target.heads.clear()
        drafter.heads.clear()
        run_stream(engine, PROMPT, stream_options(**{"temperature": 0, "max_tokens": 9, **altered}))
        assert set(target.heads) | set(drafter.heads) <= {0, 1}


def test_the_graph_breaks_ties() -> None:
    table = np.zeros((V, V, V), np.float32)
    last, first = FixedToy(table, has_best=True), FixedToy(table)
    last.table = np.tile(np.arange(V, dtype=np.float32), (V, V, 1))
    options = stream_options(temperature=0, max_tokens=5)
    assert run_stream(engine_of(last, None), PROMPT, options) == [V - 1] * 5
    assert run_stream(engine_of(first, None), PROMPT, options) == [0] * 5


# --- limits and reuse ---


@pytest.mark.parametrize("kind", KINDS)
def test_many_streams_of_one_engine(kind: str) -> None:
    rng = np.random.default_rng(8)
    target = FixedToy(TABLE, widths=(2, 5, 9), past=70, **KINDS[kind])
    drafter = FixedToy(near(TABLE, 1), widths=(1, 4), past=60, **KINDS[kind])
    engine = engine_of(target, drafter)
    base = [SINK, *(int(x) for x in rng.integers(0, V, 20))]
    for turn in range(40):
        cut = int(rng.integers(1, 20))
        prompt = base[:cut] + [int(x) for x in rng.integers(0, V, rng.integers(0, 6))]
        options = stream_options(
            rule="coupled", temperature=float(turn % 2), seed=turn, max_tokens=turn % 3 * 10
        )
        engine.set_draft_length(int(rng.integers(1, 9)))
        if turn % 3 == 0:  # leave a stream in the middle
            engine.start(prompt, options)
            engine.prefill()
            engine.round()
        text = run_stream(engine, prompt, options)
        assert text == plain(target, options, prompt, capacity=70)
        if options.max_tokens == 0:
            assert len(prompt) + len(text) == engine.max_context == 70


@pytest.mark.parametrize("failing", ["target", "drafter"])
@pytest.mark.parametrize("run", [1, 2, 3, 4, 6, 9])
def test_a_failing_run_leaves_the_committed_prefix(failing: str, run: int) -> None:
    target, drafter = FixedToy(TABLE, widths=(8,)), FixedToy(near(TABLE, 1), widths=(8,))
    engine = engine_of(target, drafter, 3)
    prompt = [SINK, *PROMPT * 3]

    def fail(number: int) -> None:
        if number == run:
            raise OSError("the model broke")

    (target if failing == "target" else drafter).before_run = fail
    with pytest.raises(OSError, match="the model broke"):
        run_stream(engine, prompt, GREEDY)
    committed = engine.tokens
    for toy in (target, drafter):
        length = toy.decoder.length
        assert length <= len(committed) - 1
        assert toy.past_tokens(length) == committed[:length]
        toy.before_run = None
    assert run_stream(engine, prompt, GREEDY) == plain(target, GREEDY, prompt)


def test_a_refused_first_token_changes_nothing() -> None:
    target = FixedToy(TABLE, sink=SINK)
    engine = engine_of(target, None)
    engine.start(PROMPT, GREEDY)
    engine.prefill()
    text = list(engine.round().tokens)
    with pytest.raises(InvalidInputError, match="must begin with token 1"):
        engine.start([2, 3], GREEDY)
    while (result := engine.round()).finish == _core.Finish.none:
        text += result.tokens
    assert text + result.tokens == plain(target, GREEDY)


def test_a_drafter_sits_out_texts_it_cannot_begin() -> None:
    target, drafter = FixedToy(TABLE), FixedToy(near(TABLE, 1), sink=SINK)
    engine = engine_of(target, drafter, 4)
    other = [5, *PROMPT]
    assert run_stream(engine, other, GREEDY) == plain(target, GREEDY, other)
    assert sum(engine.totals.drafted_at) == 0
    assert run_stream(engine, PROMPT, GREEDY) == plain(target, GREEDY)
    assert sum(engine.totals.accepted_at) > 0
    assert run_stream(engine, other, GREEDY) == plain(target, GREEDY, other)
    assert drafter.decoder.length == 0
