"""Plans from budgets, and the ids of trimmed heads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from specdec.convert.checkpoint import ModelConfig
from specdec.distill.architecture import (
    Plan,
    chosen_layers,
    coverage,
    frequent_ids,
    parse_size,
    plan_drafter,
    step_weights,
)
from specdec.errors import InvalidInputError

SMOLLM2 = ModelConfig(30, 576, 9, 3, 64, 1536, 49152, 8192, 100000.0, 1e-5, True)
LLAMA2 = ModelConfig(32, 4096, 32, 32, 128, 11008, 32000, 4096, 10000.0, 1e-5, False)
# The whole machinery of a plan on a target that a test can train.
TINY = ModelConfig(4, 128, 4, 4, 32, 384, 300, 256, 10000.0, 1e-5, False)


def test_the_drafter_of_llama_2_comes_out_of_its_size() -> None:
    plan = plan_drafter(LLAMA2, kind="standalone", size=parse_size("115m"))
    shape = plan.config
    assert (shape.layers, shape.hidden, shape.ffn, shape.heads) == (4, 1024, 2816, 8)
    assert (shape.kv_heads, shape.head_dim) == (8, 128)
    assert plan.own_embedding
    assert plan.head_size == 32000
    # 2 * 32000 * 1024 + 4 * (4 * 1024^2 + 3 * 1024 * 2816 + 2 * 1024) + 1024
    assert plan.parameters == 116_925_440
    assert plan.cost == pytest.approx(84_148_224 / 6_607_077_376, rel=1e-3)


def test_a_quarter_of_a_step_is_four_spread_layers() -> None:
    plan = plan_drafter(SMOLLM2, cost=0.16)
    assert plan.kind == "attached"
    assert plan.target_layers == (0, 10, 20, 29)
    assert plan.head_size == 8192
    assert plan.step_weights == 4 * 3_538_944 + 3 * 2 * 576**2 + 8192 * 576
    assert step_weights(SMOLLM2) == 134_479_872
    assert not plan.own_embedding
    assert plan_drafter(SMOLLM2, cost=0.16, kind="standalone").target_layers == (0, 1, 15, 29)


def test_a_measured_cost_counts_for_more_than_the_weights() -> None:
    plan = plan_drafter(SMOLLM2, cost=0.16, cost_correction=1.4)
    assert plan.config.layers < 4
    assert plan.cost <= 0.16


@pytest.mark.parametrize("budget", [{"size": 10**7}, {"cost": 0.3}, {"cost": 0.08}])
@pytest.mark.parametrize("kind", ["attached", "standalone"])
def test_a_budget_is_kept_and_used(kind: str, budget: dict[str, float]) -> None:
    plan = plan_drafter(SMOLLM2, kind=kind, **budget)  # type: ignore[arg-type]
    assert plan.target_layers is not None
    one_more = chosen_layers(30, plan.config.layers + 1, kind)
    larger = plan_drafter(SMOLLM2, kind=kind, layers=one_more)
    used = (lambda p: p.parameters) if "size" in budget else (lambda p: p.cost)
    limit = next(iter(budget.values()))
    assert used(plan) <= limit < used(larger)


def test_where_no_layer_fits_a_standalone_drafter_is_narrower() -> None:
    plan = plan_drafter(TINY, kind="standalone", size=60_000)
    assert plan.own_embedding
    assert plan.config.hidden < TINY.hidden
    assert plan.config.hidden % 32 == 0
    assert 0.6 < plan.parameters / 60_000 < 1.6
    assert plan.config.unsupported() is None
    by_cost = plan_drafter(LLAMA2, kind="standalone", cost=0.02)
    assert by_cost.own_embedding
    assert 0.01 < by_cost.cost <= 0.02


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="choose a standalone one"):
        plan_drafter(LLAMA2, size=parse_size("115m"))
    with pytest.raises(InvalidInputError, match="not even the smallest"):
        plan_drafter(LLAMA2, kind="standalone", cost=1e-6)
    with pytest.raises(InvalidInputError, match="not even the smallest"):
        plan_drafter(LLAMA2, kind="standalone", size=1000)
    with pytest.raises(InvalidInputError, match="give one of"):
        plan_drafter(SMOLLM2, size=1, cost=0.1)
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        plan_drafter(SMOLLM2, cost=10)
    with pytest.raises(InvalidInputError, match="rows"):
        plan_drafter(SMOLLM2, cost=0.1, head_size=50000)
    with pytest.raises(InvalidInputError, match="ascending"):
        plan_drafter(SMOLLM2, layers=[3, 30])
    with pytest.raises(InvalidInputError, match="no kind"):
        plan_drafter(SMOLLM2, kind="tree", cost=0.1)


@pytest.mark.parametrize("kind", ["attached", "standalone"])
@pytest.mark.parametrize("layers", [2, 3, 7, 30])
def test_chosen_layers_ascend_from_first_to_last(kind: str, layers: int) -> None:
    for count in range(2, layers + 1):
        chosen = chosen_layers(layers, count, kind)
        assert len(chosen) == len(set(chosen)) == count
        assert list(chosen) == sorted(chosen)
        assert (chosen[0], chosen[-1]) == (0, layers - 1)


def test_a_plan_is_shown_and_kept() -> None:
    plan = plan_drafter(SMOLLM2, layers=[0, 10, 20, 29])
    rows = dict(plan.rows())
    assert rows["layers"] == "4 of the target's 30: 0, 10, 20, 29"
    assert rows["rows of the head"] == "8,192 of 49,152"
    assert rows["bridges"] == "3"
    assert rows["parameters"] == "16.2 M"
    assert rows["step"].startswith("15.5%")
    assert Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan
    with pytest.raises(InvalidInputError, match="no drafter's plan"):
        Plan.from_json({"kind": "attached"})


@pytest.mark.parametrize(
    ("text", "size"), [("115m", 115_000_000), ("1.1B", 1_100_000_000), ("500k", 500_000), ("7", 7)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1m", "1g", "0", "1 2m"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is no size"):
        parse_size(text)


def test_heads_hold_the_most_frequent_ids() -> None:
    counts = np.array([0, 5, 9, 1, 5, 0, 7])
    assert frequent_ids(counts, 3).tolist() == [1, 2, 6]
    assert frequent_ids(counts, 4, always=[0, 2]).tolist() == [0, 1, 2, 6]
    assert coverage(counts, np.array([1, 2, 6])) == pytest.approx(21 / 27)
    assert frequent_ids(np.zeros(5, np.int64), 2).tolist() == [0, 1]
    with pytest.raises(InvalidInputError, match="with 2 to keep"):
        frequent_ids(counts, 1, always=[0, 2])
    with pytest.raises(InvalidInputError, match="a head of 8 rows"):
        frequent_ids(counts, 8)
