"""Distillation losses between next-token distributions, and the loss of hidden states over a head.

Symbols: p is the target's distribution, q the drafter's, both over the rows of the drafter's head;
alpha = sum_x min(p(x), q(x)) is the probability that a drafted token is accepted (Leviathan et al.,
2211.17192, theorem 3.5). z are the drafter's logits, T the temperature of both softmaxes.

**Trimmed heads.** A drafter's head may hold a part of the vocabulary, outside of which q is zero.
Given ``log_mass``, the logarithm of the target's mass m inside the head at each position
(``head_log_mass``), p is the target's true distribution there and sums to m: the acceptance counts
what is lost outside (it cannot exceed m), and so do the losses. Without it p is renormalised to the
head, m = 1, and the reported acceptance is that of a target that never leaves the head. KL and
reverse KL are to p / m in either case, as otherwise they would be infinite or off by a constant;
KL is then weighted by m, which makes its gradient m q - p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.errors import InvalidInputError

CHUNK = 256
"""Positions whose logits are held at once."""

_TINY = 1e-30  # an acceptance that underflows has no logarithm


class Terms(NamedTuple):
    """A loss at each position, and its gradient by the (tempered) logits z / T."""

    value: Tensor  # [N]
    slope: Tensor  # [N, V']


class Distributions(NamedTuple):
    """What losses are made of, in float32 or better; all [N, V'] but the last two."""

    log_p: Tensor
    p: Tensor
    log_q: Tensor
    q: Tensor
    mass: Tensor
    """m = sum p, [N, 1]."""
    acceptance: Tensor
    """alpha, [N]."""


def kl(d: Distributions, eta: float) -> Terms:
    """Forward Kullback-Leibler divergence, weighted by m: ``sum p log(p / (m q))``.

    Hinton et al., 1503.02531; the loss of DistillSpec's baseline (2310.08461). Its gradient by z is
    (m q - p) / T.
    """
    value = torch.linalg.vecdot(d.p, d.log_p - d.log_q) - (d.mass * d.mass.log()).squeeze(-1)
    return Terms(value, d.mass * d.q - d.p)


def reverse_kl(d: Distributions, eta: float) -> Terms:
    """Reverse Kullback-Leibler divergence ``sum q log(q m / p)`` (MiniLLM, 2306.08543).

    Its gradient by z is q (log(q m / p) - loss) / T.
    """
    ratio = d.log_q - d.log_p + d.mass.log()
    value = torch.linalg.vecdot(d.q, ratio)
    return Terms(value, d.q * (ratio - value[:, None]))


def tvd(d: Distributions, eta: float) -> Terms:
    """Total variation distance ``1 - alpha`` (= ``sum |p - q| / 2`` where m = 1).

    Its gradient by z is (q B - b) / T with b = q where q < p, else 0, and B = sum b: Goel et al.,
    2403.00858, write it as the policy gradient E_q[-r grad log q] with the reward r = 1[p > q].
    """
    return Terms(1 - d.acceptance, _overlap_slope(d))


def lk(d: Distributions, eta: float) -> Terms:
    """``-log alpha``, the likelihood of acceptance (LK losses, 2602.23881: LK^alpha).

    Its gradient is TVD's divided by alpha, so it does not vanish where the two hardly overlap; for
    a target with all its mass on one token it is the cross entropy.
    """
    alpha = d.acceptance.clamp(min=_TINY)
    return Terms(-alpha.log(), _overlap_slope(d) / alpha[:, None])


def lk_mix(d: Distributions, eta: float) -> Terms:
    """``s KL + (1 - s) TVD`` with ``s = exp(-eta alpha)`` held constant (2602.23881: LK^lambda).

    KL leads where the overlap is small, TVD as it grows. s is each position's own.
    """
    share = torch.exp(-eta * d.acceptance)
    first, second = kl(d, eta), tvd(d, eta)
    return Terms(
        share * first.value + (1 - share) * second.value,
        share[:, None] * first.slope + (1 - share)[:, None] * second.slope,
    )


TVD_PLUS = "tvd++"

_TERMS: Mapping[str, Callable[[Distributions, float], Terms]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "tvd": tvd,
    TVD_PLUS: tvd,  # rescaled once the whole batch is known
    "lk": lk,
    "lk_mix": lk_mix,
}
KINDS = tuple(_TERMS)


@dataclass(frozen=True)
class Loss:
    """Which loss, by name, and its settings."""

    kind: str = "kl"
    """One of ``KINDS``: ``kl``, ``reverse_kl``, ``tvd``, ``lk``, ``lk_mix`` (see the functions of
    those names), or ``tvd++``: TVD's policy gradient with the reward r = 1[p > q] normalised to an
    advantage, ``E_q[-(r - mu) / sigma grad log q]`` (Goel et al., 2403.00858). The expectation is
    taken in full over the head, where a constant mu adds nothing; sigma is the reward's standard
    deviation under q over the batch's positions by weight, sigma^2 = mu (1 - mu) as r is 0 or 1.
    So what is left is TVD / sigma with sigma held constant, which is also the reported loss."""
    temperature: float = 1.0
    """T of both softmaxes. Gradients are those of the loss as it is (no factor T^2)."""
    kl_share: float = 0.0
    """A fixed share of KL mixed in: ``kl_share KL + (1 - kl_share) kind``."""
    eta: float = 3.0
    """Of ``lk_mix``: how fast KL gives way."""

    def __post_init__(self) -> None:
        if self.kind not in _TERMS:
            raise InvalidInputError(f"no loss '{self.kind}': choose one of {', '.join(KINDS)}")
        if not (0 < self.temperature < math.inf and 0 <= self.kl_share <= 1):
            raise InvalidInputError(
                f"a loss has a temperature above 0 (not {self.temperature}) and a share of KL of "
                f"0 to 1 (not {self.kl_share})"
            )
        if not 0 <= self.eta < math.inf:
            raise InvalidInputError(f"eta is {self.eta}; it must be at least 0")


class LossResult(NamedTuple):
    """The loss of a batch, and what it means for decoding."""

    loss: Tensor
    """Scalar to call ``backward`` on."""
    acceptance: Tensor
    """Mean alpha of each unrolled step at the loss's temperature, [steps]; no gradient."""


def distillation_loss(
    student_hidden: Tensor | Sequence[Tensor],
    teacher_hidden: Tensor,
    head: Tensor,
    weight: Tensor,
    loss: Loss,
    *,
    teacher_head: Tensor | None = None,
    log_mass: Tensor | None = None,
    step_weights: Sequence[float] | None = None,
    total_weight: Tensor | float | None = None,
    chunk: int = CHUNK,
) -> LossResult:
    """The weighted mean loss of hidden states over a head, and the mean acceptance.

    Logits are made for ``chunk`` positions at a time and the gradient is formed with them, so
    memory does not grow with the batch. Every unrolled step is compared with the same targets.

    Args:
        student_hidden: [N, H] after the student's final norm, or a list of those, one for each
            unrolled step.
        teacher_hidden: [N, H'], the target's after its final norm, at the same positions. No
            gradient.
        head: the student's head rows [V', H]; its type is that of the products. A gradient is
            formed where it requires one.
        weight: [N], at least 0: what each position counts.
        loss: which loss.
        teacher_head: the target's rows of the same ids, [V', H'] (None: ``head``).
        log_mass: [N], from ``head_log_mass`` at the loss's temperature (None: p is renormalised).
        step_weights: what each unrolled step counts in the loss (None: all 1). Their losses are
            added, not averaged.
        total_weight: what weights are divided by (None: their sum): the sum over a whole
            accumulated batch makes gradient accumulation exact.
        chunk: positions at a time.

    Raises InvalidInputError where shapes do not fit or all weights are zero.
    """
    steps = [student_hidden] if isinstance(student_hidden, Tensor) else list(student_hidden)
    factors = [1.0] * len(steps) if step_weights is None else list(step_weights)
    if len(factors) != len(steps) or not steps:
        raise InvalidInputError(f"{len(steps)} unrolled steps with {len(factors)} weights")
    rows = len(teacher_hidden)
    if any(len(step) != rows for step in steps) or len(weight) != rows:
        raise InvalidInputError(
            f"{rows} positions of the target with {[len(step) for step in steps]} of the drafter "
            f"and {len(weight)} weights"
        )
    weight = weight.to(torch.promote_types(head.dtype, torch.float32))
    total = weight.sum() if total_weight is None else torch.as_tensor(total_weight)
    if not float(total) > 0:
        raise InvalidInputError("a loss needs positions that count: all weights are zero")
    outputs: tuple[Tensor, Tensor] = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        _Settings(loss, factors, chunk),
        teacher_hidden.detach(),
        head if teacher_head is None else teacher_head.detach(),
        log_mass,
        weight,
        total.to(weight),
        head,
        *steps,
    )
    return LossResult(*outputs)


