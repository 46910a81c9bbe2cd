"""The two engines against a full pass of the model, and against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specdec.convert.source import open_source
from specdec.distill.write import WriteOptions
from specdec.distill.write.engine import BatchWriter, Candidates, draw, open_writer
from tests.convert.numpy_llama import NumpyLlama

OPTIONS = WriteOptions(rows=4, length=32, threads=1)
ONNX = ("float32", "fused", "fused-exact", "nbits8", "int8-split16", "int8")
ENGINES = [("torch", "int8"), *(("onnx", layout) for layout in ONNX)]
# What the best logits may differ by from float32: bfloat16 and the layouts' roundings.
TOLERANCE = {
    "float32": 1e-3,
    "fused": 0.4,
    "fused-exact": 0.3,
    "nbits8": 0.3,
    "int8-split16": 0.15,
    "int8": 0.6,
    "torch": 0.3,
}


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: "-".join(engine))
def opened(
    request: pytest.FixtureRequest, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BatchWriter, float]]:
    engine, layout = request.param
    options = replace(OPTIONS, engine=engine, layout=layout)
    source, scratch = open_source(tiny_gguf, None), tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:  # fewer than the tiny vocabulary
        for module in ("bound", "torch_writer"):
            patch.setattr(f"specdec.distill.write.{module}.CANDIDATES", 64)
        yield (
            open_writer(source, options, scratch),
            TOLERANCE["torch" if engine == "torch" else layout],
        )


def _logits(candidates: Candidates, vocab: int) -> np.ndarray:
    logits = np.full(vocab, np.nan)
    logits[candidates.ids[0]] = candidates.logits[0]
    return logits


def _feed(writer: BatchWriter, rows: list[list[int]], fed: list[int]) -> dict[int, Candidates]:
    """Feed rows of different lengths side by side; each row's candidates after its last token."""
    last: dict[int, Candidates] = {}
    fed = list(fed)
    while any(done < len(row) for done, row in zip(fed, rows, strict=True)):
        at = [min(done, len(row) - 1) for done, row in zip(fed, rows, strict=True)]
        tokens = np.array([row[a] for row, a in zip(rows, at, strict=True)], np.int64)
        candidates = writer.step(tokens, np.array(at, np.int32))
        for row, a in enumerate(at):
            last[row] = Candidates(candidates.ids[row : row + 1], candidates.logits[row : row + 1])
            fed[row] = a + 1
    return last


def test_rows_at_different_places_are_what_the_model_says(
    opened: tuple[BatchWriter, float], tiny_gguf: Path
) -> None:
    writer, tolerance = opened
    prefix = [1, 40, 41]
    rows = [[1, 40, 41, 9], [1, 40, 41, *range(50, 60)], [1, 40, 41, 77, 5, 5]]
    writer.set_prefix(prefix)
    for row in range(3):
        writer.begin(row)
    last = _feed(writer, rows, [3, 3, 3])
    model = NumpyLlama(tiny_gguf)
    for row, tokens in enumerate(rows):
        expected = model.logits(tokens)[-1]
        found = _logits(last[row], len(expected))
        known = ~np.isnan(found)
        assert known.sum() == 64
        assert np.abs(found - expected)[known].max() < tolerance
        assert expected[~known].max() <= expected[known].min() + 2 * tolerance
        assert (np.diff(last[row].logits[0]) <= 0).all()


def test_a_moved_row_goes_on_as_before(opened: tuple[BatchWriter, float]) -> None:
    writer, _ = opened
    writer.set_prefix([1])
    rows = [[1, 30, 31], [1, 60, 61, 62], [1, 90]]
    for row in range(3):
        writer.begin(row)
    _feed(writer, rows, [1, 1, 1])
    both = np.array([7, 7], np.int64)
    before = writer.step(both, np.array([3, 4], np.int32))
    writer.move(1, 0)
    after = writer.step(both, np.array([4, 4], np.int32))
    assert np.array_equal(after.ids[0], before.ids[1])
    assert np.allclose(after.logits[0], before.logits[1], atol=1e-5)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    ids = np.array([8, 6, 4, 2])
    count = 200_000
    uniform = (np.arange(count) + 0.5) / count

    def shares(temperature: float, top_p: float) -> list[float]:
        candidates = Candidates(np.tile(ids, (count, 1)), np.tile(logits, (count, 1)))
        drawn = draw(candidates, np.full(count, temperature), np.full(count, top_p), uniform)
        return [float((drawn == token).mean()) for token in ids]

    assert shares(1.0, 1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=1e-4)
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert shares(0.5, 1.0) == pytest.approx(squares / squares.sum(), abs=1e-4)
    assert shares(1.0, 0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-4)
    assert shares(0.0, 1.0) == [1, 0, 0, 0]
