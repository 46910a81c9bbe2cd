"""The written graph against a forward pass in numpy, and bit for bit against itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.graph_runner import GraphRunner, session_options
from specdec.convert import DEFAULT_DRAFTER_LAYOUT, DEFAULT_LAYOUT, LAYOUTS, convert
from specdec.errors import InvalidInputError
from specdec.model_folder import ModelFolder
from tests.convert.numpy_llama import NumpyLlama
from tests.tiny_gguf import DEFAULT_VOCAB, write_tiny_drafter, write_tiny_gguf

CAPACITY = 160
TOKENS = np.random.default_rng(5).integers(0, DEFAULT_VOCAB, CAPACITY).tolist()
QUANTISED = sorted(LAYOUTS.keys() - {"float32"})


def runner_of(folder: Path, garbage: float = 0.0) -> GraphRunner:
    options = session_options(2, {"session.intra_op.allow_spinning": "0"})
    return GraphRunner(folder / "model.onnx", CAPACITY, options, garbage=garbage)


def prefill(runner: GraphRunner, chunks: Sequence[int], length: int) -> NDArray[np.float32]:
    """Logits of the first ``length`` tokens, run in chunks of those widths in turn, none of 1."""
    rows: list[NDArray[np.float32]] = []
    past = 0
    while past < length:
        width = min(chunks[len(rows) % len(chunks)], length - past)
        if length - past - width == 1:
            width += 1
        rows.append(runner.step(TOKENS[past : past + width], past))
        past += width
    return np.concatenate(rows)


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in each layout."""
    scratch = tmp_path_factory.mktemp(request.param)
    source = write_tiny_gguf(scratch / "tiny.gguf")
    return convert(source, scratch / "model", layout=request.param)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tied": False},
        {"heads": 8, "kv_heads": 1, "hidden": 128},
        {"heads": 4, "kv_heads": 4},
        {"quant": "Q8_0", "layers": 3},
        {"quant": "F16", "embedding_quant": "F32", "ffn": 96},
        {"quant": "Q4_0", "vocab": 513},
    ],
    ids=str,
)
def test_logits_are_those_of_an_independent_forward_pass(
    tmp_path: Path, shape: dict[str, int | bool | str]
) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    expected = NumpyLlama(source).logits(TOKENS[:24])
    reference = runner_of(convert(source, tmp_path / "float32", layout="float32"))
    np.testing.assert_allclose(prefill(reference, [24], 24), expected, atol=2e-3)
    # In so narrow a model a head in 6 bits is most of what the default rounds.
    for layout, most in (("fused-exact", 0.035), (DEFAULT_LAYOUT, 0.05)):
        chosen = runner_of(convert(source, tmp_path / layout, layout=layout))
        error = prefill(chosen, [24], 24) - expected
        assert np.sqrt(np.mean(error**2)) < most * np.std(expected)


def test_a_step_reads_what_earlier_steps_wrote(folder: Path) -> None:
    whole = prefill(runner_of(folder), [48], 48)
    runner = runner_of(folder)
    prefill(runner, [16], 32)
    np.testing.assert_array_equal(runner.step(TOKENS[32:48], 32), whole[32:])


def test_the_first_logit_row_only_leaves_rows_out(folder: Path) -> None:
    runner = runner_of(folder)
    every = runner.step(TOKENS[:9], 0)
    for first in (1, 5, 8):
        np.testing.assert_array_equal(runner.step(TOKENS[:9], 0, first_row=first), every[first:])


@pytest.mark.parametrize("chunks", [[2], [3], [5, 2], [7], [16], [64], [128]], ids=str)
def test_logits_have_the_same_bits_for_every_chunking(folder: Path, chunks: list[int]) -> None:
    """Whatever finite values lie behind the written length."""
    expected = prefill(runner_of(folder), [8], 128)
    np.testing.assert_array_equal(prefill(runner_of(folder, garbage=-9.5), chunks, 128), expected)


@pytest.mark.parametrize("past", [0, 1, 30, 100])
def test_a_row_has_the_same_bits_at_every_width_and_whatever_follows_it(
    folder: Path, past: int
) -> None:
    runner = runner_of(folder)
    if past == 1:
        runner.step(TOKENS[:1], 0)
    else:
        prefill(runner, [8], past) if past else None
    draft = TOKENS[past : past + 16]
    expected = runner.step(draft, past)
    narrowest = 1 if ModelFolder.open(folder).layout.startswith("fused") else 2
    for width in range(narrowest, 17):
        changed = draft[:width]
        changed[-1] = (changed[-1] + 1) % DEFAULT_VOCAB
        found = runner.step(changed, past)
        np.testing.assert_array_equal(found[:-1], expected[: width - 1])
        assert not np.array_equal(found[-1], expected[width - 1])


@pytest.mark.parametrize("layout", QUANTISED)
def test_a_trimmed_head_gives_the_rows_of_its_ids(
    tmp_path: Path, tiny_gguf: Path, layout: str
) -> None:
    ids = [0, 7, 8, 100, 299]
    source = write_tiny_drafter(tmp_path / "drafter.gguf", head_ids=ids)
    path = convert(source, tmp_path / "drafter", target_source=tiny_gguf, layout=layout)
    expected = NumpyLlama(source, vocabulary=tiny_gguf).logits(TOKENS[:12])
    found = runner_of(path).step(TOKENS[:12], 0)
    assert found.shape == (12, len(ids))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * np.std(expected)
    assert np.load(path / "head_ids.npy").tolist() == ids
    manifest = ModelFolder.open(path)
    assert (manifest.role, manifest.config.head_size) == ("drafter", len(ids))


def test_defaults_and_unknown_layouts(tmp_path: Path, tiny_gguf: Path) -> None:
    assert ModelFolder.open(convert(tiny_gguf, tmp_path / "target")).layout == DEFAULT_LAYOUT
    source = write_tiny_drafter(tmp_path / "drafter.gguf")
    drafter = convert(source, tmp_path / "drafter", target_source=tiny_gguf)
    assert ModelFolder.open(drafter).layout == DEFAULT_DRAFTER_LAYOUT
    with pytest.raises(InvalidInputError, match="nbits8"):
        convert(tiny_gguf, tmp_path / "other", layout="int3")
    assert not (tmp_path / "other").exists()


def test_a_tied_head_shares_the_embeddings_data(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        source = write_tiny_gguf(tmp_path / f"{tied}.gguf", tied=tied, vocab=2000)
        folder = convert(source, tmp_path / str(tied), layout="nbits8")
        sizes[tied] = (folder / "model.onnx.data").stat().st_size
    assert sizes[False] - sizes[True] > 2000 * 64
