"""Layouts ``fused``: the written graph, by its definition, against the checkpoint's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.graph_runner import GraphRunner, new_cache, session_options
from specdec.convert import convert
from specdec.model_folder import ModelFolder
from tests.convert.graph_pair import session
from tests.convert.numpy_llama import NumpyAttached, NumpyLlama
from tests.convert.reference_ops import Array, ReferenceGraph, chain
from tests.tiny_gguf import DEFAULT_VOCAB, write_tiny_drafter, write_tiny_gguf

CAPACITY = 64
NAMES = ["logits", "hidden", "best"]
TOKENS = np.random.default_rng(7).integers(0, DEFAULT_VOCAB, CAPACITY).tolist()
SHAPES: list[dict[str, int | bool | str]] = [
    {},
    {"tied": False},
    {"heads": 8, "kv_heads": 1, "hidden": 128},
    {"heads": 4, "kv_heads": 4, "ffn": 96},
    {"quant": "Q8_0", "layers": 3},
    {"quant": "Q4_0", "vocab": 513},
]


def prefill(graph: ReferenceGraph, chunks: list[int]) -> tuple[Array, Array]:
    """Logits and hidden states of the first tokens, in steps of those widths."""
    logits, states, past = [], [], 0
    for width in chunks:
        row, state = graph.step(TOKENS[past : past + width], chain(past, width))
        logits.append(row)
        states.append(state)
        past += width
    return np.concatenate(logits), np.concatenate(states)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_graph_is_the_model(tmp_path: Path, shape: dict[str, int | bool | str]) -> None:
    """Every weight is held exactly, so that nothing but the tables' float32 is lost."""
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    folder = convert(source, tmp_path / "model", layout="fused-exact")
    reference = NumpyLlama(source)
    expected, _ = reference.states(TOKENS[:20])
    exact = ReferenceGraph(folder, CAPACITY, rounded=False)
    logits, states = prefill(exact, [9, 1, 4, 6])
    np.testing.assert_allclose(states, expected, atol=1e-5)
    np.testing.assert_allclose(logits, reference.head(expected), atol=1e-4)
    rounded = prefill(ReferenceGraph(folder, CAPACITY, rounded=True), [20])[0]
    assert 0 < np.sqrt(np.mean((rounded - logits) ** 2)) < 0.03 * np.std(logits)
    last, _ = exact.step(TOKENS[20:23], chain(20, 3), first_row=2)
    np.testing.assert_allclose(last, reference.logits(TOKENS[:23])[22:], atol=1e-4)


