"""Logits to probabilities in numpy, written from the documentation of the sampling options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def distribution(
    logits: NDArray[np.float32],
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Sequence[tuple[int, float]] = (),
    **_: Any,
) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    for token, bias in logit_bias:
        x[token] += bias
    for token in set(prompt) | set(generated):
        x[token] = x[token] / repetition_penalty if x[token] > 0 else x[token] * repetition_penalty
    for token, count in Counter(generated).items():
        x[token] -= presence_penalty + frequency_penalty * count
    if temperature == 0:
        return np.eye(len(x))[int(np.argmax(x))]
    x = x / temperature
    p = np.exp(x - x.max())
    order = np.lexsort((np.arange(len(p)), -p))  # heaviest first, equals by id
    if top_k > 0:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p < 1:
        before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
        p[order[before >= top_p]] = 0
        p /= p.sum()
    p[p < min_p * p.max()] = 0
    return np.asarray(p / p.sum())
