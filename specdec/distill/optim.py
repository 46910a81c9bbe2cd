"""The optimisers of a student, their schedule, and their state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from specdec.errors import InvalidInputError

KINDS = ("adamw", "muon")


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights move."""

    kind: str = "adamw"
    """``adamw`` (1711.05101) for everything; or ``muon`` (Jordan, 2024; scaled to AdamW's step as
    in 2502.16982) for the layers' and bridges' matrices and AdamW for the rest. A step of Muon
    costs some ten products of each matrix with itself, so it wants larger batches."""
    learning_rate: float = 8e-4
    """The highest."""
    warmup_steps: int = 20
    """Steps over which the rate rises from zero, in equal parts."""
    final_rate: float = 0.05
    """What is left of the rate at the end, as a fraction."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    momentum: float = 0.95
    """Muon's."""
    clip: float = 1.0
    """The largest norm of all gradients together."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInputError(f"no optimizer '{self.kind}': choose one of {', '.join(KINDS)}")
        if not (self.learning_rate > 0 and self.clip > 0 and self.warmup_steps >= 0):
            raise InvalidInputError(
                f"learning rate {self.learning_rate}, clip {self.clip} and {self.warmup_steps} "
                "warm-up steps: the first two must be above 0, the last not below it"
            )
        if not 0 <= self.final_rate <= 1:
            raise InvalidInputError(f"final rate {self.final_rate}; it must be between 0 and 1")


def rate(settings: OptimizerSettings, step: int, done: float) -> float:
    """The learning rate of step ``step`` (from 0) when ``done`` (0 to 1) of the budget is spent.

    A linear warm-up times half a cosine (1608.03983) that falls to ``final_rate``.
    """
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    cosine = (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2
    return settings.learning_rate * warm * max(settings.final_rate, cosine)


class Optimizer:
    """All of a student's optimisers behind one ``step``."""

    def __init__(self, student: nn.Module, settings: OptimizerSettings) -> None:
        """Takes over the student's parameters that require a gradient."""
        self.settings = settings
        self.steps = 0
        """Steps made so far."""
        named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        self._parameters = [parameter for _, parameter in named]
        inner = [p for name, p in named if p.ndim == 2 and name.startswith(("layers.", "bridges."))]
        chosen = {id(p) for p in inner} if settings.kind == "muon" else set()
        rest = [p for p in self._parameters if id(p) not in chosen]
        self._optimizers: list[torch.optim.Optimizer] = []
        if chosen:
            self._optimizers.append(_muon(inner, settings))
        if rest:
            self._optimizers.append(
                torch.optim.AdamW(
                    rest,
                    lr=settings.learning_rate,
                    betas=settings.betas,
                    weight_decay=settings.weight_decay,
                    fused=True,
                )
            )

    def step(self, done: float) -> tuple[float, float]:
        """Moves the weights by the gradients there are, and clears them.

        ``done`` is the share of the budget spent so far. Returns the learning rate and the
        gradients' norm before it was clipped. Gradients that are not finite raise
        FloatingPointError and change nothing.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.settings.clip))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradients of step {self.steps} have norm {norm}")
        learning_rate = rate(self.settings, self.steps, done)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        return learning_rate, norm

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on beside weights and gradients."""
        return {
            "kind": self.settings.kind,
            "steps": self.steps,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where ``state`` was taken; InvalidInputError for another kind's."""
        saved = state["optimizers"]
        if state["kind"] != self.settings.kind or len(saved) != len(self._optimizers):
            raise InvalidInputError(
                f"the checkpoint was written with optimizer '{state['kind']}', not "
                f"'{self.settings.kind}'"
            )
        for optimizer, part in zip(self._optimizers, saved, strict=True):
            optimizer.load_state_dict(part)
        self.steps = int(state["steps"])


def _muon(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise InvalidInputError(
            f"torch {torch.__version__} has no Muon: install 2.9 or later, or choose adamw"
        )
    return torch.optim.Muon(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
