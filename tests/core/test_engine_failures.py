"""Streams that are cancelled or break, and input that the engine refuses, on toy models."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from toy import Toy, near, plain_text, run_stream, stream_options
from toy_pairs import PROMPT, TABLE, Broken, V, drafter_of, drafter_toy

from specdec import _core
from specdec.errors import InvalidInputError, ModelRunError

# --- cancelling ---


def test_cancel_stops_before_the_next_round() -> None:
    target, draft = Toy(TABLE), drafter_toy("near")
    engine = _core.Engine(target.decoder, _core.ModelDrafter(draft.decoder))
    options = stream_options(temperature=0, max_tokens=40)
    engine.start(PROMPT, options)
    engine.prefill()
    engine.round()
    engine.cancel()
    result = engine.round()
    assert result.finish == _core.Finish.cancelled
    assert result.tokens == []
    assert target.decoder.length == len(engine.tokens) - 1
    assert draft.decoder.length <= len(engine.tokens) - 1
    with pytest.raises(InvalidInputError, match="no stream is running"):
        engine.round()
    assert run_stream(engine, PROMPT, options) == plain_text(TABLE, PROMPT, options)


def test_cancel_from_another_thread() -> None:
    toy = Toy(TABLE, capacity=1_000_000)
    toy.poison = False
    engine = _core.Engine(toy.decoder, _core.NgramDrafter(min_match=1, max_match=2))
    engine.start(PROMPT, stream_options())
    engine.prefill()
    lengths_set = 0

    def meddle() -> None:
        nonlocal lengths_set
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            engine.set_draft_length(1 + lengths_set % 8)
            lengths_set += 1
            time.sleep(0.0005)
        engine.cancel()

    thread = threading.Thread(target=meddle)
    thread.start()
    while (result := engine.round()).finish == _core.Finish.none:
        pass
    thread.join()
    assert result.finish == _core.Finish.cancelled
    assert lengths_set > 0
    assert toy.decoder.length == len(engine.tokens) - 1


def test_cancel_during_prefill() -> None:
    prompt = [int(x) for x in np.random.default_rng(1).integers(0, V, 41)]
    for model in ("target", "drafter"):
        target = Toy(TABLE, max_width=9, min_width=2)
        draft = Toy(near(TABLE, 1), max_width=9, min_width=2)
        engine = _core.Engine(target.decoder, _core.ModelDrafter(draft.decoder))
        toy = target if model == "target" else draft
        toy.before_run = lambda run, engine=engine: engine.cancel() if run == 2 else None
        options = stream_options(temperature=0, max_tokens=30)
        engine.start(prompt, options)
        engine.prefill()
        assert toy.decoder.length == 18  # the step that runs is finished, no other is begun
        assert engine.round().finish == _core.Finish.cancelled
        assert run_stream(engine, prompt, options) == plain_text(TABLE, prompt, options)
        if model == "target":
            assert engine.totals.prefilled_tokens == 40 - 18


# --- failures ---


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("failing", ["target", "drafter"])
@pytest.mark.parametrize("run", [1, 2, 3, 5, 6, 7, 8, 11])
def test_a_failing_run_leaves_the_committed_prefix(
    failing: str, run: int, temperature: float
) -> None:
    # The prompt of 20 takes 3 steps of prefill: runs 1 to 3 fail there, later ones in a round.
    prompt = [int(x) for x in np.random.default_rng(2).integers(0, V, 20)]
    target, draft = Toy(TABLE, max_width=9), Toy(near(TABLE, 1), max_width=9, min_width=2)
    toy = target if failing == "target" else draft
    engine = _core.Engine(target.decoder, _core.ModelDrafter(draft.decoder))
    engine.set_draft_length(4)
    options = stream_options(rule="coupled", temperature=temperature, seed=1, max_tokens=40)

    def fail(number: int) -> None:
        if number == run:
            raise Broken("the model broke")

    toy.before_run = fail
    text: list[int] = []

    def stream() -> None:
        engine.start(prompt, options)
        engine.prefill()
        while True:
            result = engine.round()
            text.extend(result.tokens)
            assert result.finish == _core.Finish.none

    with pytest.raises(Broken, match="the model broke"):
        stream()
    committed = engine.tokens
    assert committed == prompt + text
    if run > 3:
        assert target.decoder.length == len(committed) - 1
    for decoder, cache in ((target.decoder, target.keys), (draft.decoder, draft.keys)):
        assert decoder.length <= len(committed) - 1
        assert cache[: decoder.length].tolist() == committed[: decoder.length]
    with pytest.raises(InvalidInputError, match="no stream is running"):
        engine.round()

    toy.before_run = None
    plain = plain_text(TABLE, prompt, options)
    assert plain[: len(text)] == text
    assert run_stream(engine, prompt, options) == plain
    # And on from where it broke.
    assert run_stream(engine, committed, options) == plain_text(TABLE, committed, options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("failing", ["target", "drafter"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers(failing: str, temperature: float, bad: float) -> None:
    target, draft = Toy(TABLE), drafter_toy("near")
    toy = target if failing == "target" else draft
    engine = _core.Engine(target.decoder, _core.ModelDrafter(draft.decoder))
    engine.set_draft_length(3)
    options = stream_options(rule="coupled", temperature=temperature, max_tokens=40)
    whole = toy.rows

    def spoil(number: int) -> None:
        toy.rows = np.full_like(whole, bad) if number == 5 else whole

    toy.before_run = spoil
    with pytest.raises(ModelRunError, match="no finite numbers"):
        run_stream(engine, PROMPT, options)
    assert target.decoder.length == len(engine.tokens) - 1
    assert draft.decoder.length <= len(engine.tokens) - 1
    toy.before_run, toy.rows = None, whole
    assert run_stream(engine, PROMPT, options) == plain_text(TABLE, PROMPT, options)


def test_minus_infinity_is_never_drawn() -> None:
    table = TABLE.copy()
    table[:, :, ::2] = -np.inf
    for rule in ("token", "block", "coupled"):
        engine = _core.Engine(Toy(table).decoder, drafter_of("near"))
        engine.set_draft_length(5)
        text = run_stream(engine, PROMPT, stream_options(rule=rule, max_tokens=400, seed=1))
        assert all(token % 2 == 1 for token in text)


def test_invalid_input() -> None:
    toy = Toy(TABLE)
    engine = _core.Engine(toy.decoder, drafter_of("near"))
    for k in (0, -2, 33, 10**6):
        with pytest.raises(InvalidInputError, match=f"draft_length is {k};"):
            engine.set_draft_length(k)
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        engine.start([], stream_options())
    for token in (-1, V, 10**6):
        with pytest.raises(InvalidInputError, match=f"prompt token 1 is {token}, outside"):
            engine.start([0, token], stream_options())
    with pytest.raises(InvalidInputError, match="no stream is running"):
        engine.round()
    with pytest.raises(InvalidInputError, match="acceptance is"):
        stream_options(rule="nonsense")
    # A refused prompt changes nothing.
    options = stream_options(temperature=0, max_tokens=20)
    engine.start(PROMPT, options)
    engine.prefill()
    text = list(engine.round().tokens)
    with pytest.raises(InvalidInputError):
        engine.start([V], options)
    while (result := engine.round()).finish == _core.Finish.none:
        text += result.tokens
    text += result.tokens
    assert text == plain_text(TABLE, PROMPT, options)


@pytest.mark.parametrize(
    "head_ids", [[0, 0], [3, 1], [-1, 2], [0, V], [*list(range(V)), V]], ids=str
)
def test_bad_head_ids(head_ids: list[int]) -> None:
    with pytest.raises(InvalidInputError):
        Toy(np.zeros((V, V, len(head_ids)), np.float32), head_ids=head_ids)


@pytest.mark.parametrize(
    "sizes",
    [
        {"min_width": 0},
        {"min_width": 3},
        {"min_width": 2, "max_width": 1},
        {"max_logit_rows": 0},
        {"min_width": 2, "max_logit_rows": 1},  # a padded step has more rows than that
        {"capacity": 1},
    ],
    ids=str,
)
def test_bad_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        Toy(TABLE, **sizes)


def test_no_decoder() -> None:
    with pytest.raises(TypeError):
        _core.Engine(None, None)
    with pytest.raises(TypeError):
        _core.ModelDrafter(None)


@pytest.mark.parametrize("sizes", [(0, 1), (3, 2), (-1, -1)])
def test_bad_ngram_sizes(sizes: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError):
        _core.NgramDrafter(*sizes)
