"""Text that the student writes, for the target to score (GKD, 2306.13649; DistillSpec, 2310.08461).

After a random point of an answer the student goes on as it would in decoding. A standalone one
writes freely; an attached one drafts one round, on its own hidden states and keys from the second
draft on. Only what it wrote is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from specdec.distill.batches import student_batch
from specdec.distill.checkpoint import Position
from specdec.distill.corpus import ANSWER, TEMPLATE, Conversation
from specdec.distill.llama import States
from specdec.distill.states import Teacher
from specdec.distill.students import Student

WRITTEN = ""
"""The shard of a conversation that no shard holds."""


class OnPolicy:
    """Replaces a share of the batches; which, and what is drawn, follows from seed and step."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        *,
        share: float,
        tokens: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """``share`` of the batches go on with at most ``tokens`` of the student's own."""
        self._student = student
        self._teacher = teacher
        self._share = share
        self._tokens = tokens
        self._seed = seed
        self._device = torch.device(device)

    def __call__(
        self, items: list[Conversation], position: Position, place: int
    ) -> list[Conversation]:
        """The batch as it is, or as the student goes on; ``place`` is its number in the step."""
        rng = np.random.default_rng([self._seed, position.step, place])
        if rng.random() >= self._share:
            return items
        cuts = [_cut(item, self._tokens, rng) for item in items]
        kept = [(item, cut) for item, cut in zip(items, cuts, strict=True) if cut is not None]
        return self._write(kept, rng) if kept else items

    @torch.no_grad()
    def _write(
        self, kept: Sequence[tuple[Conversation, int]], rng: np.random.Generator
    ) -> list[Conversation]:
        """Each text up to its cut, and what the student writes after it."""
        student, count = self._student, len(kept)
        length = max(cut for _, cut in kept) + self._tokens + 1
        full = _padded([item for item, _ in kept], length)
        states = _padded_states(self._teacher([item for item, _ in kept]), length)
        rows = torch.arange(count)
        last = torch.tensor([cut for _, cut in kept])  # the place whose next token is drawn
        layers = getattr(student, "target_layers", ())
        batch = student_batch(full, states, layers, student.head().dtype).to(self._device)
        ids, head = student.head_ids, student.head()
        for draft in range(self._tokens):
            outputs = student(batch, draft + 1 if student.kind == "attached" else 1)
            hidden = outputs[-1][rows, last + draft]
            weights = torch.nn.functional.linear(hidden.to(head.dtype), head).float().softmax(-1)
            drawn = _draw(weights.cpu().numpy(), rng.random(count))
            tokens = drawn if ids is None else ids.cpu().numpy()[drawn]
            batch.ids[rows, last + draft + 1] = torch.from_numpy(tokens).to(self._device)
        written = batch.ids.cpu().numpy().astype(np.uint32)
        return [
            _written(item, written[row], cut, self._tokens) for row, (item, cut) in enumerate(kept)
        ]


class MixedTeacher:
    """Reads the states of the target's own text, and computes those of the student's."""

    def __init__(self, own: Teacher, online: Teacher) -> None:
        self._own = own
        self._online = online

    def __call__(self, items: Sequence[Conversation]) -> States:
        teacher = self._online if items[0].shard == WRITTEN else self._own
        return teacher(items)


def _cut(item: Conversation, tokens: int, rng: np.random.Generator) -> int | None:
    """A place in an answer with ``tokens`` of it to come; None: there is none."""
    answer = item.role == ANSWER
    places = np.flatnonzero(answer[: max(len(item) - tokens, 0)])
    return int(rng.choice(places)) if len(places) else None


def _padded(items: Sequence[Conversation], length: int) -> list[Conversation]:
    """The texts cut or padded to ``length`` tokens."""
    return [
        replace(
            item,
            tokens=np.pad(item.tokens[:length], (0, max(0, length - len(item)))),
            role=np.pad(item.role[:length], (0, max(0, length - len(item)))),
        )
        for item in items
    ]


def _padded_states(states: States, length: int) -> States:
    def fit(values: torch.Tensor) -> torch.Tensor:
        more = length - values.shape[-2]
        return torch.nn.functional.pad(values, (0, 0, 0, max(0, more)))[..., :length, :]

    return States(
        fit(states.hidden),
        {layer: fit(keys) for layer, keys in states.keys.items()},
        {layer: fit(values) for layer, values in states.values.items()},
    )


def _draw(
    weights: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    uniform: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """One index per row of ``weights`` [rows, ids], by inverse transform of ``uniform`` [rows]."""
    sums = weights.astype(np.float64).cumsum(-1)
    picked = (sums < (uniform * sums[:, -1])[:, None]).sum(-1)
    return np.asarray(picked.clip(max=weights.shape[1] - 1), np.int64)


def _written(
    item: Conversation, ids: np.ndarray[tuple[int, ...], np.dtype[np.uint32]], cut: int, tokens: int
) -> Conversation:
    role = np.full(cut + tokens + 1, TEMPLATE, np.uint8)
    role[cut : cut + tokens] = ANSWER
    return Conversation(ids[: cut + tokens + 1], role, 1.0, item.kind, WRITTEN, 0)
