"""A toy target that gives hidden states, and a toy drafter attached to it.

The drafter's context of two tokens comes half from its features and half from the step's token, so
that a hidden state of another position changes its drafts, and every step checks where its
features and the columns before it come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from toy import GARBAGE, Table, Toy

from specdec import _core

HIDDEN = 3
"""What a hidden state holds: the token, its position, and who computed it."""
BY_TARGET, BY_DRAFTER = 1.0, 2.0


class AttachedToy:
    """A drafter without a past of its own, beside the target that it reads."""

    def __init__(
        self,
        table: Table,
        target: Toy,
        *,
        head_ids: list[int] | None = None,
        context: int = 1 << 20,
        target_layers: tuple[int, ...] = (0,),
    ) -> None:
        self.target = target
        self.vocabulary = table.shape[0]
        self.rows = np.ascontiguousarray(table.reshape(-1, table.shape[2]))
        self.runs = 0
        self.before_run: Any = None  # gets the number of the run
        self.positions: list[int] = []  # of all steps
        self.decoder = _core.AttachedDecoder(
            vocabulary=self.vocabulary,
            head_ids=head_ids or [],
            target=target.decoder,
            target_layers=target_layers,
            context=context,
            run=self._run,
        )
        buffers = self.decoder.buffers()
        self.tokens: NDArray[Any] = buffers["tokens"]
        self.seqlens_k: NDArray[Any] = buffers["seqlens_k"]
        self.total_length: NDArray[Any] = buffers["total_length"]
        self.first_logit_row: NDArray[Any] = buffers["first_logit_row"]
        self.row_places: NDArray[Any] = buffers["rows"]
        self.features: NDArray[Any] = buffers["features"][0]
        self.hidden: NDArray[Any] = buffers["hidden"][0]
        self.logits: NDArray[Any] = buffers["logits"]
        self.keys: NDArray[Any] = buffers["key.0"][0, 0, :, 0]
        self.values: NDArray[Any] = buffers["value.0"][0, 0, :, 0]

    def _run(self, width: int, first: int) -> None:
        self.runs += 1
        if self.before_run is not None:
            self.before_run(self.runs)
        position = int(self.total_length[()]) - 1
        self.positions.append(position)
        assert (width, first, self.first_logit_row[0]) == (1, 0, 0)
        assert self.seqlens_k[0] == position
        assert self.row_places.ravel().tolist() == [0, position, position, -1]
        committed = self.target.decoder.length
        before, at, by = self.features.tolist()
        assert at == position - 1, "the hidden state of another position"
        assert by == (BY_TARGET if position == committed else BY_DRAFTER)
        assert before == self.keys[position - 1], "the hidden state of another token"
        drafted = position - committed
        whose = [position] if drafted == 0 else [-position]
        assert self.values[position - 1 : position].tolist() == whose
        token = int(self.tokens[0])
        self.keys[position] = token
        self.values[position] = -(position + 1)  # which the target would refuse to read
        self.hidden[:] = (token, position, BY_DRAFTER)
        self.logits[...] = GARBAGE
        self.logits[0] = self.rows[int(before) * self.vocabulary + token]


class TargetToy(Toy):
    """A toy whose graph also gives the hidden state of every row."""

    def __init__(self, table: Table, **options: Any) -> None:
        super().__init__(table, hidden=HIDDEN, **options)
        self.hidden: NDArray[Any] = self.decoder.buffers()["hidden"]

    def _run(self, width: int, first: int) -> None:
        if self.poison:
            self.hidden[...] = GARBAGE
        super()._run(width, first)
        start, depths, _ = self.places(width)
        self.hidden[:width, 0] = self.tokens[:width]
        self.hidden[:width, 1] = [start + depth for depth in depths]
        self.hidden[:width, 2] = BY_TARGET
