"""Losses: closed forms, gradients against finite differences, and the chunked loss over a head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from specdec.distill.losses import (
    KINDS,
    Loss,
    compare,
    distillation_loss,
    expected_reward,
    head_log_mass,
    loss_terms,
    target_distribution,
)
from specdec.errors import InvalidInputError

ROWS, HEAD, HIDDEN = 7, 11, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def masses() -> Tensor:
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(9), dtype=torch.float64).log()


def value(kind: str, p: list[float], q: list[float], **settings: float) -> float:
    """The loss of one position with these probabilities."""
    target = target_distribution(torch.tensor([p], dtype=torch.float64).log())
    d = compare(target, torch.tensor([q], dtype=torch.float64).log())
    return loss_terms(d, Loss(kind, **settings)).value.item()


P, Q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
KL = 0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.2 * math.log(1 / 3)
REVERSE = 0.2 * math.log(0.4) + 0.2 * math.log(2 / 3) + 0.6 * math.log(3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kl", KL),
        ("reverse_kl", REVERSE),
        ("tvd", 0.4),
        ("lk", -math.log(0.6)),
        ("lk_mix", math.exp(-3 * 0.6) * KL + (1 - math.exp(-3 * 0.6)) * 0.4),
    ],
)
def test_each_loss_has_its_closed_form(kind: str, expected: float) -> None:
    assert value(kind, P, Q) == pytest.approx(expected, rel=1e-12)
    assert value(kind, P, P) == pytest.approx(0, abs=1e-12)


def test_a_share_of_kl_is_mixed_in() -> None:
    assert value("lk", P, Q, kl_share=0.25) == pytest.approx(0.25 * KL - 0.75 * math.log(0.6))


def test_lk_of_a_certain_target_is_the_cross_entropy() -> None:
    target = target_distribution(torch.tensor([[0.0, -800.0, -800.0]], dtype=torch.float64))
    d = compare(target, torch.tensor([Q], dtype=torch.float64).log())
    terms = loss_terms(d, Loss("lk"))
    assert terms.value.item() == pytest.approx(-math.log(0.2))
    assert terms.slope[0].tolist() == pytest.approx([0.2 - 1, 0.2, 0.6])


def test_disjoint_distributions_give_finite_losses() -> None:
    target = target_distribution(torch.tensor([[0.0, -900.0]], dtype=torch.float64))
    d = compare(target, torch.tensor([[-900.0, 0.0]], dtype=torch.float64))
    for kind in KINDS:
        terms = loss_terms(d, Loss(kind))
        assert torch.isfinite(terms.value).all(), kind
        assert torch.isfinite(terms.slope).all(), kind


def reference(
    kind: Loss, student: Tensor, teacher: Tensor, head: Tensor, weight: Tensor, mass: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss by its definition, for autograd; and the acceptance."""
    q = (student @ head.T / kind.temperature).softmax(-1)
    p = (teacher @ head.T / kind.temperature).softmax(-1)
    m = torch.ones(len(p), dtype=p.dtype) if mass is None else mass.exp()
    true = p * m[:, None]
    alpha = torch.minimum(true, q).sum(-1)
    divergence = m * (p * (p / q).log()).sum(-1)
    share = torch.exp(-kind.eta * alpha).detach()
    mean = ((q * (q < true)).sum(-1) @ weight / weight.sum()).detach()
    losses = {
        "kl": divergence,
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "tvd": 1 - alpha,
        "tvd++": (1 - alpha) / (mean * (1 - mean)).sqrt(),
        "lk": -alpha.log(),
        "lk_mix": share * divergence + (1 - share) * (1 - alpha),
    }
    mixed = kind.kl_share * divergence + (1 - kind.kl_share) * losses[kind.kind]
    return mixed @ weight / weight.sum(), alpha @ weight / weight.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("kl_share", [0.0, 0.3])
def test_the_formed_gradient_is_that_of_the_definition(
    kind: str, temperature: float, trimmed: bool, kl_share: float
) -> None:
    loss = Loss(kind, temperature=temperature, kl_share=kl_share)
    student = random(ROWS, HIDDEN, seed=1).requires_grad_()
    head = random(HEAD, HIDDEN, seed=2).requires_grad_()
    teacher, weight = random(ROWS, HIDDEN, seed=3), random(ROWS, seed=4).abs()
    mass = masses() if trimmed else None
    result = distillation_loss(
        student, teacher, head, weight, loss, log_mass=mass, teacher_head=head.detach(), chunk=3
    )
    result.loss.backward()
    other, rows = student.detach().requires_grad_(), head.detach().requires_grad_()
    # The target's head is the same matrix but no variable.
    q_only = torch.cat([rows, head.detach()], 1)
    expected, acceptance = reference(
        loss,
        torch.cat([other, torch.zeros_like(other)], 1),
        torch.cat([torch.zeros_like(teacher), teacher], 1),
        q_only,
        weight,
        mass,
    )
    expected.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert result.acceptance.tolist() == pytest.approx([acceptance.item()], rel=1e-10)
    torch.testing.assert_close(student.grad, other.grad)
    torch.testing.assert_close(head.grad, rows.grad)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "tvd", "lk"])