@pytest.mark.parametrize("layout", ["fused", "fused-exact"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operators_compute_what_they_are_defined_to(
    tmp_path: Path, shape: dict[str, int | bool | str], layout: str
) -> None:
    """In float32, so that a value between two of the 8-bit ones may be rounded either way.

    That moves some rows a little; the others are the same to float32's last digits.
    """
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    folder = convert(source, tmp_path / "model", layout=layout)
    reference = ReferenceGraph(folder, CAPACITY, rounded=True)
    runner = GraphRunner(folder / "model.onnx", CAPACITY, session_options(2), garbage=9.5)
    errors, past = [], 0
    for width in (1, 9, 4, 17):
        expected, _ = reference.step(TOKENS[past : past + width], chain(past, width))
        found = runner.step(TOKENS[past : past + width], past)
        errors += list(np.sqrt(np.mean((found - expected) ** 2, -1)) / np.std(expected))
        past += width
    assert max(errors) < 0.04
    assert np.median(errors) < 0.015
    assert min(errors) < 1e-5


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_rounded_more_changes_little(
    tmp_path: Path,
    shape: dict[str, int | bool | str],
    mixed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scales of 4 bits, which 8 bits have not; and most of the head."""
    if not mixed:
        monkeypatch.setattr("specdec.convert.fused_graph.pack_mixed", lambda matrix, gain: None)
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    exact, found = (
        prefill(
            ReferenceGraph(
                convert(source, tmp_path / layout, layout=layout), CAPACITY, rounded=False
            ),
            [20],
        )[0]
        for layout in ("fused-exact", "fused")
    )
    error = np.sqrt(np.mean((found - exact) ** 2)) / np.std(exact)
    if mixed:
        assert 0 < error < 0.05
    else:
        assert error == 0 if shape.get("quant") == "Q8_0" else 0 < error < 0.02


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_best_tokens_alone(tmp_path: Path, shape: dict[str, int | bool | str]) -> None:
    """They are those of the logits, and what is written to K/V and given as states is the same."""
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    model = session(convert(source, tmp_path / "model", layout="fused") / "model.onnx")
    past = next(value for value in model.get_inputs() if value.name == "past")
    found = []
    for best_only in (None, 0, 1):
        cache = new_cache(past.shape, past.type, CAPACITY, garbage=9.5).numpy()
        feeds = {
            "tokens": np.array([TOKENS[:20]], np.int64),
            "first_logit_row": np.array([3]),
            "rows": chain(0, 20),
            "past": cache,
        }
        if best_only is not None:
            feeds["best_only"] = np.array([best_only])
        found.append(dict(zip(NAMES, model.run(NAMES, feeds), strict=True)))
    as_ever, logits, best = found
    np.testing.assert_array_equal(as_ever["logits"], logits["logits"])
    np.testing.assert_array_equal(best["best"], logits["logits"].argmax(-1))
    np.testing.assert_array_equal(best["hidden"], logits["hidden"])


@pytest.mark.parametrize("layout", ["fused", "fused-exact"])
def test_who_gives_the_best_tokens(tmp_path: Path, tiny_gguf: Path, layout: str) -> None:
    """A target whose head has two parts; a drafter that reads states is asked how sure it is."""
    target = convert(tiny_gguf, tmp_path / "target", layout=layout)
    drafter = write_tiny_drafter(tmp_path / "drafter.gguf", target_layers=(0,), head_ids=range(200))
    attached = convert(drafter, tmp_path / "attached", layout=layout, target_source=tiny_gguf)
    given = [
        "best" in {value.name for value in session(folder / "model.onnx").get_outputs()}
        for folder in (target, attached)
    ]
    assert given == [layout == "fused", False]


@pytest.mark.parametrize("shape", [{"quant": "F16", "embedding_quant": "F32"}], ids=str)
def test_other_weights_are_rounded_to_8_bits(tmp_path: Path, shape: dict[str, str]) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    folder = convert(source, tmp_path / "model", layout="fused-exact")
    found, _ = prefill(ReferenceGraph(folder, CAPACITY, rounded=False), [20])
    error = found - NumpyLlama(source).logits(TOKENS[:20])
    assert 0 < np.sqrt(np.mean(error**2)) < 0.02 * np.std(found)


@pytest.mark.parametrize("layers", [(0, 2, 5), (1, 2, 5), (0, 1), (5,)], ids=str)
def test_an_attached_drafter_is_its_definition(tmp_path: Path, layers: tuple[int, ...]) -> None:
    """Bridges in between, first, none, one; three steps, each on the state of the one before."""
    target_gguf = write_tiny_gguf(tmp_path / "target.gguf", layers=6)
    ids = list(range(1, DEFAULT_VOCAB, 2))
    source = write_tiny_drafter(tmp_path / "drafter.gguf", head_ids=ids, target_layers=layers)
    target = ReferenceGraph(
        convert(target_gguf, tmp_path / "target", layout="fused-exact"), CAPACITY, rounded=False
    )
    folder = convert(source, tmp_path / "drafter", target_source=target_gguf, layout="fused-exact")
    assert ModelFolder.open(folder).layout == "fused-exact"
    feature = prefill(target, [20])[1][-1]
    drafter = ReferenceGraph(folder, CAPACITY, rounded=False, cache=target.cache)
    states, cache = NumpyLlama(target_gguf).states(TOKENS[:20])
    attached = NumpyAttached(source, target_gguf)
    expected = attached.draft(TOKENS[20:23], states[-1], cache)
    for index in range(3):
        logits, state = drafter.step(
            [TOKENS[20 + index]], chain(20 + index, 1), features=feature[None]
        )
        feature = state[0]
        np.testing.assert_allclose(feature, expected[index], atol=1e-5)
        np.testing.assert_allclose(logits[0], attached.head(expected[index]), atol=1e-4)


def test_rows_of_a_tree_are_those_of_their_paths(tmp_path: Path, tiny_gguf: Path) -> None:
    """And sequences that share a step are those of their own texts."""
    folder = convert(tiny_gguf, tmp_path / "model", layout="fused-exact")
    graph = ReferenceGraph(folder, CAPACITY, rounded=False, sequences=2)
    for sequence, past in ((0, 8), (1, 11)):
        graph.step(TOKENS[sequence : past + sequence], chain(0, past, sequence))
    # Sequence 0: a, then b or c, then d behind b. Sequence 1: e.
    a, b, c, d, e = TOKENS[30:35]
    rows = np.array(
        [[0, 0, 0, 0, 1], [8, 8, 8, 8, 11], [8, 9, 11, 10, 11], [-1, 0, 0, 1, -1]], np.int32
    )
    logits, _ = graph.step([a, b, c, d, e], rows)
    reference = NumpyLlama(tiny_gguf)
    for row, path in enumerate(([a], [a, b], [a, c], [a, b, d])):
        expected = reference.logits([*TOKENS[:8], *path])[-1]
        np.testing.assert_allclose(logits[row], expected, atol=1e-4)
    expected = reference.logits([*TOKENS[1:12], e])[-1]
    np.testing.assert_allclose(logits[4], expected, atol=1e-4)
