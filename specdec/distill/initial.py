"""The first weights of a student: the target's own, projected, fitted, or random."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specdec.convert.checkpoint import Checkpoint
from specdec.distill.architecture import Plan
from specdec.distill.kernels import rms_norm
from specdec.distill.llama import TorchLlama, matrix_tensor, rotary_of
from specdec.distill.students import (
    AttachedStudent,
    Bridge,
    StandaloneStudent,
)
from specdec.errors import InvalidInputError

ORIGINS = ("target", "random")
"""``target``: the target's layers, or its embedding projected where the width differs."""

RIDGE = 1e-4
"""Of a bridge's least squares, in units of the mean of the normal matrix's diagonal."""

SKIPPED = 4
"""First positions of a text that a bridge is not fitted to: attention sinks, whose residuals are
thousands of times the others'."""

_SPREAD = 0.02  # standard deviation of random weights (GPT-2's)


def make_student(
    plan: Plan,
    source: Checkpoint,
    *,
    origin: str = "target",
    head_ids: Tensor | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    frequencies: Tensor | None = None,
) -> AttachedStudent | StandaloneStudent:
    """The student of ``plan`` with its first weights; an attached one's bridges are still to fit.

    Args:
        plan: its shape.
        source: the target.
        origin: one of ``ORIGINS``. Of a student on the target's width, ``random`` leaves embedding
            and head the target's and draws the layers (and starts bridges as the identity). Of one
            with a width of its own the layers are random in either case.
        head_ids: ids of the head's rows, int64 ascending, ``plan.head_size`` of them (None: all).
        seed: of what is drawn.
        dtype: the compute type.
        frequencies: [V], how often each id occurs, to project an embedding by (None: alike).
    """
    if origin not in ORIGINS:
        raise InvalidInputError(f"no origin '{origin}': choose one of {', '.join(ORIGINS)}")
    rows = plan.config.vocab if head_ids is None else len(head_ids)
    if rows != plan.head_size:
        raise InvalidInputError(f"{rows} ids for a head of {plan.head_size} rows")
    generator = torch.Generator().manual_seed(seed)
    if plan.target_layers is None:
        return _own_width(plan, source, origin, head_ids, generator, dtype, frequencies)
    form = AttachedStudent if plan.kind == "attached" else StandaloneStudent
    student = form.from_source(source, plan.target_layers, head_ids=head_ids, dtype=dtype)
    if origin == "random":
        draw_layers(student.layers, generator)
        nn.init.ones_(student.final_norm)
    return student


@torch.no_grad()
def draw_layers(layers: nn.ModuleList, generator: torch.Generator) -> None:
    """Norms of ones; matrices from N(0, 0.02), those that write to the residual stream smaller by
    the square root of how many do (GPT-2's initialisation)."""
    for layer in layers:
        for role, parameter in layer.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            writes = role in ("attention_output", "down")
            spread = _SPREAD / math.sqrt(2 * len(layers)) if writes else _SPREAD
            parameter.normal_(0.0, spread, generator=generator)


def project_rows(matrix: Tensor, width: int, weights: Tensor | None = None) -> Tensor:
    """Rows [V, H] in their first ``width`` principal directions, [V, width].

    The directions are eigenvectors of ``M' diag(w) M`` (an SVD of the rows, not centred, each
    counting its weight): of all projections to that width it keeps the inner products of rows with
    a vector drawn like the rows themselves best (Eckart-Young). Scaled so that the mean square of
    all values stays what it was: the size that a residual stream starts at.
    """
    if not 1 <= width <= matrix.shape[1]:
        raise InvalidInputError(f"rows of {matrix.shape[1]} values have no {width} directions")
    rows = matrix.double()
    weighted = rows if weights is None else rows * weights.double()[:, None]
    _, directions = torch.linalg.eigh(rows.T @ weighted)
    projected: Tensor = rows @ directions.flip(1)[:, :width]
    scale = rows.square().mean().sqrt() / projected.square().mean().sqrt().clamp(min=1e-30)
    return (projected * scale).to(matrix.dtype)


def _own_width(
    plan: Plan,
    source: Checkpoint,
    origin: str,
    head_ids: Tensor | None,
    generator: torch.Generator,
    dtype: torch.dtype,
    frequencies: Tensor | None,
) -> StandaloneStudent:
    config = plan.config

    def ends(name: str) -> Tensor:
        if origin == "target":
            # One count more for ids that were never seen.
            weights = None if frequencies is None else frequencies.double() + 1
            return project_rows(matrix_tensor(source, name), config.hidden, weights)
        drawn = torch.empty(config.vocab, config.hidden)
        return drawn.normal_(0.0, _SPREAD, generator=generator)

    student = StandaloneStudent(
        config,
        ends("embedding"),
        None if config.tied_head else ends("head"),
        rotary_of(source),
        head_ids=head_ids,
        own_embedding=True,
        dtype=dtype,
    )
    draw_layers(student.layers, generator)
    return student


