"""How much of the target's text a student would win, measured on text it was not trained on.

The target's distributions are exact: its hidden states times all rows of its head. They are
summed up once; a measurement then costs the student's rows alone. Everything follows the target's
own text (teacher forcing): the ``d``-th draft of a round reads the text's tokens as if the drafts
before it had been accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.distill.batches import Rows, rows_of, student_batch
from specdec.distill.corpus import ANSWER, Conversation
from specdec.distill.states import Teacher
from specdec.distill.students import Student

_TOGETHER = 8  # conversations of a batch
_CHUNK = 512  # rows whose logits are in memory at once


@dataclass(frozen=True)
class HeldOutFigures:
    """What a student wins of the answers."""

    acceptance: tuple[float, ...]
    """By draft of a round: the mean of sum(min(p, q)) at temperature 1 (Leviathan et al.
    2211.17192, definition 3.4), q over the student's head and p over all of the vocabulary."""
    top1: tuple[float, ...]
    """By draft: how often student and target agree on the likeliest token."""
    block_efficiency: float
    """Tokens per target step at temperature 1 with as many drafts as there are figures:
    1 + sum over j of the mean of a_1 ... a_j, where a_i is the i-th draft's sum(min(p, q))."""
    greedy_block_efficiency: float | None
    """The same at temperature 0, counted on the texts that were written so; None: there are none.
    """
    answer_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For the log: four digits."""
        greedy = self.greedy_block_efficiency
        return {
            "acceptance": [round(value, 4) for value in self.acceptance],
            "top1": [round(value, 4) for value in self.top1],
            "block_efficiency": round(self.block_efficiency, 4),
            "greedy_block_efficiency": None if greedy is None else round(greedy, 4),
            "answer_tokens": self.answer_tokens,
        }


@dataclass(frozen=True)
class _Group:
    items: list[Conversation]
    rows: Rows
    answer: Tensor  # bool [N]
    log_total: Tensor  # logsumexp of the target's logits, [answers]
    best: Tensor  # the target's likeliest id, [answers]


class HeldOut:
    """Held-out conversations, and what the target says of them."""

    def __init__(
        self,
        items: Sequence[Conversation],
        teacher: Teacher,
        head: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """``head`` is the target's, all rows [V, H]; ``dtype`` the student's compute type."""
        self._teacher = teacher
        self._head = head
        self._dtype = dtype
        self._device = torch.device(device)
        ordered = sorted(items, key=len)
        self._groups = [
            self._prepare(ordered[i : i + _TOGETHER]) for i in range(0, len(ordered), _TOGETHER)
        ]

    @torch.no_grad()
    def _prepare(self, items: list[Conversation]) -> _Group:
        rows = rows_of(items)
        answer = rows.role == ANSWER
        hidden = self._teacher(items).hidden.flatten(0, 1)[rows.position[answer]]
        totals, best = [], []
        for chunk in torch.split(hidden, _CHUNK):
            logits = _logits(chunk.to(self._device), self._head)
            totals.append(logits.logsumexp(-1))
            best.append(logits.argmax(-1))
        return _Group(items, rows, answer, torch.cat(totals), torch.cat(best))

    @torch.no_grad()
    def __call__(self, student: Student, depth: int) -> HeldOutFigures:
        """Measure ``depth`` drafts of a round (1 for a standalone student: all are alike)."""
        grids: list[tuple[NDArray[np.float64], NDArray[np.bool_], _Group]] = []
        for group in self._groups:
            grids.append((*self._measure(group, student, depth), group))
        return _figures(grids, depth)

    def _measure(
        self, group: _Group, student: Student, depth: int
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Acceptance and agreement of each draft after each answer row, [depth, answers]."""
        steps = depth if student.kind == "attached" else 1
        states = self._teacher(group.items)
        layers = getattr(student, "target_layers", ())
        batch = student_batch(group.items, states, layers, self._dtype).to(self._device)
        places = group.rows.position[group.answer]
        teacher = states.hidden.flatten(0, 1)[places].to(self._device)
        ids = student.head_ids
        head = self._head if ids is None else self._head[ids.to(self._head.device)]
        outs = [out.flatten(0, 1)[places.to(self._device)] for out in student(batch, steps)]
        accept = np.zeros((depth, len(places)))
        agree = np.zeros((depth, len(places)), bool)
        own_head = student.head()
        for start in range(0, len(places), _CHUNK):
            part = slice(start, start + _CHUNK)
            p = (_logits(teacher[part], head) - group.log_total[part, None]).exp()
            for draft, out in enumerate(outs):
                logits = _logits(out[part], own_head)
                won = torch.minimum(p, logits.softmax(-1)).sum(-1)
                guess = logits.argmax(-1)
                guess = guess if ids is None else ids.to(guess.device)[guess]
                accept[draft, part] = won.cpu().numpy()
                agree[draft, part] = (guess == group.best[part]).cpu().numpy()
        accept[steps:], agree[steps:] = accept[steps - 1], agree[steps - 1]
        return accept, agree


def greedy_rounds(agree: NDArray[np.bool_]) -> tuple[int, int]:
    """Tokens and target steps of greedy speculation over one text.

    ``agree`` [k, n]: whether the d-th draft of a round (from 0) after place i is the target's.
    """
    drafts, length = agree.shape
    place = steps = 0
    while place < length:
        accepted = 0
        while accepted < drafts and place + accepted < length and agree[accepted, place + accepted]:
            accepted += 1
        place += accepted + 1
        steps += 1
    return min(place, length), steps


def _figures(
    grids: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_], _Group]], depth: int
) -> HeldOutFigures:
    won, agreed, counted = np.zeros(depth), np.zeros(depth), np.zeros(depth)
    chains, starts = np.zeros(depth), np.zeros(depth)
    tokens = steps = 0
    for accept, agree, group in grids:
        run = group.rows.run[group.answer].numpy()
        for draft in range(depth):
            reached = run > draft
            won[draft] += accept[draft, reached].sum()
            agreed[draft] += agree[draft, reached].sum()
            counted[draft] += reached.sum()
        for places, item in _texts(group):
            chain = np.ones(len(places))
            for draft in range(min(depth, len(places))):
                chain = chain[: len(places) - draft] * accept[draft, places[draft:]]
                chains[draft] += chain.sum()
                starts[draft] += len(chain)
            if item.temperature == 0:
                text, rounds = greedy_rounds(agree[:, places])
                tokens, steps = tokens + text, steps + rounds
    return HeldOutFigures(
        acceptance=tuple(won / np.maximum(counted, 1)),
        top1=tuple(agreed / np.maximum(counted, 1)),
        block_efficiency=float(1 + (chains / np.maximum(starts, 1)).sum()),
        greedy_block_efficiency=tokens / steps if steps else None,
        answer_tokens=int(counted[0]),
    )


def _texts(group: _Group) -> list[tuple[NDArray[np.int64], Conversation]]:
    """The answers of a group: each one's places among its answer rows, in order."""
    position = group.rows.position[group.answer].numpy()
    width = max(map(len, group.items))
    texts = []
    for row, item in enumerate(group.items):
        places = np.flatnonzero(position // width == row)
        breaks = np.flatnonzero(np.diff(position[places]) != 1) + 1
        texts += [(part, item) for part in np.split(places, breaks) if len(part)]
    return texts


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    return (hidden.to(head.dtype) @ head.T).float()
