"""Every prompt is written to with every draft length and temperature, in the real runtime."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from specdec import ContextFullError, InvalidInputError, Model, Ngram, Stats
from specdec.benchmark import PromptSet
from specdec.distill.evaluate import Difference, Plan, Run, evaluate_pair
from specdec.distill.evaluate.contest import TARGET_ALONE, contest, differences

PROMPTS = [PromptSet("chat", ("hello", "good evening")), PromptSet("code", ("x = 1",))]
PLAN = Plan(gammas=(2, 3), temperatures=(0.0, 1.0), max_tokens=12, seed=5)


def test_all_settings_are_run(target: Model, drafter: Model) -> None:
    runs = list(contest(target, drafter, PROMPTS, PLAN))
    assert len(runs) == PLAN.texts(3) == 3 * 5
    counts = Counter((run.gamma, run.temperature) for run in runs)
    assert counts == {(0, 0.0): 3, (2, 0.0): 3, (3, 0.0): 3, (2, 1.0): 3, (3, 1.0): 3}
    assert differences(runs) == []
    for run in runs:
        assert len(run.stats.drafted_by_position) <= run.gamma
        assert 0 < len(run.tokens) <= 12
        assert run.stats.tokens - len(run.tokens) == (run.finish_reason == "stop")


def test_without_greedy_text_the_target_does_not_run_alone(target: Model, drafter: Model) -> None:
    plan = replace(PLAN, temperatures=(1.0,))
    runs = list(contest(target, drafter, PROMPTS, plan))
    assert len(runs) == plan.texts(3) == 3 * 2
    assert {run.gamma for run in runs} == {2, 3}


def test_the_seed_decides_the_samples(target: Model, drafter: Model) -> None:
    def tokens(seed: int) -> list[tuple[int, ...]]:
        plan = replace(PLAN, temperatures=(1.0,), seed=seed)
        return [run.tokens for run in contest(target, drafter, PROMPTS, plan)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(2**64 - 1)  # seeds wrap


def test_coupled_samples_do_not_depend_on_the_draft_length(target: Model, drafter: Model) -> None:
    plan = replace(PLAN, temperatures=(1.0,), acceptance="coupled")
    texts: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for run in contest(target, drafter, PROMPTS, plan):
        texts.setdefault((run.kind, run.prompt), set()).add(run.tokens)
    assert [len(found) for found in texts.values()] == [1, 1, 1]


def test_candidates_for_each_position(target: Model, drafter: Model) -> None:
    runs = list(contest(target, drafter, PROMPTS, replace(PLAN, width=3)))
    assert not differences(runs)
    drafted = [run.stats for run in runs if run.gamma != TARGET_ALONE]
    assert all(stats.checked > 2 * stats.drafted > 0 for stats in drafted)
    report = evaluate_pair(
        target, drafter, PROMPTS, gammas=[2], temperatures=[0], max_tokens=8, width=2
    )
    assert report.plan.width == 2


def test_a_target_that_drafts_for_itself_accepts(target: Model) -> None:
    report = evaluate_pair(target, target, PROMPTS, gammas=[3], temperatures=[0], max_tokens=32)
    cell = report.cell("all", 3, 0)
    first = cell.acceptance[0]
    assert first is not None
    assert first.value > 0.9
    assert cell.block_efficiency.value > 2.5
    assert report.cost_ratio.step_weights == 1.0
    assert cell.mbsu.value == pytest.approx(cell.block_efficiency.value / 4)
    assert report.texts is not None
    assert report.texts.identical
    assert report.texts.compared == 3


def test_the_report_counts_what_the_runtime_counted(target: Model, drafter: Model) -> None:
    report = evaluate_pair(
        target, drafter, PROMPTS, gammas=[3, 2, 3], temperatures=[1], max_tokens=16
    )
    assert report.plan.gammas == (2, 3)
    assert report.texts is None
    total = sum((run.stats for run in report.runs if run.gamma == 3), start=Stats())
    cell = report.cell("all", 3, 1.0)
    assert (cell.rounds, cell.tokens) == (total.rounds, total.tokens)
    assert cell.block_efficiency.value == pytest.approx(total.block_efficiency)
    found = [estimate.value for estimate in cell.unconditional if estimate is not None]
    assert found == pytest.approx(total.acceptance_by_position)
    seconds = total.seconds["draft"] / total.drafted / (total.seconds["verify"] / total.rounds)
    assert cell.step_cost is not None
    assert cell.step_cost.value == pytest.approx(seconds)
    assert cell.plain_step_cost is None
    with pytest.raises(KeyError):
        report.cell("all", 4, 1.0)


def test_drafts_without_a_model(target: Model) -> None:
    report = evaluate_pair(target, Ngram(), PROMPTS, gammas=[2], temperatures=[0], max_tokens=24)
    cell = report.cell("chat", 2, 0.0)
    assert cell.mbsu == cell.block_efficiency
    assert report.machine["draft"] is None


def test_progress_ends_at_one(target: Model, drafter: Model) -> None:
    seen: list[tuple[str, float]] = []
    evaluate_pair(
        target, drafter, PROMPTS, gammas=[2], temperatures=[0], max_tokens=4,
        progress=lambda stage, fraction: seen.append((stage, fraction)),
    )  # fmt: skip
    assert {stage for stage, _ in seen} == {"writing 6 texts"}
    assert [fraction for _, fraction in seen] == pytest.approx([i / 6 for i in range(7)])


def test_a_text_that_differs_is_found() -> None:
    def run(gamma: int, tokens: tuple[int, ...], temperature: float = 0.0) -> Run:
        return Run("chat", 0, gamma, temperature, tokens, "length", Stats())

    runs = [run(0, (1, 2, 3)), run(3, (1, 2, 3)), run(5, (1, 9, 3)), run(8, (1, 2))]
    sampled = run(3, (7, 7, 7), 1.0)
    assert differences([*runs, sampled]) == [
        Difference("chat", 0, 5, 1),
        Difference("chat", 0, 8, 2),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gammas": []}, "no draft lengths are given"),
        ({"gammas": [0]}, "draft_length is 0"),
        ({"gammas": [3, 33]}, "draft_length is 33"),
        ({"temperatures": []}, "no temperatures are given"),
        ({"temperatures": [-1]}, "temperature is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"acceptance": "maybe"}, "acceptance is 'maybe'"),
        ({"acceptance": "greedy"}, "acceptance 'greedy' is for temperature 0"),
    ],
)
def test_bad_arguments(
    target: Model, drafter: Model, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate_pair(target, drafter, PROMPTS, **changes)  # type: ignore[arg-type]


def test_no_prompts(target: Model, drafter: Model) -> None:
    for kinds in ([], [PromptSet("chat", ())]):
        with pytest.raises(InvalidInputError, match="no prompts"):
            evaluate_pair(target, drafter, kinds)


def test_prompts_that_do_not_fit_are_named_before_anything_runs(
    target: Model, drafter: Model
) -> None:
    kinds = [PromptSet("chat", ("hello", "far too long " * 30))]
    with pytest.raises(ContextFullError, match=r"prompt 1 of kind 'chat' has .* context of 256"):
        next(contest(target, drafter, kinds, PLAN))
