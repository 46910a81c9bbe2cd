"""Attached drafters: streams that are cancelled or break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy import plain_text, run_stream, stream_options
from toy_pairs import PROMPT, TABLE, Broken, V, attached_pair

from specdec import _core
from specdec.errors import ModelRunError


def test_cancel_during_a_prefill_and_between_rounds() -> None:
    prompt = [int(x) for x in np.random.default_rng(1).integers(0, V, 41)]
    options = stream_options(temperature=0, max_tokens=30)
    plain = plain_text(TABLE, prompt, options)
    target, draft, engine = attached_pair(max_width=9, min_width=2)
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("failing", ["target", "drafter"])
@pytest.mark.parametrize("run", [1, 2, 3, 4, 5, 6, 7, 11])
def test_a_failing_run_leaves_the_committed_prefix(
    failing: str, run: int, temperature: float
) -> None:
    prompt = [int(x) for x in np.random.default_rng(2).integers(0, V, 20)]
    target, draft, engine = attached_pair(max_width=9)
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
    target, draft, engine = attached_pair()
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
