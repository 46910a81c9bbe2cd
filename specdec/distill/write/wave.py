"""Writes a wave of conversations: each row goes on with the next one as soon as it is free."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from specdec.distill.write.conversation import Conversation
from specdec.distill.write.engine import BatchWriter, draw
from specdec.distill.write.turns import common_prefix


def write_wave(
    writer: BatchWriter,
    conversations: Iterable[Conversation],
    *,
    rows: int,
    prefix: list[int],
    on_step: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Write the ``conversations`` to their ends, at most ``rows`` at once.

    ``prefix`` is what ``writer`` was given as such. ``on_step`` gets the tokens of each step.
    """
    waiting = iter(conversations)
    active: list[Conversation] = []

    def next_into(row: int) -> Conversation | None:
        for conversation in waiting:
            if not conversation.finished:
                writer.begin(row)
                shared = common_prefix(conversation.tokens, prefix)
                conversation.fed = min(shared, len(conversation.tokens) - 1)
                return conversation
        return None

    while len(active) < rows and (conversation := next_into(len(active))):
        active.append(conversation)
    while active:
        _step(writer, active)
        on_step(len(active))
        # From the last row on, so that whatever moves into a free row is not finished itself.
        for row in reversed(range(len(active))):
            if not active[row].finished:
                continue
            if conversation := next_into(row):
                active[row] = conversation
                continue
            last = active.pop()
            if row < len(active):
                writer.move(len(active), row)
                active[row] = last


def _step(writer: BatchWriter, active: list[Conversation]) -> None:
    tokens = np.array([c.tokens[c.fed] for c in active], np.int64)
    lengths = np.array([c.fed for c in active], np.int32)
    candidates = writer.step(tokens, lengths)
    sampled = [row for row, c in enumerate(active) if c.is_sampled]
    for conversation in active:
        conversation.fed += 1
    if not sampled:
        return
    settings = np.array([active[row].sampling() for row in sampled])
    chosen = draw(candidates.take(sampled), *settings.T)
    for row, token in zip(sampled, chosen.tolist(), strict=True):
        active[row].take(token)