def test_the_formed_gradient_is_that_of_finite_differences(kind: str) -> None:
    # lk_mix and tvd++ hold a factor constant, so their losses do not have their gradients.
    student = random(ROWS, HIDDEN, seed=1).requires_grad_()
    head = random(HEAD, HIDDEN, seed=2).requires_grad_()
    teacher, fixed = random(ROWS, HIDDEN, seed=3), random(HEAD, HIDDEN, seed=2)
    weight, mass = random(ROWS, seed=4).abs(), masses()

    def scalar(student: Tensor, head: Tensor) -> Tensor:
        return distillation_loss(
            student, teacher, head, weight, Loss(kind, 0.8), teacher_head=fixed, log_mass=mass
        ).loss

    assert torch.autograd.gradcheck(scalar, (student, head), eps=1e-6, atol=1e-7)


def test_the_advantages_of_tvd_plus_have_mean_zero_and_variance_one() -> None:
    """The policy gradient of the paper, formed over all tokens, is the loss's gradient."""
    logits = random(ROWS, HEAD, seed=1).requires_grad_()
    target = target_distribution(random(ROWS, HEAD, seed=2))
    d = compare(target, logits.detach())
    mean = expected_reward(d).mean()
    deviation = (mean * (1 - mean)).sqrt()
    advantage = ((d.q < d.p).double() - mean) / deviation
    assert (d.q * advantage).sum(-1).mean().item() == pytest.approx(0, abs=1e-12)
    assert (d.q * advantage**2).sum(-1).mean().item() == pytest.approx(1)
    (d.q * -advantage * logits.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(loss_terms(d, Loss("tvd++"), deviation).slope, logits.grad)


def test_unrolled_steps_are_compared_with_the_same_targets_and_added() -> None:
    teacher, weight = random(ROWS, HIDDEN, seed=3), random(ROWS, seed=4).abs()
    head = random(HEAD, HIDDEN, seed=2)
    steps = [random(ROWS, HIDDEN, seed=seed).requires_grad_() for seed in (5, 6)]
    both = distillation_loss(steps, teacher, head, weight, Loss("tvd++"), step_weights=[1, 0.7])
    single = [distillation_loss(step, teacher, head, weight, Loss("tvd++")) for step in steps]
    assert both.loss.item() == pytest.approx((single[0].loss + 0.7 * single[1].loss).item())
    assert both.acceptance.tolist() == pytest.approx([s.acceptance.item() for s in single])
    both.loss.backward()
    second = torch.autograd.grad(0.7 * single[1].loss, steps[1])[0]
    torch.testing.assert_close(steps[1].grad, second)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    teacher, weight = random(ROWS, HIDDEN, seed=3), random(ROWS, seed=4).abs()
    head, student = random(HEAD, HIDDEN, seed=2), random(ROWS, HIDDEN, seed=5).requires_grad_()
    whole = distillation_loss(student, teacher, head, weight, Loss("lk")).loss
    parts = sum(
        distillation_loss(
            student[rows], teacher[rows], head, weight[rows], Loss("lk"), total_weight=weight.sum()
        ).loss
        for rows in (slice(0, 4), slice(4, None))
    )
    assert isinstance(parts, Tensor)
    assert parts.item() == pytest.approx(whole.item())
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (parts, whole)))


def test_mass_outside_a_trimmed_head_is_lost_to_acceptance() -> None:
    full, ids = random(HEAD, HIDDEN, seed=2), torch.tensor([0, 2, 3, 7])
    teacher = random(ROWS, HIDDEN, seed=3)
    log_mass = head_log_mass(teacher, full, full[ids], temperature=0.7, chunk=3)
    p = (teacher @ full.T / 0.7).softmax(-1)
    torch.testing.assert_close(log_mass.exp().double(), p[:, ids].sum(-1), rtol=1e-5, atol=0)
    # A drafter that is the target, renormalised to the head, is accepted as often as it is inside.
    loss, weight = Loss("tvd", temperature=0.7), torch.ones(ROWS, dtype=torch.float64)
    counted = distillation_loss(teacher, teacher, full[ids], weight, loss, log_mass=log_mass)
    assert counted.acceptance.item() == pytest.approx(p[:, ids].sum(-1).mean().item(), rel=1e-5)
    assert distillation_loss(teacher, teacher, full[ids], weight, loss).acceptance.item() == (
        pytest.approx(1)
    )


def test_bfloat16_heads_come_close_to_float32() -> None:
    teacher, student = random(64, 32, seed=3).float(), random(64, 32, seed=5).float()
    head, weight = random(200, 32, seed=2).float() / 4, torch.ones(64)
    exact, close = (
        distillation_loss(student, teacher, head.to(dtype), weight, Loss("kl"))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert close.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert close.loss.dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [{"kind": "mse"}, {"temperature": 0.0}, {"kl_share": 1.5}, {"eta": -1.0}],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        Loss(**settings)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused() -> None:
    teacher, head, weight = torch.ones(3, 2), torch.ones(4, 2), torch.ones(3)
    with pytest.raises(InvalidInputError, match="3 positions of the target"):
        distillation_loss(torch.ones(2, 2), teacher, head, weight, Loss())
    with pytest.raises(InvalidInputError, match="all weights are zero"):
        distillation_loss(teacher, teacher, head, torch.zeros(3), Loss())
    with pytest.raises(InvalidInputError, match="1 unrolled steps with 2"):
        distillation_loss(teacher, teacher, head, weight, Loss(), step_weights=[1, 1])
