"""The schedule, which optimiser moves what, and exact resumption."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from specdec.distill.optim import Optimizer, OptimizerSettings, rate
from specdec.errors import InvalidInputError


class Model(nn.Module):
    """A matrix that Muon takes, and an embedding and a vector that it does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 4)])
        self.embedding = nn.Parameter(torch.randn(5, 6))

    def forward(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(3, 5, generator=generator) @ self.embedding
        return self.layers[0](rows).square().mean()  # type: ignore[no-any-return]


def train(model: Model, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        model(step).backward()
        optimizer.step(step / 10)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_ends_with_the_same_weights(kind: str) -> None:
    settings = OptimizerSettings(kind, learning_rate=0.05, warmup_steps=4, weight_decay=0.1)
    whole = Model()
    train(whole, Optimizer(whole, settings), range(10))
    first = Model()
    optimizer = Optimizer(first, settings)
    train(first, optimizer, range(6))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    second = Model()
    second.load_state_dict(saved["model"])
    resumed = Optimizer(second, settings)
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(6, 10))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert not torch.equal(whole.embedding, Model().embedding)


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    settings = OptimizerSettings(learning_rate=2.0, warmup_steps=4, final_rate=0.1)
    assert [rate(settings, step, 0) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rate(settings, 9, 0.25) == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(settings, 9, 0.5) == pytest.approx(1.0)
    assert rate(settings, 9, 1.0) == rate(settings, 9, 1.5) == pytest.approx(0.2)
    assert rate(OptimizerSettings(learning_rate=2.0, warmup_steps=0), 0, 0) == 2.0


def test_muon_takes_matrices_of_layers_alone() -> None:
    model, other = Model(), Model()
    train(model, Optimizer(model, OptimizerSettings("muon", warmup_steps=0)), range(1))
    train(other, Optimizer(other, OptimizerSettings("adamw", warmup_steps=0)), range(1))
    assert torch.equal(model.embedding, other.embedding)
    assert torch.equal(model.layers[0].bias, other.layers[0].bias)
    assert not torch.equal(model.layers[0].weight, other.layers[0].weight)
    # Muon's step is the gradient with its singular values brought close to each other.
    start = Model()
    start(0).backward()
    moved = (model.layers[0].weight - start.layers[0].weight).detach()
    gradient, step = (torch.linalg.svdvals(x) for x in (start.layers[0].weight.grad, moved))
    assert step[0] / step[2] < 2 < 4 < gradient[0] / gradient[2]


def test_gradients_are_clipped_and_their_norm_told() -> None:
    model = Model()
    optimizer = Optimizer(model, OptimizerSettings(clip=0.5, warmup_steps=0))
    (1000 * model(0)).backward()
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))  # type: ignore[union-attr]
    learning_rate, norm = optimizer.step(0)
    assert norm == pytest.approx(expected, rel=1e-5)
    assert learning_rate == pytest.approx(8e-4)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_that_are_not_finite_change_nothing() -> None:
    model = Model()
    before = copy.deepcopy(model.state_dict())
    optimizer = Optimizer(model, OptimizerSettings())
    (model(0) * math.nan).backward()
    with pytest.raises(FloatingPointError, match="step 0"):
        optimizer.step(0)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert optimizer.steps == 0


def test_another_optimizers_state_is_refused() -> None:
    state = Optimizer(Model(), OptimizerSettings("adamw")).state_dict()
    with pytest.raises(InvalidInputError, match="written with optimizer 'adamw', not 'muon'"):
        Optimizer(Model(), OptimizerSettings("muon")).load_state_dict(state)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "sgd"},
        {"learning_rate": 0.0},
        {"clip": 0.0},
        {"warmup_steps": -1},
        {"final_rate": 2},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        OptimizerSettings(**settings)  # type: ignore[arg-type]
