"""Ranges of activations, and the integer encodings that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.convert.matrix import FloatArray
from specdec.errors import InvalidInputError
from specdec.htp_plan import Encoding

Range = tuple[FloatArray, FloatArray]
"""The smallest and the largest value of each feature of a site, [features]."""

MASK_DEPTH = 100.0  # what is added to a hidden column's score
_MARGIN = 1.25  # 16 bits have steps to spare, while a clipped outlier goes through all later layers
_FORGOTTEN = 24.0  # a score so far below its row's highest has no weight that 16 bits could hold

UNIT = Encoding("uint16", 1 / 65535, 0)  # 0..1: probabilities, sigmoids
ROTARY = Encoding("uint16", 1 / 32767, 32768)  # -1..1
MASK = Encoding("uint16", MASK_DEPTH / 65535, 65535)  # -MASK_DEPTH..0
HALF = Encoding("float16")


class Ranges:
    """The range of every site that was seen. ``observe`` fits FloatForward."""

    def __init__(self, ranges: Mapping[str, Range] | None = None) -> None:
        self._ranges: dict[str, Range] = dict(ranges or {})

    def observe(self, site: str, values: FloatArray) -> None:
        low, high = values.min(axis=0), values.max(axis=0)
        if site in self._ranges:
            before = self._ranges[site]
            low, high = np.minimum(low, before[0]), np.maximum(high, before[1])
        self._ranges[site] = low, high

    def __getitem__(self, site: str) -> Range:
        try:
            return self._ranges[site]
        except KeyError:
            raise InvalidInputError(
                f"no range for '{site}': give calibration texts of two tokens or more"
            ) from None

    def as_dict(self) -> dict[str, Range]:
        """Everything that was seen, by site."""
        return dict(self._ranges)


def encode_range(range: Range) -> Encoding:
    """One encoding for all features of a site, with room for what the texts did not show."""
    return encode16(_MARGIN * float(range[0].min()), _MARGIN * float(range[1].max()))


def include(range: Range, values: FloatArray) -> Range:
    """The range with one more row, [features]."""
    return np.minimum(range[0], values), np.maximum(range[1], values)


def largest(range: Range) -> float:
    """The largest magnitude of any feature."""
    return float(max(-range[0].min(), range[1].max(), 0))


def encode16(low: float, high: float) -> Encoding:
    """65,536 steps from ``low`` to ``high``, widened to hold zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 65535 or 1.0
    return Encoding("uint16", scale, round(-low / scale))


def encode16_symmetric(largest: float) -> Encoding:
    """65,535 steps around zero."""
    return Encoding("uint16", largest / 32767 or 1.0, 32768)


def encode8_symmetric(largest: float) -> Encoding:
    """255 steps around zero.

    The zero point is always 128: the NPU shifts the second operand of a product by it into signed
    bytes, and rescales a whole column of which one element does not fit, so that with another zero
    point an element that a mask hides would change the others' result.
    """
    return Encoding("uint8", largest / 127 or 1.0, 128)


def masked_scores(scores: Range, highest: Range) -> Encoding:
    """Of scores with the mask added: down to where the lowest row's weights vanish.

    Whatever lies lower, hidden columns above all, becomes the lowest element.
    """
    return encode16(float(highest[0].min()) - _FORGOTTEN, float(scores[1].max()))


def quantise(values: FloatArray, encoding: Encoding) -> NDArray[Any]:
    """``values`` in ``encoding``, the nearest element each."""
    dtype = np.dtype(encoding.type)
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    codes = np.rint(values / np.float32(encoding.scale)) + encoding.zero_point
    quantised: NDArray[Any] = np.clip(codes, limits.min, limits.max).astype(dtype)
    return quantised
