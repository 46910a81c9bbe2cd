"""From counts to figures, all of them worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specdec import Model, Ngram, Stats
from specdec.distill.evaluate.contest import Run
from specdec.distill.evaluate.figures import (
    CostRatio,
    Estimate,
    Sample,
    cost_ratio,
    memory_bound_speed_up,
    parameters,
    step_weights,
    summarise,
)

COSTS = CostRatio(step_weights=0.1, parameters=0.25)


def run(
    prompt: int,
    drafted: tuple[int, ...],
    accepted: tuple[int, ...],
    *,
    rounds: int,
    kind: str = "chat",
    gamma: int = 2,
    temperature: float = 1.0,
    seconds: tuple[float, float] = (0.0, 0.0),
) -> Run:
    """A text whose rounds each committed one token more than they accepted."""
    stats = Stats(
        rounds=rounds,
        tokens=rounds + sum(accepted),
        drafted=sum(drafted),
        accepted=sum(accepted),
        drafted_by_position=drafted,
        accepted_by_position=accepted,
        seconds={"draft": seconds[0], "verify": seconds[1]},
    )
    return Run(kind, prompt, gamma, temperature, tuple(range(stats.tokens)), "length", stats)


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


def test_figures_of_one_text() -> None:
    # 10 rounds: one without drafts, one with a single draft, 8 with two. Of 9 first drafts 6 were
    # accepted, of 8 second ones 2; 10 + 8 tokens in 10 target steps.
    text = run(0, (9, 8), (6, 2), rounds=10, seconds=(1.7, 5.0))
    plain = run(0, (), (), rounds=20, gamma=0, temperature=0.0, seconds=(0.0, 4.0))
    (cell,) = (c for c in summarise([plain, text], COSTS, seed=0) if c.temperature == 1.0)
    assert (cell.kind, cell.gamma, cell.prompts) == ("chat", 2, 1)
    assert (cell.rounds, cell.tokens) == (10, 18)
    assert cell.block_efficiency == Estimate(1.8, None, None)
    assert value(cell.mbsu) == pytest.approx(1.8 / (1 + 2 * 0.1))
    assert value(cell.mbsu_parameters) == pytest.approx(1.8 / (1 + 2 * 0.25))
    assert [value(e) for e in cell.unconditional] == pytest.approx([6 / 9, 2 / 8])
    assert [value(e) for e in cell.acceptance] == pytest.approx([6 / 9, (2 / 8) / (6 / 9)])
    # A draft took 1.7 s / 17, a target step with drafts .5 s, one without .2 s.
    assert value(cell.step_cost) == pytest.approx(0.1 / 0.5)
    assert value(cell.plain_step_cost) == pytest.approx(0.1 / 0.2)


def test_counts_are_pooled_over_prompts() -> None:
    texts = [run(0, (10, 10), (10, 10), rounds=10), run(1, (30, 30), (0, 0), rounds=30)]
    (cell,) = summarise(texts, COSTS, seed=0)
    assert value(cell.block_efficiency) == pytest.approx(60 / 40)  # and not (3 + 1) / 2
    assert [value(e) for e in cell.acceptance] == pytest.approx([0.25, 1.0])


def test_a_position_that_nothing_reached_has_no_figure() -> None:
    texts = [run(prompt, (5, 5), (0, 0), rounds=5) for prompt in range(3)]
    (cell,) = summarise(texts, COSTS, seed=0)
    assert cell.acceptance == (Estimate(0.0, 0.0, 0.0), None)
    assert cell.unconditional == (Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0))
    assert cell.step_cost is None
    assert cell.plain_step_cost is None


def test_texts_too_short_for_all_drafts_are_counted() -> None:
    short = run(0, (1,), (1,), rounds=1)  # no round had a second draft
    (cell,) = summarise([short, run(1, (4, 4), (3, 1), rounds=4)], COSTS, seed=0)
    assert [value(e) for e in cell.unconditional] == pytest.approx([4 / 5, 1 / 4])


def test_cells_are_by_temperature_kind_and_draft_length_and_all_kinds_together() -> None:
    texts = [
        run(prompt, (4,) * gamma, (2,) * gamma, rounds=4, kind=kind, gamma=gamma, temperature=t)
        for kind in ("chat", "code")
        for prompt in range(2)
        for t in (0.0, 1.0)
        for gamma in (3, 5)
    ]
    cells = summarise(texts, COSTS, seed=0)
    assert [(cell.temperature, cell.kind, cell.gamma) for cell in cells] == [
        (t, kind, gamma) for t in (0.0, 1.0) for kind in ("chat", "code", "all") for gamma in (3, 5)
    ]
    assert [cell.prompts for cell in cells[:6]] == [2, 2, 2, 2, 4, 4]


def test_memory_bound_speed_up() -> None:
    assert memory_bound_speed_up(2.3, 3, 0.0164) == pytest.approx(2.3 / 1.0492)
    assert memory_bound_speed_up(1.0, 8, 0.0) == 1.0  # drafts that cost nothing and bring nothing


def first(sums: np.ndarray) -> np.ndarray:
    return sums[:, [0]]


def test_the_bootstrap_of_two_prompts_is_known() -> None:
    # Drawn twice from {0, 10}: the sum is 0, 10 or 20, with 1/4, 1/2 and 1/4.
    sample = Sample(np.array([[0.0], [10.0]]), ["a", "a"], seed=1)
    assert sample.estimate(first) == Estimate(10.0, 0.0, 20.0)


def test_prompts_are_drawn_again_within_their_kind() -> None:
    counts = np.array([[0.0], [0.0], [10.0], [10.0]])
    assert Sample(counts, ["a", "a", "b", "b"], seed=1).estimate(first) == Estimate(20, 20, 20)
    mixed = Sample(counts, ["a"] * 4, seed=1).estimate(first)
    assert mixed is not None
    assert (mixed.low, mixed.high) == (0.0, 40.0)


def test_one_prompt_has_no_interval() -> None:
    assert Sample(np.array([[3.0]]), ["a"], seed=1).estimate(first) == Estimate(3.0, None, None)
    lone = Sample(np.array([[1.0], [2.0], [4.0]]), ["a", "a", "b"], seed=1)
    assert lone.estimate(first) == Estimate(7.0, None, None)


def test_the_interval_is_the_normal_one_for_many_prompts() -> None:
    values = np.random.default_rng(7).normal(5.0, 2.0, size=(400, 1))
    columns = np.hstack([values, np.ones_like(values)])
    sample = Sample(columns, ["a"] * 400, seed=3)
    estimate = sample.estimate(lambda sums: sums[:, [0]] / sums[:, [1]])
    assert estimate is not None
    half = 1.96 * values.std() / np.sqrt(400)
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_seed_decides() -> None:
    texts = [run(i, (9, 9), (i, i // 2), rounds=9) for i in range(8)]
    assert summarise(texts, COSTS, seed=4) == summarise(texts, COSTS, seed=4)
    assert summarise(texts, COSTS, seed=4) != summarise(texts, COSTS, seed=5)


def test_sizes_of_the_tiny_pair(tiny_target: Path, tiny_drafter: Path) -> None:
    # hidden 64, 4 heads of 16 with 2 of keys and values, FFN 128, 300 tokens, tied heads; the
    # drafter has one layer for two, and 200 rows in its head.
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    target, draft = Model.load(tiny_target), Model.load(tiny_drafter)
    assert step_weights(target.config) == 2 * layer + 300 * 64
    assert step_weights(draft.config) == layer + 200 * 64
    assert parameters(target.config) == 2 * layer + 5 * 64 + 300 * 64
    assert parameters(draft.config) == layer + 3 * 64 + 300 * 64
    ratio = cost_ratio(target, draft)
    assert ratio.step_weights == (layer + 200 * 64) / (2 * layer + 300 * 64)
    assert ratio.parameters == (layer + 3 * 64 + 300 * 64) / (2 * layer + 5 * 64 + 300 * 64)
    assert cost_ratio(target, Ngram()) == CostRatio(0.0, 0.0)


def test_sizes_of_an_attached_drafter_hold_its_bridges(
    tiny_drafter: Path, tiny_attached: Path
) -> None:
    # One layer as tiny_drafter has, and a bridge before it: weight [64, 128], scale and bias [64].
    standalone, attached = Model.load(tiny_drafter), Model.load(tiny_attached)
    assert attached.config.head_size == standalone.config.head_size
    assert step_weights(attached.config) == step_weights(standalone.config) + 64 * 128
    assert parameters(attached.config) == parameters(standalone.config) + 64 * 130


def test_acceptance_is_at_most_one() -> None:
    # Two of three first drafts were accepted; the only round with a second one accepted it.
    (cell,) = summarise([run(0, (3, 1), (2, 1), rounds=3)], COSTS, seed=0)
    assert [value(e) for e in cell.acceptance] == pytest.approx([2 / 3, 1.0])
