"""A drafter that looks up or asks its model: the same text, from both sources in one stream."""

from __future__ import annotations

from typing import Any

import pytest
from attached_toy import AttachedToy, TargetToy
from toy import Toy, near, plain_text, random_table, stream_options

from specdec import _core

V = 12
TABLE = random_table(11, V, 4.0)  # so sure of itself that texts repeat
LENGTH = 600


def mixed(kind: str) -> tuple[Any, Any]:
    """An engine, and the toy of its drafter's model."""
    target: Any
    if kind == "attached":
        target = TargetToy(TABLE, capacity=LENGTH + 40)
        toy: Any = AttachedToy(near(TABLE, 2), target)
        model: Any = _core.AttachedDrafter(toy.decoder)
    else:
        target = Toy(TABLE, capacity=LENGTH + 40)
        toy = Toy(near(TABLE, 2), capacity=LENGTH + 40)
        model = _core.ModelDrafter(toy.decoder)
    drafter = _core.MixedDrafter(model, min_match=2, max_match=4)
    return _core.Engine(target.decoder, drafter), toy


@pytest.mark.parametrize("kind", ["attached", "standalone"])
@pytest.mark.parametrize(("rule", "temperature"), [("greedy", 0.0), ("coupled", 1.0)])
def test_text_is_that_of_plain_decoding(kind: str, rule: str, temperature: float) -> None:
    options = stream_options(rule=rule, temperature=temperature, seed=7, max_tokens=LENGTH)
    engine, toy = mixed(kind)
    engine.set_draft_length(_core.AUTO)
    engine.start([0, 1], options)
    engine.prefill()
    text: list[int] = []
    looked_up = modelled = accepted = 0
    finish = _core.Finish.none
    while finish == _core.Finish.none:
        runs, drafted = toy.decoder.run_seconds, sum(engine.totals.drafted_at)
        result = engine.round()
        text += result.tokens
        finish = result.finish
        if sum(engine.totals.drafted_at) > drafted:
            asked = toy.decoder.run_seconds > runs
            positions = sum(engine.totals.drafted_at) - drafted
            modelled += asked * positions
            looked_up += (not asked) * positions
            accepted += (not asked) * result.drafted
    assert text == plain_text(TABLE, [0, 1], options, capacity=LENGTH + 40)
    assert modelled > 0
    assert looked_up > 0
    assert engine.totals.looked_up == looked_up
    assert engine.totals.looked_up_accepted == accepted


def test_a_set_draft_length_asks_the_model() -> None:
    engine, toy = mixed("standalone")
    engine.set_draft_length(3)
    options = stream_options(rule="greedy", temperature=0.0, max_tokens=60)
    engine.start([0, 1], options)
    engine.prefill()
    while True:
        runs = toy.runs
        result = engine.round()
        if result.finish != _core.Finish.none:
            break
        assert toy.runs > runs
