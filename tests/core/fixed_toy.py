"""Toy models of fixed shape: the text of ``toy.Toy``, through graphs of fixed widths.

The fake graph knows what it computes from its buffers alone. It reads the tokens from the rows of
the embedding, the positions from the rotary rows and the past from the columns of K/V, whose every
element says which token, position, layer, head and channel it belongs to, and it refuses whatever
does not fit together. So a wrong mask, position, row, column or stride cannot pass unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from toy import Table

from specdec import _core

LAYERS, HEADS, DIM, HIDDEN = 2, 3, 4, 5
ALLOWED, BLOCKED = 60_000, 7
SCALE, ZERO_POINT = np.float32(0.0007), 30_000

Bits = NDArray[np.uint16]


def quantized(table: Table) -> Bits:
    """Logits as the graph gives them."""
    return np.clip(np.rint(table / SCALE) + ZERO_POINT, 0, 65_535).astype(np.uint16)


def dequantized(bits: Bits) -> Table:
    """What they stand for: one rounding, of the product."""
    whole = bits.astype(np.int32) - np.int32(ZERO_POINT)
    return np.asarray(whole.astype(np.float32) * SCALE)


def fresh_mask(width: int, past: int, length: int) -> Bits:
    mask = np.full((width, past + width), BLOCKED, np.uint16)
    mask[:, :length] = ALLOWED
    mask[:, past:][np.tri(width, dtype=bool)] = ALLOWED
    return mask


def embedding(vocabulary: int) -> Bits:
    ids = np.arange(vocabulary, dtype=np.uint16)[:, None]
    return np.ascontiguousarray(ids * HIDDEN + np.arange(HIDDEN, dtype=np.uint16))


def rotary(positions: int) -> Bits:
    cosines = np.arange(positions * DIM // 2, dtype=np.uint16).reshape(positions, DIM // 2)
    return np.stack([cosines, 60_000 - cosines])


def columns(tokens: Sequence[int], kv_bytes: int, first: int = 0) -> tuple[Any, Any]:
    """Keys [layers, heads, dim, n] and values [layers, heads, n, dim], at ``first`` and on."""
    dtype = np.uint8 if kv_bytes == 1 else np.uint16
    ids = np.asarray(tokens, np.int64)
    place = np.arange(first, first + len(ids))
    layer = np.arange(LAYERS)[:, None, None, None] * 97
    head = np.arange(HEADS)[:, None, None] * 31
    channel = np.arange(DIM) * 11
    keys = ids * 5 + place * 257 + 1 + layer + head + channel[:, None]
    values = (ids * 3 + place * 263 + 2)[:, None] + layer + head + channel
    return keys.astype(dtype), values.astype(dtype)


class FixedToy:
    """One model behind a decoder of its own."""

    def __init__(
        self,
        table: Table,
        *,
        head_ids: list[int] | None = None,
        widths: Sequence[int] = (2, 8, 32),
        past: int = 256,
        kv_bytes: int = 1,
        float16: bool = False,
        sink: int | None = None,
        has_best: bool = False,
    ) -> None:
        vocabulary = table.shape[0]
        self.vocabulary, self.past, self.kv_bytes = vocabulary, past, kv_bytes
        bits = table.astype(np.float16).view(np.uint16) if float16 else quantized(table)
        self.table = table.astype(np.float16).astype(np.float32) if float16 else dequantized(bits)
        self.logits_bits = bits
        self.sink = sink
        self.widths, self.heads = [], []  # type: list[int], list[int]
        self.before_run: Callable[[int], None] | None = None  # gets the number of the run
        self.embedding = embedding(vocabulary)
        self.rotary = rotary(past + max(widths))
        self.decoder = _core.FixedDecoder(
            vocabulary=vocabulary,
            head_ids=head_ids or [],
            layers=LAYERS,
            kv_heads=HEADS,
            head_dim=DIM,
            hidden=HIDDEN,
            past=past,
            widths=list(widths),
            kv_bytes=kv_bytes,
            embedding=self.embedding,
            rotary=self.rotary,
            mask_allowed=ALLOWED,
            mask_blocked=BLOCKED,
            logits_scale=1.0 if float16 else float(SCALE),
            logits_zero_point=0 if float16 else ZERO_POINT,
            logits_float16=float16,
            sink=None if sink is None else self._sink_entries(sink),
            has_best=has_best,
            run=self._run,
        )
        self.buffers = self.decoder.buffers()
        self.widest = self.decoder.buffers()[f"x.{max(widths)}"].shape[1]

    def _sink_entries(self, token: int) -> dict[str, Any]:
        keys, values = columns([token], self.kv_bytes)
        return {
            "token": token,
            "key": np.ascontiguousarray(keys[:, :, :, 0]),
            "value": np.ascontiguousarray(values[:, :, 0]),
            "logits": np.ascontiguousarray(self.table[0, token]),
        }

    def past_columns(self) -> tuple[Any, Any]:
        """Keys [layers, heads, dim, past] and values [layers, heads, past, dim], a copy."""
        keys = [self.buffers[f"past_key.{i}"][0] for i in range(LAYERS)]
        values = [self.buffers[f"past_value.{i}"][0] for i in range(LAYERS)]
        return np.stack(keys), np.stack(values)

    def past_tokens(self, length: int) -> list[int]:
        """The tokens that the past holds, if every element of it is what it should be."""
        keys, values = self.past_columns()
        first = self.buffers["past_key.0"][0, 0, 0, :length].astype(np.int64)
        modulus = 256 if self.kv_bytes == 1 else 65_536
        inverse = pow(5, -1, modulus)
        tokens = [int((key - 1 - 257 * p) * inverse % modulus) for p, key in enumerate(first)]
        expected_keys, expected_values = columns(tokens, self.kv_bytes)
        assert np.array_equal(keys[:, :, :, :length], expected_keys), "keys of other columns"
        assert np.array_equal(values[:, :, :length], expected_values), "values of other columns"
        return tokens

    def _run(self, width: int, head: int) -> None:
        self.widths.append(width)
        self.heads.append(head)
        if self.before_run is not None:
            self.before_run(len(self.widths))
        get = self.buffers
        mask = get[f"mask.{width}"][0, 0]
        length = int((mask[0, : self.past] == ALLOWED).sum())
        assert np.array_equal(mask, fresh_mask(width, self.past, length)), "a wrong mask"
        assert self.sink is None or length > 0, "the sink's own token was run"
        positions = slice(length, length + width)
        assert np.array_equal(get[f"cos.{width}"][0, 0], self.rotary[0, positions]), "cosines"
        assert np.array_equal(get[f"sin.{width}"][0, 0], self.rotary[1, positions]), "sines"
        ids = get[f"x.{width}"][0, :, 0].astype(np.int64) // HIDDEN
        assert np.array_equal(get[f"x.{width}"][0], self.embedding[ids]), "rows of the embedding"

        keys, values = columns(list(ids), self.kv_bytes, first=length)
        for i in range(LAYERS):
            for name, new in (("new_key", keys[i]), ("new_value", values[i])):
                get[f"{name}.{i}.{self.widest}"][...] = 0xEE  # of a wider step before
                get[f"{name}.{i}.{width}"][0] = new
        get[f"logits.{self.widest}"][...] = 1  # nothing that is to be read
        if f"best.{self.widest}" in get:
            get[f"best.{self.widest}"][...] = -1
        seen = np.array([0, *self.past_tokens(length), *ids])
        rows = seen[-width - 1 : -1], seen[-width:]
        if head == 1:
            get[f"logits.{width}"][0] = self.logits_bits[rows]
        if head == 2:
            get[f"best.{width}"][0] = self.table[rows].argmax(-1)
