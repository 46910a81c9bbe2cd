"""What a stream gives: its text in chunks, or as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from specdec import _core
from specdec.stats import Stats
from specdec.text_stream import TextStream


class Chunk(str):
    """New text of a stream."""

    tokens: tuple[int, ...]
    """The tokens that were committed since the chunk before; without the end-of-text token."""
    drafted: int
    """How many of them came from the drafter."""
    finish_reason: str | None
    """In the last chunk ``"stop"``, ``"length"`` or ``"cancelled"``, of a batch also ``"error"``;
    else None."""
    stats: Stats | None
    """In the last chunk the figures of the whole text; else None."""
    error: Exception | None
    """Of a batch, what ended this text, with the finish reason ``"error"``."""

    def __new__(
        cls,
        text: str,
        tokens: Sequence[int] = (),
        drafted: int = 0,
        finish_reason: str | None = None,
        stats: Stats | None = None,
        error: Exception | None = None,
    ) -> Chunk:
        chunk = super().__new__(cls, text)
        chunk.tokens = tuple(tokens)
        chunk.drafted = drafted
        chunk.finish_reason = finish_reason
        chunk.stats = stats
        chunk.error = error
        return chunk


@dataclass(frozen=True)
class Result:
    """A whole text."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    stats: Stats
    error: Exception | None = None
    """Of a batch: what ended this text, with the finish reason ``"error"``."""

    @classmethod
    def from_chunks(cls, chunks: Sequence[Chunk]) -> Result:
        """The text of a whole stream; of one that never began: cancelled, and empty."""
        last = chunks[-1] if chunks else Chunk("", finish_reason="cancelled")
        return cls(
            text="".join(chunks),
            tokens=tuple(token for chunk in chunks for token in chunk.tokens),
            finish_reason=last.finish_reason or "stop",
            stats=last.stats or Stats(),
            error=last.error,
        )


class ChunkWriter:
    """Turns one stream's rounds into chunks: text that is certain, and the tokens behind it."""

    def __init__(self, engine: _core.Engine, text_stream: TextStream):
        self._engine = engine
        self._text_stream = text_stream
        self._text_seconds = 0.0
        self._pending: list[int] = []  # committed, but their text is held back
        self._pending_drafted = 0
        self.finished = False
        """Whether the text has ended; then no further round is to be run."""

    def figures(self) -> Callable[[], Stats]:
        """The figures so far, worked out when they are asked for: few read those of every round."""
        return partial(Stats.from_totals, self._engine.totals, self._text_seconds)

    def write(self, outcome: _core.RoundResult) -> Chunk | None:
        """Take what a round committed; None where no text came of it yet."""
        start = time.perf_counter()
        new = outcome.tokens
        if outcome.finish == _core.Finish.stop:
            new = new[:-1]
        finish = None
        used = self._text_stream.tokens_used
        text = self._text_stream.push(new)
        new = new[: self._text_stream.tokens_used - used]
        self._pending += new
        self._pending_drafted += min(outcome.drafted, len(new))
        if self._text_stream.stopped:
            finish = "stop"
        elif outcome.finish != _core.Finish.none:
            finish = str(outcome.finish.name)
            text += self._text_stream.finish()
        self._text_seconds += time.perf_counter() - start
        return self._chunk(text, finish) if text or finish is not None else None

    def fail(self, error: Exception) -> Chunk:
        """End the text with what is certain of it, and the error that ended it."""
        return self._chunk(self._text_stream.finish(), "error", error)

    def _chunk(self, text: str, finish: str | None, error: Exception | None = None) -> Chunk:
        self.finished = finish is not None
        stats = self.figures()() if self.finished else None
        chunk = Chunk(text, self._pending, self._pending_drafted, finish, stats, error)
        self._pending, self._pending_drafted = [], 0
        return chunk
