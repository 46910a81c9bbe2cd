"""How keys and values are scaled for their 8-bit encoding.

An 8-bit tensor has one step for all of its channels, while the channels of keys differ in size and
lie off centre. Both can be mended without a trace in the result:

- Scaling a pair of key channels that rotate together by 1/s, and the queries' by s, leaves their
  product as it is; both factors go into the linears' scales.
- Subtracting a constant from every rotated key lowers all scores of a row alike, which the softmax
  does not see.
- Scaling value channels by 1/s is undone by a multiplication after the attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.convert.htp.ranges import Range
from specdec.convert.htp.weights import QuantLinear
from specdec.convert.matrix import FloatArray

# Of the way from one size for all channels to each its own: further, and what the calibration did
# not see is clipped more often than what it gains. Measured on SmolLM2.
_EXPONENT = 0.75


@dataclass(frozen=True)
class CacheScales:
    """What a layer's keys and values are divided by, and what is taken from the scaled keys."""

    key: FloatArray  # [kv_heads * head_dim], the same for both of a pair that rotates
    key_centre: FloatArray  # [kv_heads * head_dim]
    value: FloatArray  # [kv_heads * head_dim]
    query: FloatArray  # [heads * head_dim]: what queries are multiplied by
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query.size // self.key.size

    @classmethod
    def fit(cls, keys: Range, values: Range, *, heads: int, head_dim: int) -> CacheScales:
        """From the ranges of rotated keys and of values."""
        low, high = keys
        spread = ((high - low) / 2).reshape(-1, 2, head_dim // 2)
        pairs = np.broadcast_to(spread.max(axis=1, keepdims=True), spread.shape)
        key = _scales(pairs.reshape(-1))
        value = _scales(np.maximum(np.abs(values[0]), np.abs(values[1])))
        group = heads * head_dim // key.size
        query = np.repeat(key.reshape(-1, 1, head_dim), group, axis=1).reshape(-1)
        return cls(key, (low + high) / (2 * key), value, query, head_dim)

    def encoded_key(self, key: FloatArray) -> FloatArray:
        """A rotated key [kv_heads * head_dim] as it is cached."""
        return key / self.key - self.key_centre

    def encoded_value(self, value: FloatArray) -> FloatArray:
        """A value [kv_heads * head_dim] as it is cached."""
        return value / self.value

    def applied(self, linears: Mapping[str, QuantLinear]) -> dict[str, QuantLinear]:
        """The linears, of those by role, whose outputs are scaled."""
        factors = {
            "query": self.query,
            "key": np.reciprocal(self.key),
            "value": np.reciprocal(self.value),
        }
        return {role: linears[role].scale_outputs(factors[role]) for role in factors}

    def constants(self) -> dict[str, FloatArray]:
        """What the graph computes with, [1, kv_heads, 1, head_dim] each."""
        shape = (1, -1, 1, self.head_dim)
        return {
            "key_centre": self.key_centre.reshape(shape),
            "value_scale": self.value.reshape(shape),
        }


def _scales(sizes: FloatArray) -> FloatArray:
    """Factors around 1 that grow with ``sizes``; 1 for what is always zero."""
    mean = sizes.mean() or np.float32(1)
    relative = np.where(sizes > 0, sizes / mean, 1)
    result: FloatArray = (np.maximum(relative, 1e-3) ** _EXPONENT).astype(np.float32)
    return result
