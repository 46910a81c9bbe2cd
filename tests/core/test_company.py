"""Sequences that share steps decide together who drafts, who looks and when all are plain."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specdec import _core

Gain = Callable[[int], float | None]


def rounds(company: _core.Company, sequences: int, gain: Gain, count: int) -> list[int]:
    """How many draft in each of so many rounds, if all do who gain or are asked to look."""
    drafting = []
    for _ in range(count):
        company.begin(sequences, gain)
        if company.round == "free":
            gains = [gain(i) for i in range(sequences)]
            drafting.append(sum(expected is not None and expected > 0 for expected in gains))
        else:
            drafting.append(sequences if company.round == "look" else 0)
        company.add(0, drafting[-1])
    return drafting


def shared(company: _core.Company, worth: list[float], step: float) -> Gain:
    """What each draft is worth, less its part of a drafter step."""
    return lambda i: worth[i] - step / company.at(0)


def test_those_draft_who_gain_while_just_they_do() -> None:
    company = _core.Company()
    gain = shared(company, [0.5, 0.5, 0.3, 0.1], 0.9)
    company.begin(4, gain)
    assert company.round == "free"
    # The last would not pay its part of four, nor then the third its part of three.
    assert company.at(0) == 2
    assert [i for i in range(4) if (gain(i) or 0) > 0] == [0, 1]
    company = _core.Company()
    company.begin(4, shared(company, [0.5, 0.5, 0.31, 0.1], 0.9))
    assert company.at(0) == 3


def test_one_that_would_pay_for_all_alone_does_not_draft() -> None:
    company = _core.Company()
    gain = shared(company, [0.5, 0.2, 0.2, 0.2], 0.9)
    company.begin(4, gain)
    assert (gain(0) or 0) < 0


def test_looks_take_a_set_share_of_the_time_and_all_look_together() -> None:
    for loss in (0.06, 0.6):
        drafting = rounds(_core.Company(), 4, lambda _, loss=loss: -loss, 1000)
        assert set(drafting) == {0, 4}
        looks = drafting.count(4)
        assert 0.8 * 1000 * 0.006 < looks * loss < 1000 * 0.006


def test_who_cannot_draft_is_not_counted() -> None:
    assert rounds(_core.Company(), 3, lambda _: None, 500) == [0] * 500
    some = rounds(_core.Company(), 2, lambda i: None if i else -0.06, 1000)
    assert some.count(2) == pytest.approx(1000 * 0.006 / 0.06, rel=0.2)


def test_a_plain_round_comes_now_and_then() -> None:
    drafting = rounds(_core.Company(), 2, lambda _: 0.5, 200)
    assert [i for i, count in enumerate(drafting) if count == 0] == [64, 129, 194]


def test_behind_the_first_draft_company_is_a_mean() -> None:
    company = _core.Company()
    for _ in range(60):
        company.begin(4, lambda _: 1.0)
        company.add(0, 4)
        company.add(1, 1)
        company.add(2, 0)
    assert company.at(0) == 4
    assert company.at(1) == pytest.approx(1, abs=0.01)
    assert company.at(2) == 4
    for _ in range(400):
        company.begin(4, lambda _: 1.0)
        company.add(0, 4)
        company.add(1, 0)
    assert company.at(1) > 3.9
