"""From the ranges of a layer's sites to the encoding of every tensor in its graph."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from specdec.convert.float_forward import LINEAR_INPUTS
from specdec.convert.htp.cache import CacheScales
from specdec.convert.htp.linears import CODES_PRODUCT, OFFSETS_PRODUCT, SUMS
from specdec.convert.htp.ranges import (
    MASK,
    ROTARY,
    UNIT,
    Range,
    Ranges,
    encode8_symmetric,
    encode16_symmetric,
    encode_range,
    include,
    largest,
    masked_scores,
)
from specdec.convert.matrix import FloatArray
from specdec.htp_plan import Encoding

_SITES = (
    *("attention_norm", "query", "key", "value", "query_rotated", "key_rotated"),
    *("scores", "attention", "attention_output", "middle"),
    *("ffn_norm", "gate", "up", "silu", "gated", "down", "residual"),
)


def layer_encodings(
    ranges: Ranges,
    prefix: str,
    x: Encoding,
    scales: CacheScales,
    sink: tuple[FloatArray, FloatArray],
    minima: Collection[str],
) -> dict[str, Encoding]:
    """The encodings of a layer whose input is encoded as ``x``.

    ``scales`` are those of its cache, ``sink`` position 0's key and value as cached, ``minima`` the
    roles of its linears with minima. Keys, values and queries are encoded as scaled.
    """
    factors = {
        "query": scales.query,
        "query_rotated": scales.query,
        "key": np.reciprocal(scales.key),
        "key_rotated": np.reciprocal(scales.key),
        "value": np.reciprocal(scales.value),
    }
    spread = np.repeat(scales.value.reshape(-1, 1, scales.head_dim), scales.group, axis=1)
    found = {site: _scaled(ranges[prefix + site], factors.get(site)) for site in _SITES}
    found["mixed"] = _scaled(ranges[prefix + "attention"], np.reciprocal(spread.reshape(-1)))
    low, high = found["key_rotated"]
    found["key_centred"] = low - scales.key_centre, high - scales.key_centre
    for role in minima:
        found[LINEAR_INPUTS[role] + SUMS] = ranges[prefix + LINEAR_INPUTS[role] + SUMS]
        for site in (role + CODES_PRODUCT, role + OFFSETS_PRODUCT):
            found[site] = _scaled(ranges[prefix + site], factors.get(role))
    highest = ranges[prefix + "highest_scores"]
    cached = {
        "key_cache": include(found["key_centred"], sink[0]),
        "value_cache": include(found["value"], sink[1]),
    }
    return {
        **{site: encode_range(range) for site, range in found.items()},
        # A product with a cosine or sine is no larger than its other factor.
        **{
            f"{role}_product": encode16_symmetric(largest(found[role])) for role in ("query", "key")
        },
        **{name: encode8_symmetric(largest(range)) for name, range in cached.items()},
        "masked_scores": masked_scores(found["scores"], highest),
        "input": x,
        "mask": MASK,
        "rotary": ROTARY,
        "weights": UNIT,
        "sigmoid": UNIT,
    }


def _scaled(range: Range, factors: FloatArray | None) -> Range:
    return range if factors is None else (range[0] * factors, range[1] * factors)
