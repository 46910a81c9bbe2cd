"""K/V column by column, however a decoder holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec._core import Decoder

TILE = 32  # columns of 16-bit keys that lie together, [head_dim, TILE]


def from_tiles(keys: NDArray[Any]) -> NDArray[Any]:
    """Keys as they lie in memory -> [..., columns, head_dim], a copy."""
    *outer, columns, dim = keys.shape
    tiles = keys.reshape(*outer, columns // TILE, dim, TILE)
    return np.ascontiguousarray(np.swapaxes(tiles, -1, -2)).reshape(keys.shape)


def to_tiles(keys: NDArray[Any]) -> NDArray[Any]:
    """The opposite of ``from_tiles``."""
    *outer, columns, dim = keys.shape
    tiles = keys.reshape(*outer, columns // TILE, TILE, dim)
    return np.ascontiguousarray(np.swapaxes(tiles, -1, -2)).reshape(keys.shape)


def read_columns(decoder: Decoder) -> dict[str, NDArray[Any]]:
    """``key.0``, ``value.0``, …: [sequences, kv_heads, columns, head_dim], copies."""
    return {
        name: from_tiles(buffer) if _in_tiles(name, buffer) else buffer.copy()
        for name, buffer in decoder.buffers().items()
        if name.startswith(("key", "value"))
    }


def write_columns(decoder: Decoder, columns: dict[str, NDArray[Any]]) -> None:
    """The opposite of ``read_columns``."""
    buffers = decoder.buffers()
    for name, values in columns.items():
        buffer = buffers[name]
        buffer[...] = to_tiles(values) if _in_tiles(name, buffer) else values


def _in_tiles(name: str, buffer: NDArray[Any]) -> bool:
    return name.startswith("key") and buffer.dtype == np.float16
