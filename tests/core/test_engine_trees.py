"""Rounds with several candidates for a position, on toy models whose graphs take rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attached_toy import AttachedToy, TargetToy
from statistic import SMALLEST_P, draws, markov_p
from toy import Toy, near, plain_text, random_table, run_stream, stream_options

from specdec import _core
from specdec.errors import InvalidInputError

V = 12
TABLE = random_table(21, V)
HEAD = [0, 2, 3, 5, 8, 9, 11]
PROMPT = [1, 2, 3, 1, 2]
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
DRAFTERS = ["near", "random", "trimmed", "one token", "ngram", "short context", "attached"]


class Pair:
    """An engine, and the toys behind it."""

    def __init__(
        self, kind: str, k: int, width: int, *, table: Any = TABLE, **options: Any
    ) -> None:
        options = {"takes_rows": True, **options}
        size = len(table)
        self.draft: Any = None
        if kind == "attached":
            self.target: Toy = TargetToy(table, **options)
            self.draft = AttachedToy(near(table, 1), self.target)
            drafter: Any = _core.AttachedDrafter(self.draft.decoder)
        else:
            self.target = Toy(table, **options)
            if kind == "ngram":
                drafter = _core.NgramDrafter(min_match=1, max_match=3)
            else:
                self.draft = drafter_toy(kind, table, size)
                drafter = _core.ModelDrafter(self.draft.decoder)
        self.engine = _core.Engine(self.target.decoder, drafter)
        self.engine.set_draft_length(k)
        self.engine.set_draft_width(width)


def drafter_toy(kind: str, table: Any, size: int) -> Toy:
    if kind == "near":
        return Toy(near(table, 1), capacity=1 << 20)
    if kind == "random":
        return Toy(random_table(77, size))
    if kind == "trimmed":
        return Toy(near(table, 2)[:, :, HEAD], head_ids=HEAD)
    if kind == "one token":
        return Toy(np.zeros((size, size, 1), np.float32), head_ids=[7])
    assert kind == "short context"
    return Toy(near(table, 3), capacity=40)


# --- the text does not depend on how it was drafted ---


@pytest.mark.parametrize("kind", DRAFTERS)
def test_greedy_text_is_that_of_the_target_alone(kind: str) -> None:
    for extra in ({}, PENALTIES, {"logit_bias": [(4, 2.0), (1, float("-inf"))]}):
        options = stream_options(temperature=0, max_tokens=100, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k, width in ((1, 2), (1, 8), (2, 3), (4, 2), (4, 4), (8, 8), (_core.AUTO, _core.AUTO)):
            pair = Pair(kind, k, width)
            assert run_stream(pair.engine, PROMPT, options) == plain, (k, width, extra)
            assert pair.target.decoder.length == len(pair.engine.tokens) - 1


@pytest.mark.parametrize("kind", DRAFTERS)
def test_coupled_text_is_that_of_the_target_alone(kind: str) -> None:
    for seed, extra in enumerate(({}, PENALTIES, {"top_p": 0.8, "top_k": 7, "min_p": 0.1})):
        options = stream_options(rule="coupled", seed=seed, max_tokens=100, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k, width in ((1, 2), (2, 8), (4, 3), (6, 5), (_core.AUTO, 3), (3, _core.AUTO)):
            pair = Pair(kind, k, width)
            assert run_stream(pair.engine, PROMPT, options) == plain, (k, width, extra)


def test_k_and_width_may_change_at_every_round() -> None:
    rng = np.random.default_rng(3)
    options = stream_options(temperature=0, max_tokens=200)
    pair = Pair("near", 1, 1)
    pair.engine.start(PROMPT, options)
    pair.engine.prefill()
    while True:
        pair.engine.set_draft_length(int(rng.integers(1, 9)))
        pair.engine.set_draft_width(int(rng.integers(1, 9)))
        if pair.engine.round().finish != _core.Finish.none:
            break
    assert pair.engine.tokens == PROMPT + plain_text(TABLE, PROMPT, options)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_same_seed_same_text(rule: str) -> None:
    texts = [
        run_stream(
            Pair("near", 3, 3).engine, PROMPT, stream_options(rule=rule, seed=s, max_tokens=60)
        )
        for s in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_first_candidate_is_that_of_a_chain() -> None:
    # So what comes of the first round's chain does not change with its siblings.
    for rule in ("token", "coupled", "greedy"):
        temperature = 0 if rule == "greedy" else 1
        for seed in range(20):
            options = stream_options(
                rule="token" if rule == "greedy" else rule,
                seed=seed,
                max_tokens=200,
                temperature=temperature,
            )
            seen = []
            for width in (1, 4):
                pair = Pair("near", 4, width)
                pair.engine.start(PROMPT, options)
                pair.engine.prefill()
                pair.engine.round()
                seen.append(pair.target.tokens[:5].tolist())
            assert seen[0] == seen[1]