@dataclass
class _Normal:
    """Sums of one bridge's least squares, in double precision."""

    square: Tensor  # Z'Z, [2H + 1, 2H + 1]
    from_x: Tensor  # Z'X, [2H + 1, H]
    from_y: Tensor  # Z'Y
    xx: Tensor  # [H], sum x^2 of each channel
    xy: Tensor
    yy: Tensor
    y: Tensor
    count: int = 0

    @classmethod
    def empty(cls, hidden: int, device: torch.device) -> _Normal:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        width = 2 * hidden + 1
        return cls(
            zeros(width, width),
            zeros(width, hidden),
            zeros(width, hidden),
            zeros(hidden),
            zeros(hidden),
            zeros(hidden),
            zeros(hidden),
        )

    def add(self, x: Tensor, y: Tensor, z: Tensor) -> None:
        # Sums of a batch in single precision, those of batches in double.
        self.square += (z.T @ z).double()
        self.from_x += (z.T @ x).double()
        self.from_y += (z.T @ y).double()
        self.xx += x.square().sum(0).double()
        self.xy += (x * y).sum(0).double()
        self.yy += y.square().sum(0).double()
        self.y += y.sum(0).double()
        self.count += len(x)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor, float]:
        """scale [H], weights [2H + 1, H] and the share of y's variance that they explain."""
        scale = self.xy / self.xx.clamp(min=1e-30)
        aim = self.from_y - self.from_x * scale
        shift = ridge * self.square.diagonal().mean()
        regular = self.square + shift * torch.eye(len(self.square)).to(self.square)
        weights = torch.linalg.solve(regular, aim)
        # |y - s x - Z w|^2 from the sums alone.
        left = self.yy - 2 * scale * self.xy + scale.square() * self.xx
        error = left - 2 * (weights * aim).sum(0) + (weights * (self.square @ weights)).sum(0)
        spread = (self.yy - self.y.square() / max(1, self.count)).sum()
        return scale, weights, float(1 - error.sum() / spread.clamp(min=1e-30))


@torch.no_grad()
def fit_bridges(
    student: AttachedStudent,
    teacher: TorchLlama,
    texts: Iterable[tuple[Tensor, Tensor]],
    *,
    ridge: float = RIDGE,
    skip: int = SKIPPED,
) -> dict[int, float]:
    """Sets the bridges so that they predict the target's residual stream, by ridge least squares.

    At position t a bridge before the target's layer l gets x, the target's residual behind the
    student's layer before (or the embedding), and f, the normalised final hidden state of t - 1.
    It is to give y, the residual at the input of layer l at t: first scale = <x, y> / <x, x> by
    channel, then ``[rmsnorm(x); f; 1] -> y - scale x``.

    Args:
        student: its bridges are replaced.
        teacher: the whole target.
        texts: ids int64 [B, L] and lengths int64 [B] (what is behind them is padding); some 20,000
            tokens are enough. They are read once.
        ridge: see ``RIDGE``.
        skip: first positions of each text that are left out.

    Returns, for each bridge j, the share of y's variance that it explains. Raises InvalidInputError
    where texts hold fewer positions than a bridge has inputs.
    """
    config, layers = teacher.config, student.target_layers
    places = student.config.bridges
    sums = {j: _Normal.empty(config.hidden, teacher.device) for j in places}
    read = {j: (layers[j - 1] + 1 if j else 0) for j in places}
    wanted = sorted({layers[j] for j in places} | set(read.values()))
    for ids, lengths in texts if places else ():
        states = teacher.states(ids, residuals=wanted)
        positions = torch.arange(ids.shape[1], device=teacher.device)
        keep = (positions >= max(1, skip)) & (positions < lengths.to(teacher.device)[:, None])
        # Of position t - 1, as the student reads it.
        before = states.hidden.roll(1, dims=1)[keep]
        feature = rms_norm(before, None, config.norm_eps, torch.float32)
        for j, total in sums.items():
            x = states.residuals[read[j]][keep]
            normed = rms_norm(x, None, config.norm_eps, torch.float32)
            z = torch.cat([normed, feature, torch.ones_like(x[:, :1])], 1)
            total.add(x, states.residuals[layers[j]][keep], z)
    explained = {}
    for j, total in sums.items():
        if total.count <= 2 * config.hidden:
            raise InvalidInputError(
                f"{total.count} positions to fit a bridge of {2 * config.hidden} inputs: give more"
            )
        scale, weights, explained[j] = total.solve(ridge)
        bridge = student.bridges[str(j)]
        if isinstance(bridge, Bridge):
            bridge.scale.copy_(scale)
            bridge.weight.copy_(weights[:-1].T)
            bridge.bias.copy_(weights[-1])
    return explained
