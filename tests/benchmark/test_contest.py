"""Contestants take turns, and every one of them answers everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from specdec import InvalidInputError, Model, Ngram, SamplingParams
from specdec.benchmark import (
    PromptSet,
    contest,
    contestants,
    differences,
    load_prompts,
    shipped_kinds,
)

PROMPTS = [PromptSet("chat", ("hello", "good evening")), PromptSet("code", ("x = 1",))]


def test_contestants(target: Model, drafter: Model) -> None:
    names = [entrant.name for entrant in contestants(drafter, [1, 4])]
    assert names == ["target alone", "k = 1", "k = 4", "auto", "n-gram"]
    assert [entrant.name for entrant in contestants(None, [1, 4])] == ["target alone", "n-gram"]
    names = [entrant.name for entrant in contestants(Ngram(), [2])]
    assert names == ["target alone", "k = 2", "auto"]


@pytest.mark.parametrize(
    ("temperature", "acceptance"), [(0.0, "block"), (1.0, "coupled")], ids=["greedy", "coupled"]
)
def test_everyone_answers_everything_alike(
    target: Model, drafter: Model, temperature: float, acceptance: str
) -> None:
    entrants = contestants(drafter, [1, 3])
    params = SamplingParams(max_tokens=12, temperature=temperature)
    runs = list(contest(target, entrants, PROMPTS, params, repeats=2, acceptance=acceptance))
    counts = Counter((run.contestant, run.kind) for run in runs)
    for entrant in entrants:
        assert (counts[entrant.name, "chat"], counts[entrant.name, "code"]) == (4, 2)
    assert differences(runs) == []
    for run in runs:
        assert run.first_token_seconds > 0
        assert run.decode_seconds > 0
        assert len(run.tokens) in (run.stats.tokens, run.stats.tokens - 1)


def test_turns_begin_with_another_contestant_each_time(target: Model) -> None:
    entrants = contestants(Ngram(), [2])
    params = SamplingParams(max_tokens=2, temperature=0)
    runs = list(contest(target, entrants, PROMPTS, params, repeats=1))
    names = [entrant.name for entrant in entrants]
    turns = [[run.contestant for run in runs[i : i + 3]] for i in range(0, 9, 3)]
    assert turns == [names, names[1:] + names[:1], names[2:] + names[:2]]


def test_every_run_pays_for_its_whole_prompt(target: Model) -> None:
    entrants = contestants(None, [])
    params = SamplingParams(max_tokens=2, temperature=0)
    for run in contest(target, entrants, PROMPTS, params, repeats=2):
        assert run.stats.prefilled_tokens >= run.stats.prompt_tokens - 1


def test_seconds_come_from_the_clock(target: Model) -> None:
    def ticks() -> Iterator[float]:
        second = 0.0
        while True:
            second += 1000.0
            yield second

    seconds = ticks()
    params = SamplingParams(max_tokens=2, temperature=0)
    runs = contest(
        target, contestants(None, []), PROMPTS, params, repeats=1, clock=lambda: next(seconds)
    )
    for run in runs:
        assert run.first_token_seconds == 2000.0
        assert run.decode_seconds == pytest.approx(2000.0 - run.stats.seconds["prefill"])


def test_shipped_prompts() -> None:
    kinds = load_prompts([])
    assert [kind.name for kind in kinds] == shipped_kinds() == ["chat", "rewrite", "code"]
    assert all(len(kind.prompts) >= 4 for kind in kinds)
    rewrite = kinds[1]
    assert all(len(prompt.split()) > 200 for prompt in rewrite.prompts)


def test_own_prompts(tmp_path: Path) -> None:
    lines, kinds = tmp_path / "mine.txt", tmp_path / "more.json"
    lines.write_text("one\n\n  two \n", encoding="utf-8")
    kinds.write_text('{"a": ["x"], "b": ["y", "z"]}', encoding="utf-8")
    assert load_prompts([str(lines), "code", str(kinds)])[0] == PromptSet("mine", ("one", "two"))
    assert load_prompts([str(kinds)]) == [PromptSet("a", ("x",)), PromptSet("b", ("y", "z"))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "neither a kind of prompts"),
        ("bad.json", "{", "not readable as prompts"),
        ("list.json", '["a"]', "must hold prompts by kind"),
        ("empty.json", '{"a": []}', "must hold prompts by kind"),
        ("empty.txt", "\n", "holds no prompts"),
    ],
)
def test_faulty_prompts(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        load_prompts([str(path)])


def test_a_kind_named_twice() -> None:
    with pytest.raises(InvalidInputError, match="named twice"):
        load_prompts(["chat", "chat"])