@torch.no_grad()
def head_log_mass(
    teacher_hidden: Tensor,
    full_head: Tensor,
    head: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Tensor:
    """Logarithm of the target's mass inside a trimmed head, float32 [N], at most 0.

    ``teacher_hidden`` [N, H], ``full_head`` [V, H], ``head`` [V', H]: the target's own rows.
    """
    parts = []
    for rows in torch.split(teacher_hidden.to(full_head.dtype), chunk):
        inside, everywhere = (
            F.linear(rows, matrix).float().div_(temperature).logsumexp(-1)
            for matrix in (head, full_head)
        )
        parts.append((inside - everywhere).clamp(max=0))
    return torch.cat(parts) if parts else teacher_hidden.new_zeros(0, dtype=torch.float32)


class Target(NamedTuple):
    """The target's distribution at each position, over the head's rows."""

    log_p: Tensor  # [N, V']
    p: Tensor  # [N, V']
    mass: Tensor  # [N, 1]


def target_distribution(logits: Tensor, log_mass: Tensor | None = None) -> Target:
    """Of logits z / T [N, V']; p sums to 1, or to exp(log_mass) [N]."""
    log_p = logits.log_softmax(-1)
    if log_mass is None:
        return Target(log_p, log_p.exp(), log_p.new_ones(len(log_p), 1))
    log_mass = log_mass[:, None].to(log_p)
    log_p += log_mass
    return Target(log_p, log_p.exp(), log_mass.exp())


def compare(target: Target, logits: Tensor) -> Distributions:
    """The target's distribution beside that of the drafter's logits z / T, [N, V']."""
    log_q = logits.log_softmax(-1)
    q = log_q.exp()
    return Distributions(
        target.log_p, target.p, log_q, q, target.mass, torch.minimum(target.p, q).sum(-1)
    )


def loss_terms(d: Distributions, loss: Loss, deviation: Tensor | float = 1.0) -> Terms:
    """The loss at each position and its gradient by z / T; ``tvd++`` takes its sigma."""
    terms = _TERMS[loss.kind](d, loss.eta)
    if loss.kind == TVD_PLUS:
        terms = Terms(terms.value / deviation, terms.slope / deviation)
    if not loss.kl_share:
        return terms
    share, other = loss.kl_share, kl(d, loss.eta)
    return Terms(
        share * other.value + (1 - share) * terms.value,
        share * other.slope + (1 - share) * terms.slope,
    )


def expected_reward(d: Distributions) -> Tensor:
    """E_q[1[p > q]] at each position, [N]: the reward's mean in Goel et al., 2403.00858."""
    return (d.q * (d.q < d.p)).sum(-1)


def _overlap_slope(d: Distributions) -> Tensor:
    """The gradient of -alpha by z / T."""
    below = d.q * (d.q < d.p)
    return (d.q * below.sum(-1, keepdim=True)).sub_(below)


@dataclass(frozen=True)
class _Logits:
    """Makes the distributions of some positions, in the type losses are reckoned in."""

    teacher: Tensor
    teacher_head: Tensor
    head: Tensor
    log_mass: Tensor | None
    temperature: float
    precise: torch.dtype

    def target(self, rows: slice) -> Target:
        hidden = self.teacher[rows].to(self.teacher_head.dtype)
        log_mass = None if self.log_mass is None else self.log_mass[rows]
        return target_distribution(self._tempered(hidden, self.teacher_head), log_mass)

    def compare(self, target: Target, hidden: Tensor) -> Distributions:
        return compare(target, self._tempered(hidden, self.head))

    def _tempered(self, hidden: Tensor, head: Tensor) -> Tensor:
        logits = F.linear(hidden, head).to(self.precise)
        return logits if self.temperature == 1 else logits / self.temperature


class _Settings(NamedTuple):
    loss: Loss
    factors: list[float]
    chunk: int

    def parts(self, rows: int) -> list[slice]:
        return [slice(start, start + self.chunk) for start in range(0, rows, self.chunk)]


class _HeadLoss(torch.autograd.Function):
    """The gradients by the students' hidden states and by the head are formed in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        teacher: Tensor,
        teacher_head: Tensor,
        log_mass: Tensor | None,
        weight: Tensor,
        total: Tensor,
        head: Tensor,
        *students: Tensor,
    ) -> tuple[Tensor, Tensor]:
        loss = settings.loss
        logits = _Logits(teacher, teacher_head, head, log_mass, loss.temperature, weight.dtype)
        deviation = _deviation(settings, logits, weight, students)
        grads = [torch.empty_like(student) for student in students]
        head_grad = torch.zeros_like(head, dtype=weight.dtype) if head.requires_grad else None
        losses, overlaps = weight.new_zeros(2, len(students))
        for rows in settings.parts(len(teacher)):
            target = logits.target(rows)
            for step, student in enumerate(students):
                hidden = student[rows].to(head.dtype)
                d = logits.compare(target, hidden)
                value, slope = loss_terms(d, loss, deviation[step])
                losses[step] += value @ weight[rows]
                overlaps[step] += d.acceptance @ weight[rows]
                factor = settings.factors[step] / loss.temperature
                # By position, so the narrow side of the products can take it.
                scale = (weight[rows] / total * factor)[:, None]
                slope = slope.to(head.dtype)
                grads[step][rows] = ((slope @ head) * scale).to(student.dtype)
                if head_grad is not None:
                    head_grad += slope.T @ (hidden * scale).to(head.dtype)
        ctx.save_for_backward(head_grad, *grads)
        acceptance = overlaps / weight.sum().clamp(min=_TINY)
        ctx.mark_non_differentiable(acceptance)
        factors = torch.as_tensor(settings.factors).to(losses)
        return (losses @ factors) / total, acceptance

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        head_grad, *grads = ctx.saved_tensors
        by = outputs[0]
        given = None if head_grad is None else head_grad * by
        return (None,) * 6 + (given, *((grad * by).to(grad.dtype) for grad in grads))


def _deviation(
    settings: _Settings, logits: _Logits, weight: Tensor, students: Sequence[Tensor]
) -> Tensor:
    """The reward's standard deviation under q over the batch, by step; ones unless ``tvd++``."""
    if settings.loss.kind != TVD_PLUS:
        return weight.new_ones(len(students))
    sums = weight.new_zeros(len(students))
    for rows in settings.parts(len(weight)):
        target = logits.target(rows)
        for step, student in enumerate(students):
            d = logits.compare(target, student[rows].to(logits.head.dtype))
            sums[step] += expected_reward(d) @ weight[rows]
    mean = sums / weight.sum().clamp(min=_TINY)
    return (mean * (1 - mean)).clamp(min=_TINY).sqrt()
