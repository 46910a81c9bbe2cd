"""Toy models for the core: text as a Markov chain of order two, read back from the KV cache.

A toy keeps each token in the key cache at its position and takes its context from there alone, so
a column that is missing, stale or one too many changes the text. What the core must not look at
holds garbage, as it does in a real graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec import _core

Table = NDArray[np.float32]  # logits [V, V, head size]: after two tokens, the earlier one first

GARBAGE = 1e30


def give_best(best_only: NDArray[Any], logits: NDArray[Any], best: NDArray[Any]) -> int:
    """As a graph that may be asked for the best tokens alone; 1 where it was."""
    best[...] = -7
    if best_only[0] == 0:
        return 0
    greatest = logits.max(1)
    best[:] = np.where(np.isfinite(greatest), logits.argmax(1), -1)
    logits[...] = GARBAGE
    return 1


class Toy:
    """One model behind a decoder of its own."""

    def __init__(
        self,
        table: Table,
        *,
        head_ids: list[int] | None = None,
        min_width: int = 1,
        max_width: int = 64,
        max_logit_rows: int = 33,
        capacity: int = 512,
        row_tile: int = 0,
        hidden: int = 0,
        takes_rows: bool = False,
    ) -> None:
        self.vocabulary = table.shape[0]
        self.takes_rows = takes_rows
        self.rows = np.ascontiguousarray(table.reshape(-1, table.shape[2]))
        self.widths: list[int] = []  # of the last steps, where `record` is set
        self.record = False
        self.before_run: Callable[[int], None] | None = None  # gets the number of the run
        self.runs = 0
        self.best_runs = 0  # those that gave the best tokens alone, as toys that take rows can
        self.poison = True
        self.decoder = _core.InPlaceDecoder(
            vocabulary=self.vocabulary,
            head_ids=head_ids or [],
            layers=1,
            kv_heads=1,
            head_dim=1,
            capacity=capacity,
            min_width=min_width,
            max_width=max_width,
            max_logit_rows=max_logit_rows,
            row_tile=row_tile,
            hidden=hidden,
            takes_rows=takes_rows,
            gives_best=takes_rows,
            run=self._run,
        )
        buffers = self.decoder.buffers()
        self.tokens: NDArray[Any] = buffers["tokens"]
        self.total_length: NDArray[Any] = buffers["total_length"]
        self.seqlens_k: NDArray[Any] = buffers["seqlens_k"]
        self.first_logit_row: NDArray[Any] = buffers["first_logit_row"]
        self.row_places: NDArray[Any] = buffers["rows"].reshape(-1)
        self.best_only: NDArray[Any] = buffers["best_only"]
        self.logits: NDArray[Any] = buffers["logits"]
        self.best: NDArray[Any] = buffers["best"]
        self.keys: NDArray[Any] = buffers["key.0"][0, 0, :, 0]
        self.values: NDArray[Any] = buffers["value.0"][0, 0, :, 0]

    def _run(self, width: int, first: int) -> None:
        self.runs += 1
        if self.before_run is not None:
            self.before_run(self.runs)
        if self.record:
            self.widths.append(width)
        end = int(self.total_length[()])
        start = end - width
        assert self.seqlens_k[0] == end - 1
        assert self.first_logit_row[0] == first
        committed, depths, parents = self.places(width)
        if self.takes_rows:
            self._run_rows(width, first, committed, depths, parents)
            self.best_runs += give_best(self.best_only, self.logits, self.best)
            return
        assert self.best_only[0] == 0, "the best alone, of a graph that cannot tell"
        assert parents == list(range(-1, width - 1)), "a tree, for a graph that takes none"
        keys, values = self.keys, self.values
        assert start == 0 or values[start - 1] == start, "a column that was never computed"
        keys[start:end] = self.tokens[:width]
        values[start:end] = range(start + 1, end + 1)
        if self.poison:
            keys[end : end + 8] = -1
            values[end : end + 8] = -1
            self.logits[...] = GARBAGE
        rows = width - first
        begin = start + first
        if begin == 0:
            self.logits[0] = self.rows[int(keys[0])]
            first, begin = first + 1, 1
        if first < width:
            context = keys[begin - 1 : end - 1] * self.vocabulary + keys[begin:end]
            self.logits[rows - (width - first) : rows] = self.rows[context.astype(np.intp)]

    def places(self, width: int) -> tuple[int, list[int], list[int]]:
        """Of the step's rows: what is committed, how deep each stands, and its parent."""
        sequence, committed, column, parent = self.row_places[: 4 * width].reshape(4, width)
        start = int(self.total_length[()]) - width
        assert not sequence.any()
        assert (committed == start).all()
        assert column.tolist() == list(range(start, start + width))
        depths: list[int] = []
        for row, before in enumerate(parent.tolist()):
            assert -1 <= before < row
            depths.append(depths[before] + 1 if before >= 0 else 0)
        return start, depths, parent.tolist()

    def _run_rows(
        self, width: int, first: int, start: int, depths: list[int], parents: list[int]
    ) -> None:
        """As a graph that takes rows: the context of a row is what stands before it on its path."""
        keys, values = self.keys, self.values
        rows = set(zip(parents, self.tokens[:width].tolist(), strict=True))
        assert len(rows) == width, "one candidate twice"
        if self.poison:
            known = np.arange(1, start + 1)
            assert (values[:start] == known).all(), "a committed column that is not its position's"
            keys[start : start + width + 8] = -1
            values[start : start + width + 8] = -1
            self.logits[...] = GARBAGE
        for row in range(width):
            before = start - 1 if parents[row] < 0 else start + parents[row]
            position = start + depths[row]
            assert before < 0 or values[before] == position, "a column of another position"
            keys[start + row] = self.tokens[row]
            values[start + row] = position + 1
            if row < first:
                continue
            context = int(self.tokens[row])
            if before >= 0:
                context += self.vocabulary * int(keys[before])
            self.logits[row - first] = self.rows[context]


def random_table(seed: int, vocabulary: int, spread: float = 1.0, head: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    shape = (vocabulary, vocabulary, head or vocabulary)
    return rng.normal(0, spread, shape).astype(np.float32)


def near(table: Table, seed: int, noise: float = 0.4) -> Table:
    """A drafter's table: the target's, blurred."""
    rng = np.random.default_rng(seed)
    return (table + rng.normal(0, noise, table.shape)).astype(np.float32)


def stream_options(
    *, rule: str = "block", max_tokens: int = 0, stop_ids: list[int] | None = None, **sampling: Any
) -> Any:
    options = _core.StreamOptions()
    chosen = _core.SamplingOptions()
    for name, value in sampling.items():
        setattr(chosen, name, value)
    options.sampling = chosen
    options.set_rule(rule)
    options.max_tokens = max_tokens
    options.stop_ids = stop_ids or []
    return options


def run_stream(engine: Any, prompt: list[int], options: Any) -> list[int]:
    """The text of a whole stream."""
    engine.start(prompt, options)
    engine.prefill()
    text: list[int] = []
    while True:
        result = engine.round()
        text += result.tokens
        if result.finish != _core.Finish.none:
            return text


def plain_text(table: Table, prompt: list[int], options: Any, **toy: Any) -> list[int]:
    """What the target writes alone."""
    return run_stream(_core.Engine(Toy(table, **toy).decoder, None), prompt, options)
