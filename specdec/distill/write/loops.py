"""Text that goes round in circles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LONGEST_PERIOD = 64
_SHORTEST_LOOP = 48  # tokens; a ruled line or a row of digits is no loop yet
_TURNS = 3
_GRAM = 4
_LEAST_DISTINCT = 0.35  # share of different 4-grams below which a long turn says nothing new


def looping(tokens: Sequence[int]) -> bool:
    """Whether the end repeats one stretch of at most 64 tokens, three times and for 48 tokens."""
    tail = np.array(tokens[-_TURNS * _LONGEST_PERIOD :])
    for period in range(1, _LONGEST_PERIOD + 1):
        span = max(_SHORTEST_LOOP, _TURNS * period)
        if span > len(tail):
            return False
        last = tail[-span:]
        if np.array_equal(last[period:], last[:-period]):
            return True
    return False


def repetitive(tokens: Sequence[int]) -> bool:
    """Whether a turn of 64 tokens or more consists of few different runs of four tokens."""
    if len(tokens) < 64:
        return looping(tokens)
    grams = np.lib.stride_tricks.sliding_window_view(np.array(tokens), _GRAM)
    return bool(len(np.unique(grams, axis=0)) < _LEAST_DISTINCT * len(grams))
