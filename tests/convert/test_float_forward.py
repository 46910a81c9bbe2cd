"""The streaming forward pass against one that shares no code with specdec, and what it observes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specdec.convert.float_forward import FloatForward, LayerWeights, Observe, load_linear
from specdec.convert.gguf_checkpoint import GgufCheckpoint
from specdec.convert.htp.ranges import Ranges
from specdec.convert.matrix import FloatArray
from specdec.errors import InvalidInputError
from tests.convert.numpy_llama import NumpyLlama

TEXTS = [
    [1, *np.random.default_rng(seed).integers(0, 300, length)] for seed, length in ((3, 40), (4, 7))
]


def run(source: Path, texts: list[list[int]], observe: Observe, centre: float = 0.0) -> FloatArray:
    checkpoint = GgufCheckpoint(source)
    forward = FloatForward(checkpoint, texts)
    config = checkpoint.config
    shift = np.full(config.kv_heads * config.head_dim, centre, np.float32)
    for layer in range(config.layers):
        weights = LayerWeights.load(checkpoint, layer)
        forward.layer(weights, f"layers.{layer}.", observe, shift if centre else None)
    return forward.head(checkpoint.vector("final_norm"), load_linear(checkpoint, "head"), observe)


@pytest.mark.parametrize("centre", [0.0, 0.7])
def test_logits_are_those_of_an_independent_forward_pass(tiny_gguf: Path, centre: float) -> None:
    """Whatever is subtracted from the keys."""
    rows: list[FloatArray] = []

    def keep(site: str, values: FloatArray) -> None:
        if site == "logits":
            rows.append(values)

    sink = run(tiny_gguf, TEXTS, keep, centre)
    reference = NumpyLlama(tiny_gguf)
    for text, found in zip(TEXTS, rows, strict=True):
        expected = reference.logits(text)
        np.testing.assert_allclose(found, expected[1:], atol=2e-4)
        np.testing.assert_allclose(sink, expected[0], atol=2e-4)


def test_position_0_is_not_observed(tiny_gguf: Path) -> None:
    rows: dict[str, int] = {}

    def count(site: str, values: FloatArray) -> None:
        assert values.ndim == 2
        rows[site] = rows.get(site, 0) + len(values)

    run(tiny_gguf, TEXTS, count)
    positions = sum(len(text) - 1 for text in TEXTS)
    scores = {site: seen for site, seen in rows.items() if "scores" in site}
    assert {rows[site] for site in rows.keys() - scores.keys()} == {positions}
    visible = sum(row + 1 for text in TEXTS for row in range(1, len(text)))
    assert scores["layers.1.scores"] == 4 * visible
    assert scores["layers.1.highest_scores"] == 4 * positions


def test_ranges_are_of_every_text_and_feature(tiny_gguf: Path) -> None:
    both, first, second = Ranges(), Ranges(), Ranges()
    run(tiny_gguf, TEXTS, both.observe)
    run(tiny_gguf, TEXTS[:1], first.observe)
    run(tiny_gguf, TEXTS[1:], second.observe)
    for site, (low, high) in both.as_dict().items():
        lows, highs = zip(first[site], second[site], strict=True)
        np.testing.assert_allclose(low, np.minimum(*lows), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(high, np.maximum(*highs), rtol=1e-4, atol=1e-4)
    assert both["layers.0.gated"][0].shape == (128,)


@pytest.mark.parametrize("texts", [[], [[]], [[1] * 257]], ids=["none", "empty", "too long"])
def test_texts_that_cannot_be(tiny_gguf: Path, texts: list[list[int]]) -> None:
    with pytest.raises(InvalidInputError, match="1 to 256 tokens"):
        FloatForward(GgufCheckpoint(tiny_gguf), texts)
