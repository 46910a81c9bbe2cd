"""Several prompts at once: each has an engine, and one step of a model runs for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from specdec import _core
from specdec.chunk import Chunk, ChunkWriter
from specdec.errors import SpecdecError
from specdec.model import Model
from specdec.text_stream import TextStream

NewDrafters = Callable[[Sequence[_core.SequenceDecoder]], Sequence[_core.Drafter | None]]
"""Makes a drafter, or None, for each of the target's decoders."""

LARGEST = 64
"""Sequences in one batch."""


@dataclass(frozen=True)
class Job:
    """A prompt that is ready to be written on."""

    tokens: list[int]
    options: _core.StreamOptions
    text_stream: TextStream
    draft_length: int
    draft_width: int


@dataclass
class _Place:
    """One of the sequences that a batch holds, and the text that it is written on, if any."""

    engine: _core.Engine
    index: int = -1
    writer: ChunkWriter | None = None


class Batch:
    """Caches for ``size`` sequences of a target and its drafter, and their rounds.

    One thread at a time; ``cancel`` from any.
    """

    def __init__(
        self,
        target: Model,
        new_drafters: NewDrafters,
        *,
        size: int,
        max_context: int,
    ):
        """Set up the caches.

        Raises:
            InvalidInputError: A model that takes no steps of several sequences, or no memory.
        """
        self._decoders = decoders = target.new_sequence_decoders(
            sequences=size, capacity=max_context, max_logit_rows=_core.MAX_DRAFT_LENGTH + 1
        )
        pairs = zip(decoders, new_drafters(decoders), strict=True)
        self._places = [_Place(_core.Engine(*pair)) for pair in pairs]
        self._batch = _core.Batch([place.engine for place in self._places])
        self._cancelled = False

    @property
    def size(self) -> int:
        """Sequences that it holds."""
        return len(self._places)

    def cancel(self) -> None:
        """End all texts within a round, and begin no others."""
        self._cancelled = True
        for place in self._places:
            place.engine.cancel()

    def stream(
        self, jobs: Iterator[Callable[[], Job]], is_cancelled: Callable[[], bool]
    ) -> Iterator[tuple[int, Chunk]]:
        """Write all texts; gives the index of a job and a chunk of its text.

        Jobs are taken as places become free. A job that cannot be made, or whose text fails, ends
        with a chunk that has the error; the others go on.
        """
        self._cancelled = False
        numbered = enumerate(jobs)
        more = True
        try:
            while True:
                for place in self._places:
                    while more and place.writer is None:
                        if self._cancelled or is_cancelled():
                            more = False
                            break
                        following = next(numbered, None)
                        if following is None:
                            more = False
                            break
                        failed = self._begin(place, *following)
                        if failed is not None:
                            yield following[0], failed
                if all(place.writer is None for place in self._places):
                    return
                yield from self._round()
        finally:
            for place in self._places:
                place.writer = None
                place.engine.cancel()

    def _begin(self, place: _Place, index: int, make: Callable[[], Job]) -> Chunk | None:
        """Give a job a place; where it cannot be made, the only chunk that it has."""
        try:
            job = make()
            place.engine.set_draft_length(job.draft_length)
            place.engine.set_draft_width(job.draft_width)
            place.engine.start(job.tokens, job.options)
        except SpecdecError as error:
            return Chunk("", finish_reason="error", error=error)
        place.index = index
        place.writer = ChunkWriter(place.engine, job.text_stream)
        return None

    def _round(self) -> Iterator[tuple[int, Chunk]]:
        if self._cancelled:  # since a text began, whose start took that back
            for place in self._places:
                place.engine.cancel()
        outcomes = self._batch.round()
        chunks = []
        for place, outcome in zip(self._places, outcomes, strict=True):
            writer = place.writer
            if writer is None or outcome is None:
                continue
            chunk = (
                writer.fail(outcome) if isinstance(outcome, Exception) else writer.write(outcome)
            )
            if writer.finished:
                place.writer = None
                place.engine.cancel()  # its text may have ended at a stop string
            if chunk is not None:
                chunks.append((place.index, chunk))
        yield from chunks
