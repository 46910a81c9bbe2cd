"""The engine's text, over a million tokens for each sampling rule, against the exact chain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference
from attached_toy import AttachedToy, TargetToy
from statistic import SMALLEST_P, chi_square_p, draws, markov_p
from toy import Toy, near, random_table, run_stream, stream_options

from specdec import _core

V = 8
TABLE = random_table(1, V)
HEAD = [0, 1, 3, 4, 6]
RULES = ["token", "block", "coupled"]


def engine_with(drafter: str, capacity: int, table: Any = TABLE) -> tuple[Any, Iterator[int]]:
    """An engine, and the draft length for each of its rounds."""
    toys: dict[str, Any] = {"capacity": capacity}
    target = Toy(table, **toys)
    target.poison = False
    fixed = itertools.repeat
    if drafter == "attached":
        target = TargetToy(table, **toys)
        target.poison = False
        attached = AttachedToy(near(table, 2), target)
        return _core.Engine(target.decoder, _core.AttachedDrafter(attached.decoder)), fixed(4)
    if drafter == "ngram":
        return _core.Engine(target.decoder, _core.NgramDrafter(min_match=1, max_match=3)), fixed(3)
    if drafter == "model":
        draft, lengths = Toy(near(table, 2), **toys), fixed(5)
    elif drafter == "auto":
        draft, lengths = Toy(near(table, 3, 0.1), **toys), fixed(_core.AUTO)
    elif drafter == "mixed":
        draft = Toy(near(table, 3, 0.1), **toys)
        draft.poison = False
        mixed = _core.MixedDrafter(_core.ModelDrafter(draft.decoder), min_match=1, max_match=3)
        return _core.Engine(target.decoder, mixed), fixed(_core.AUTO)
    elif drafter == "trimmed":
        draft = Toy(near(table, 4)[:, :, HEAD], head_ids=HEAD, min_width=2, **toys)
        lengths = fixed(4)
    else:
        # Unrelated to the target, and the length changes while the text is written.
        draft, lengths = Toy(random_table(9, V, 0.3), **toys), itertools.cycle([1, 1, 8, 2, 5, 3])
    draft.poison = False
    return _core.Engine(target.decoder, _core.ModelDrafter(draft.decoder)), lengths


def transitions(tokens: list[int]) -> Any:
    t = np.array(tokens)
    cells = (t[:-2] * V + t[1:-1]) * V + t[2:]
    return np.bincount(cells, minlength=V**3).reshape(V * V, V)


def probabilities(**sampling: Any) -> Any:
    return np.stack([reference.distribution(row, **sampling) for row in TABLE.reshape(-1, V)])


def write(engine: Any, lengths: Iterator[int], options: Any) -> list[int]:
    engine.start([0, 1], options)
    engine.prefill()
    length = None
    while True:
        wanted = next(lengths)
        if wanted != length:
            engine.set_draft_length(wanted)
            length = wanted
        if engine.round().finish != _core.Finish.none:
            return list(engine.tokens)


# A little over a million tokens for each rule.
@pytest.mark.parametrize(
    ("drafter", "tokens"),
    [
        ("model", 200_000),
        ("trimmed", 150_000),
        ("ngram", 250_000),
        ("random", 120_000),
        ("auto", 300_000),
        ("attached", 100_000),
        ("mixed", 340_000),
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_text_follows_the_chain(rule: str, drafter: str, tokens: int) -> None:
    count = draws(tokens)
    engine, lengths = engine_with(drafter, count + 64)
    text = write(engine, lengths, stream_options(rule=rule, max_tokens=count, seed=3))
    assert len(text) == count + 2
    assert markov_p(transitions(text), probabilities()) > SMALLEST_P


@pytest.mark.parametrize("rule", RULES)
def test_truncated_text_follows_the_truncated_chain(rule: str) -> None:
    sampling: dict[str, Any] = {
        "temperature": 0.8,
        "top_k": 6,
        "top_p": 0.9,
        "min_p": 0.05,
        "logit_bias": [(2, 0.7), (5, -1.5)],
    }
    count = draws(60_000)
    engine, lengths = engine_with("model", count + 64)
    options = stream_options(rule=rule, max_tokens=count, seed=4, **sampling)
    tokens = write(engine, lengths, options)
    assert markov_p(transitions(tokens), probabilities(**sampling)) > SMALLEST_P


@pytest.mark.parametrize("rule", RULES)
def test_penalised_text_follows_its_joint_distribution(rule: str) -> None:
    # What a penalty does depends on the whole text: many short texts, every one enumerated.
    v, length = 4, 4
    prompt = [3, 1]
    sampling = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4}
    table = random_table(6, v)
    exact = np.zeros((v,) * length)
    for text in itertools.product(range(v), repeat=length):
        mass = 1.0
        for i, token in enumerate(text):
            before = prompt + list(text[:i])
            row = table[before[-2], before[-1]]
            mass *= reference.distribution(row, prompt, text[:i], **sampling)[token]
        exact[text] = mass
    toys: dict[str, Any] = {"capacity": 16}
    drafter = Toy(near(table, 2), **toys)
    engine = _core.Engine(Toy(table, **toys).decoder, _core.ModelDrafter(drafter.decoder))
    engine.set_draft_length(3)
    observed = np.zeros(exact.shape, np.int64)
    for seed in range(draws(15_000)):
        options = stream_options(rule=rule, max_tokens=length, seed=seed, **sampling)
        observed[tuple(run_stream(engine, prompt, options))] += 1
    assert chi_square_p(observed, exact * observed.sum()) > SMALLEST_P
