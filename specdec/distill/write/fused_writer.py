"""The target on the core's own operators, one token of many conversations per step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specdec.convert.checkpoint import ModelSource
from specdec.distill.write.bound import BoundWriter, Buffers
from specdec.distill.write.options import WriteOptions

_TILE = 32
"""Columns whose keys lie beside each other, as in csrc/kv_cache.h."""


class FusedWriter(BoundWriter):
    """Runs a graph of a fused layout, which holds K/V of any number of sequences in 16 bits."""

    operators = True

    def __init__(self, source: ModelSource, options: WriteOptions, scratch: Path) -> None:
        super().__init__(source, options, scratch)
        c, rows = source.config, options.rows
        tiles = -(-options.length // _TILE)
        shape = (c.layers, 2, rows, c.kv_heads, tiles * _TILE, c.head_dim)
        self._cache = np.zeros(shape, np.float16)
        by_tile = (c.layers, rows, c.kv_heads, tiles)  # views of the cache:
        self._keys = self._cache[:, 0].reshape(*by_tile, c.head_dim, _TILE)
        self._values = self._cache[:, 1].reshape(*by_tile, _TILE, c.head_dim)
        self._prefix = self._keys[:, 0, :, :0], self._values[:, 0, :, :0]
        self._rows = np.zeros(4 * rows, np.int32)

    def begin(self, row: int) -> None:
        """See BatchWriter."""
        keys, values = self._prefix
        self._keys[:, row, :, : keys.shape[2]] = keys
        self._values[:, row, :, : values.shape[2]] = values

    def move(self, source: int, row: int) -> None:
        """See BatchWriter."""
        self._keys[:, row] = self._keys[:, source]
        self._values[:, row] = self._values[:, source]

    def _keep_prefix(self, length: int) -> None:
        tiles = -(-length // _TILE)
        self._prefix = self._keys[:, 0, :, :tiles].copy(), self._values[:, 0, :, :tiles].copy()

    def _place(self, lengths: NDArray[np.int32]) -> None:
        places = self._rows[: 4 * len(lengths)].reshape(4, len(lengths))
        places[0] = np.arange(len(lengths))  # the sequences
        places[1] = places[2] = lengths  # what is known of them, and the column to write
        places[3] = -1  # behind what is known

    def _places(self, rows: int) -> Buffers:
        return {"rows": (self._rows, (4, rows))}

    def _caches(self, rows: int) -> Buffers:
        return {"": (self._cache, self._cache.shape)}
