"""What counts as a loop, as repetitive, and as the same conversation."""

from __future__ import annotations

import numpy as np
import pytest

from specdec.distill.write.conversation import ANSWER, TEMPLATE, USER, spans
from specdec.distill.write.loops import looping, repetitive
from specdec.distill.write.quality import signatures


@pytest.mark.parametrize("period", [1, 2, 7, 16, 40, 64])
def test_three_rounds_are_a_loop(period: int) -> None:
    once = list(range(100, 100 + period))
    start = list(range(10))
    assert looping(start + once * max(3, -(-48 // period)))
    assert not looping(start + once * 2)


def test_a_loop_that_was_left_is_none() -> None:
    assert not looping([5] * 60 + [1, 2, 3])


def test_ordinary_text_is_not_repetitive() -> None:
    text = np.random.default_rng(0).integers(0, 500, 300).tolist()
    assert not repetitive(text)
    assert not repetitive(text[:20] * 2)


def test_few_different_runs_are_repetitive() -> None:
    line = list(range(12))
    # Each line ends in a number of its own, so that no stretch comes again in the same way.
    assert repetitive([token for i in range(20) for token in (*line, 1000 + i)])


def test_spans_are_what_the_target_chose() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7]
    roles = [TEMPLATE, USER, USER, TEMPLATE, ANSWER, TEMPLATE, USER]
    assert spans(tokens, roles) == [(USER, [2, 3]), (ANSWER, [5]), (USER, [7])]


def test_the_same_long_answer_to_another_question_is_a_repetition() -> None:
    answer = list(range(40))
    first = signatures([(USER, [1, 2]), (ANSWER, answer)])
    assert first & signatures([(USER, [3]), (ANSWER, [*answer[:32], 99])])
    assert not first & signatures([(USER, [1, 2]), (ANSWER, answer[:20])])


def test_the_same_short_answer_to_another_question_is_none() -> None:
    first = signatures([(USER, [1, 2]), (ANSWER, [7, 8])])
    assert not first & signatures([(USER, [1, 3]), (ANSWER, [7, 8])])
    assert first & signatures([(USER, [1, 2]), (ANSWER, [7, 8])])
