"""Targets that give a row's best token for less than its logits: when they are asked for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batch_toy import Batch
from toy import Toy, near, plain_text, run_stream, stream_options
from toy_pairs import PENALTIES, TABLE

from specdec import _core
from specdec.errors import ModelRunError

PROMPT = [1, 2, 3, 1, 2]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 40}


def engine_of(target: Toy, k: int | None, draft: Toy | None = None) -> Any:
    draft = draft or Toy(near(TABLE, 1))
    drafter = None if k is None else _core.ModelDrafter(draft.decoder)
    engine = _core.Engine(target.decoder, drafter)
    if k is not None:
        engine.set_draft_length(k)
    return engine


@pytest.mark.parametrize("k", [None, 1, 4, _core.AUTO])
def test_a_greedy_text_takes_nothing_else(k: int | None) -> None:
    target = Toy(TABLE, takes_rows=True)
    text = run_stream(engine_of(target, k), PROMPT, stream_options(**GREEDY))
    assert text == plain_text(TABLE, PROMPT, stream_options(**GREEDY))
    assert 0 < target.best_runs == target.runs


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1, "rule": "block"},
        {"temperature": 1, "rule": "coupled"},
        {"temperature": 0, **PENALTIES},
        {"temperature": 0, "logit_bias": [(4, 2.0)]},
    ],
)
def test_whatever_else_takes_logits(options: dict[str, Any]) -> None:
    target = Toy(TABLE, takes_rows=True)
    run_stream(engine_of(target, 3), PROMPT, stream_options(max_tokens=40, **options))
    assert target.best_runs == 1  # the prefill's, of whose logits nobody reads any
    assert target.runs > 5


def test_in_a_batch_one_that_needs_logits_has_them_computed_for_all() -> None:
    batch = Batch(2, "near")
    greedy = stream_options(**GREEDY)
    sampled = stream_options(temperature=1, rule="coupled", max_tokens=20)
    texts = batch.texts([PROMPT, PROMPT], [greedy, sampled])
    assert texts == [plain_text(TABLE, PROMPT, each, takes_rows=True) for each in (greedy, sampled)]
    runs = len(batch.target.steps)
    shared = sum(all(counts) for counts in batch.target.steps)
    assert 0 < batch.target.best_runs <= runs - shared + 1  # and a prefill of both
    alone = Batch(2)
    assert alone.texts([PROMPT, [4]], [greedy, greedy])
    assert alone.target.best_runs == len(alone.target.steps)


@pytest.mark.parametrize("size", [1, 3])
def test_logits_that_are_no_numbers_are_an_error(size: int) -> None:
    """-1 stands for them."""
    batch = Batch(size)
    batch.target.table = np.full_like(batch.target.table, np.nan)
    outcomes = batch.outcomes([PROMPT] * size, [stream_options(**GREEDY)] * size)
    assert len(outcomes) == size
    for _, error in outcomes:
        assert isinstance(error, ModelRunError)
        assert "no finite numbers" in str(error)
