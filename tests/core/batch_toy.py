"""Toy models whose steps hold rows of several sequences, and batches of engines on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attached_toy import BY_DRAFTER, BY_TARGET, HIDDEN
from numpy.typing import NDArray
from toy import GARBAGE, Table, give_best
from toy_pairs import TABLE, drafter_table

from specdec import _core


class BatchToy:
    """One model, and a decoder for each of its sequences.

    As ``Toy``, it keeps each token in the key cache at its position and takes a row's context from
    there alone; before each step it spoils all columns of the step's sequences that are not known.
    """

    def __init__(
        self,
        table: Table,
        sequences: int,
        *,
        head_ids: list[int] | None = None,
        capacity: int = 1024,
        max_width: int = 64,
        max_logit_rows: int = 33,
    ) -> None:
        self.vocabulary = table.shape[0]
        self.table = np.ascontiguousarray(table.reshape(-1, table.shape[2]))
        self.steps: list[list[int]] = []  # of each run, the rows of each sequence
        self.before_run: Callable[[set[int]], None] | None = None  # gets the step's sequences
        self.decoders = _core.new_sequence_decoders(
            vocabulary=self.vocabulary,
            head_ids=head_ids or [],
            layers=1,
            kv_heads=1,
            head_dim=1,
            capacity=capacity,
            sequences=sequences,
            max_width=max_width,
            max_logit_rows=max_logit_rows,
            hidden=HIDDEN,
            gives_best=True,
            run=self._run,
        )
        self.buffers = self.decoders[0].buffers()
        self.best_runs = 0
        self.keys: NDArray[Any] = self.buffers["key.0"][:, 0, :, 0]  # [sequences, capacity]
        self.values: NDArray[Any] = self.buffers["value.0"][:, 0, :, 0]

    def _run(self, width: int, first: int) -> None:
        rows = self.buffers["rows"].reshape(-1)[: 4 * width].reshape(4, width)
        sequences, lengths, columns, parents = (row.tolist() for row in rows)
        counts = [sequences.count(index) for index in range(len(self.decoders))]
        self.steps.append(counts)
        if self.before_run is not None:
            self.before_run(set(sequences))
        assert self.buffers["first_logit_row"][0] == first < width
        keys, values, logits = self.keys, self.values, self.buffers["logits"]
        tokens = self.buffers["tokens"][:width].tolist()
        places = set(zip(sequences, columns, strict=True))
        assert len(places) == width, "two rows in one column"
        logits[...] = GARBAGE
        self.buffers["hidden"][...] = GARBAGE
        for sequence, length in set(zip(sequences, lengths, strict=True)):
            known = np.arange(1, length + 1)
            assert (values[sequence, :length] == known).all(), "a committed column is not there"
            keys[sequence, length:] = values[sequence, length:] = -1
        positions: list[int] = []
        for row in range(width):
            sequence, length, parent = sequences[row], lengths[row], parents[row]
            assert parent < row
            assert parent < 0 or sequences[parent] == sequence
            before = length - 1 if parent < 0 else columns[parent]
            position = length if parent < 0 else positions[parent] + 1
            positions.append(position)
            assert before < 0 or values[sequence, before] == position
            keys[sequence, columns[row]] = tokens[row]
            values[sequence, columns[row]] = position + 1
            self.buffers["hidden"][row] = (tokens[row], position, BY_TARGET)
            if row >= first:
                context = tokens[row]
                if before >= 0:
                    context += self.vocabulary * int(keys[sequence, before])
                logits[row - first] = self.table[context]
        self.best_runs += give_best(self.buffers["best_only"], logits, self.buffers["best"])


class AttachedBatchToy:
    """A drafter of one row for each sequence, on the columns and hidden states of its target."""

    def __init__(
        self, table: Table, target: BatchToy, *, head_ids: list[int] | None, context: int
    ) -> None:
        self.target = target
        self.table = np.ascontiguousarray(table.reshape(-1, table.shape[2]))
        self.steps: list[int] = []  # rows of each run
        self.decoders = _core.new_attached_sequence_decoders(
            vocabulary=table.shape[0],
            head_ids=head_ids or [],
            targets=target.decoders,
            target_layers=[0],
            context=context,
            run=self._run,
        )
        self.buffers = self.decoders[0].buffers()

    def _run(self, width: int, first: int) -> None:
        assert first == 0
        self.steps.append(width)
        rows = self.buffers["rows"].reshape(-1)[: 4 * width].reshape(4, width)
        self.buffers["logits"][...] = GARBAGE
        keys, values = self.buffers["key.0"][:, 0, :, 0], self.buffers["value.0"][:, 0, :, 0]
        for row, (sequence, length, column, parent) in enumerate(rows.T.tolist()):
            committed = self.target.decoders[sequence].length
            assert (column, parent) == (length, -1)
            before, at, by = self.buffers["features"][row].tolist()
            assert at == column - 1, "the hidden state of another position"
            assert by == (BY_TARGET if column == committed else BY_DRAFTER)
            assert before == keys[sequence, column - 1], "the hidden state of another sequence"
            token = int(self.buffers["tokens"][row])
            keys[sequence, column] = token
            values[sequence, column] = -(column + 1)  # which the target would refuse to read
            self.buffers["hidden"][row] = (token, column, BY_DRAFTER)
            self.buffers["logits"][row] = self.table[int(before) * self.target.vocabulary + token]


class Batch:
    """Engines on one toy target, each with a drafter of a kind, or with none."""

    def __init__(self, size: int, kind: str | None = None, **target: Any) -> None:
        self.target = BatchToy(TABLE, size, **target)
        self.drafter: Any = None
        drafters: list[Any] = [None] * size
        if kind == "ngram":
            drafters = [_core.NgramDrafter(min_match=1, max_match=3) for _ in range(size)]
        elif kind is not None:
            attached = kind.endswith(" attached")
            kind = kind.removesuffix(" attached")
            table, head_ids = drafter_table(kind)
            short = kind == "short context"
            if attached:
                self.drafter = AttachedBatchToy(
                    table, self.target, head_ids=head_ids, context=40 if short else 1 << 20
                )
                drafters = [_core.AttachedDrafter(one) for one in self.drafter.decoders]
            else:
                self.drafter = BatchToy(
                    table,
                    size,
                    head_ids=head_ids,
                    capacity=40 if short else 1024,
                    max_logit_rows=2,
                )
                drafters = [_core.ModelDrafter(one) for one in self.drafter.decoders]
        pairs = zip(self.target.decoders, drafters, strict=True)
        self.engines = [_core.Engine(*pair) for pair in pairs]
        self.core = _core.Batch(self.engines)

    def texts(
        self,
        prompts: Sequence[list[int]],
        options: Sequence[Any],
        lengths: Sequence[int] = (),
    ) -> list[list[int]]:
        """The texts of all prompts; a prompt takes the first engine that is free."""
        found = self.outcomes(prompts, options, lengths)
        for _, error in found:
            if error is not None:
                raise error
        return [text for text, _ in found]

    def outcomes(
        self,
        prompts: Sequence[list[int]],
        options: Sequence[Any],
        lengths: Sequence[int] = (),
    ) -> list[tuple[list[int], Exception | None]]:
        """Of each prompt what was committed, and the error that ended it."""
        texts: list[list[int]] = [[] for _ in prompts]
        errors: list[Exception | None] = [None] * len(prompts)
        waiting = list(range(len(prompts)))
        writes: list[int | None] = [None] * len(self.engines)
        while True:
            for place, engine in enumerate(self.engines):
                if writes[place] is None and waiting:
                    index = writes[place] = waiting.pop(0)
                    if lengths:
                        engine.set_draft_length(lengths[index])
                    engine.start(prompts[index], options[index])
            if all(index is None for index in writes):
                return list(zip(texts, errors, strict=True))
            for place, outcome in enumerate(self.core.round()):
                index = writes[place]
                if outcome is None or index is None:
                    assert outcome is None
                elif isinstance(outcome, Exception):
                    errors[index], writes[place] = outcome, None
                else:
                    texts[index] += outcome.tokens
                    if outcome.finish != _core.Finish.none:
                        writes[place] = None
