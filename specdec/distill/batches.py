"""From conversations and the target's states to what a student is trained and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.distill.corpus import USER, Conversation
from specdec.distill.llama import States
from specdec.distill.states import padded_ids
from specdec.distill.students import StudentBatch


@dataclass(frozen=True)
class Rows:
    """The positions of a padded batch whose next token the target chose."""

    position: Tensor
    """Index into the flattened [B * L], int64 [N]."""
    index: Tensor
    """Index into the text, int64 [N]."""
    role: Tensor
    """Who chose the next token, uint8 [N]."""
    run: Tensor
    """How many positions up to this one, it included, have a next token that the target chose, one
    after the other; int64 [N]. A round whose d-th draft (from 0) follows this position began d
    positions earlier, so it is one that can happen only where d < run."""

    def reached(self, draft: int) -> Tensor:
        """Of which rows the ``draft``-th draft of a round (from 0) can follow, bool [N]."""
        return self.run > draft

    def weight(self, user_weight: float) -> Tensor:
        """1 for what the target answered, ``user_weight`` for the user's turns; float32 [N]."""
        return torch.where(self.role == USER, user_weight, 1.0)


def rows_of(items: Sequence[Conversation]) -> Rows:
    """The rows of a batch padded to its longest conversation."""
    width = max(map(len, items))
    position, index, role, run = [], [], [], []
    for row, item in enumerate(items):
        chosen = item.chosen()
        at = np.flatnonzero(chosen)
        position.append(at + row * width)
        index.append(at)
        role.append(item.role[at])
        run.append(run_lengths(chosen)[at])
    return Rows(
        *(torch.from_numpy(np.concatenate(parts)) for parts in (position, index, role, run))
    )


def run_lengths(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each place, how many are true up to it, it included, without a gap; [n]."""
    index = np.arange(len(chosen))
    last_gap = np.maximum.accumulate(np.where(chosen, -1, index))
    return np.asarray(index - last_gap, np.int64)


def total_weight(items: Sequence[Conversation], user_weight: float, skip: int) -> float:
    """The sum of the weights of all rows of a batch, without the first ``skip`` of each text."""
    total = 0.0
    for item in items:
        weight = np.where(item.role == USER, user_weight, 1.0) * item.chosen()
        total += float(weight[skip:].sum())
    return total


def student_batch(
    items: Sequence[Conversation], states: States, target_layers: Sequence[int], dtype: torch.dtype
) -> StudentBatch:
    """What a student reads: the ids, and for an attached one the target's states in ``dtype``."""
    if not target_layers:
        return StudentBatch(padded_ids(items))
    return StudentBatch(
        padded_ids(items),
        states.hidden,
        [states.keys[layer].to(dtype) for layer in target_layers],
        [states.values[layer].to(dtype) for layer in target_layers],
    )
