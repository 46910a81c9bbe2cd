"""The tables of rotary position embeddings."""

from __future__ import annotations

import numpy as np

from specdec.convert.checkpoint import Checkpoint
from specdec.convert.matrix import FloatArray


def rotary_tables(
    checkpoint: Checkpoint, positions: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines [positions (None: context), head_dim / 2] of each position's rotation."""
    config = checkpoint.config
    half = config.head_dim // 2
    frequencies = config.rope_theta ** -(np.arange(half) / half)
    if checkpoint.rope_factors is not None:
        frequencies = frequencies / checkpoint.rope_factors
    angles = np.outer(np.arange(positions or config.context), frequencies)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
