"""Which conversations are worth training on: not empty, not in a loop, and not there already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from specdec.distill.write.conversation import ANSWER, Conversation, spans
from specdec.distill.write.loops import repetitive

_SAME_ANSWER = 32  # answers that begin with the same tokens count as the same answer


class Filter:
    """Says why a conversation is dropped; remembers those that were kept."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def problem(self, conversation: Conversation) -> str | None:
        """Why to drop it (None: keep it, and drop what repeats it from now on).

        A conversation repeats another one if any of its answers of 32 tokens or more begins with
        the same 32 tokens, or if all that was written by the target is the same.
        """
        if conversation.problem is not None:
            return conversation.problem
        written = conversation.turns()
        if any(repetitive(tokens) for _, tokens in written):
            return "repetitive"
        keys = signatures(written)
        if not keys.isdisjoint(self._seen):
            return "duplicate"
        self._seen |= keys
        return None

    def remember(self, tokens: Sequence[int], roles: Sequence[int]) -> None:
        """Count a conversation of a finished shard as seen; ``roles[i]`` chose ``tokens[i]``."""
        self._seen |= signatures(spans(tokens, roles))


def signatures(written: Sequence[tuple[int, Sequence[int]]]) -> set[bytes]:
    """What two conversations that repeat each other have in common at least one of."""
    whole = [token for _, run in written for token in (-1, *run)]
    parts = [
        run[:_SAME_ANSWER] for role, run in written if role == ANSWER and len(run) >= _SAME_ANSWER
    ]
    return {
        hashlib.blake2b(np.array(part, np.int64).tobytes(), digest_size=16).digest()
        for part in (whole, *parts)
    }
