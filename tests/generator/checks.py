"""What the generators' tests write, and what must hold after every stream."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import specdec.session
from specdec import Chunk, Generator, Model, Result, SamplingParams
from specdec._core import Decoder

END = 2  # the tiny tokenizer's end of a turn
GREEDY = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, seed=11, max_tokens=32, ignore_eos=True)
PROMPT = "the quick brown fox"

DECODERS: weakref.WeakKeyDictionary[Generator, list[Decoder]] = weakref.WeakKeyDictionary()
"""Of each ``generator`` of a test: the target's, then the drafter's."""


def fresh_text(target: Model, prompt: Any, params: SamplingParams) -> Result:
    return Generator(target, target, draft_length=4).generate(prompt, params)


def check_caches_hold_the_prefix(generator: Generator) -> None:
    """All that was committed but the last token, which the next round runs; or less, never more."""
    known = max(len(generator._engine.tokens) - 1, 0)
    for decoder in DECODERS[generator]:
        assert decoder.length <= known
    if generator.stats.tokens:
        assert DECODERS[generator][0].length == known


def check_unharmed(generator: Generator, target: Model) -> None:
    """The next texts are those of a Generator that never saw the interruption."""
    check_caches_hold_the_prefix(generator)
    for params in (GREEDY, SAMPLED):
        for prompt in (PROMPT, PROMPT + " jumps", "over the lazy dog"):
            found = generator.generate(prompt, params)
            assert found.tokens == fresh_text(target, prompt, params).tokens
    # What the interrupted stream left in the caches is used, and is right.
    again = generator.generate(generator._engine.tokens[:-5], GREEDY)
    assert again.stats.prefilled_tokens <= 5


def close(stream: Iterator[Chunk]) -> None:
    stream.close()  # type: ignore[attr-defined]


def run_before(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], None]) -> list[int]:
    """Calls action(i) inside the i-th step from now on, target's or drafter's; returns [count]."""
    original = specdec.session._Runner.__call__
    count = [0]

    def call(self: Any, width: int, first_logit_row: int) -> None:
        count[0] += 1
        action(count[0])
        original(self, width, first_logit_row)

    monkeypatch.setattr(specdec.session._Runner, "__call__", call)
    return count
