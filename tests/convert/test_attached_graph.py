"""Attached drafters: the written graphs, on a target's K/V, against the definition in numpy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from specdec.convert import LAYOUTS, convert
from specdec.convert.htp.folder import convert_htp
from specdec.errors import CheckpointError, InvalidInputError, ModelFolderError
from specdec.model_folder import MANIFEST, ModelFolder, write_manifest
from specdec.quantize import measure, quantize
from tests.convert.graph_pair import Floats, GraphPair
from tests.convert.numpy_llama import NumpyAttached, NumpyLlama
from tests.tiny_gguf import DEFAULT_VOCAB, write_tiny_drafter, write_tiny_gguf

LENGTH = 21  # positions that the target holds before the drafter begins
TOKENS = np.random.default_rng(9).integers(0, DEFAULT_VOCAB, 40).tolist()
HEAD_IDS = list(range(1, DEFAULT_VOCAB, 2))
TARGET_LAYERS = [(0, 2, 5), (1, 2, 5), (0, 1), (5,)]  # bridges: in between, first, none, one


@pytest.fixture(scope="module")
def target_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, so that a drafter can leave some out."""
    return write_tiny_gguf(tmp_path_factory.mktemp("target") / "target.gguf", layers=6)


def convert_drafter(
    folder: Path, target: Path, layers: tuple[int, ...], layout: str | None = None
) -> tuple[Path, Path]:
    """An attached drafter's checkpoint and model folder."""
    source = write_tiny_drafter(folder / "drafter.gguf", head_ids=HEAD_IDS, target_layers=layers)
    return source, convert(source, folder / "drafter", target_source=target, layout=layout)


def draft(pair: GraphPair, tokens: list[int], past: int, feature: Floats) -> tuple[Floats, Floats]:
    """One token after another: the first with ``feature``, others with the drafter's own state."""
    logits, states = [], []
    for index, token in enumerate(tokens):
        row, state = pair.draft([token], past + index, feature[None])
        feature = state[0]
        logits.append(row[0])
        states.append(feature)
    return np.stack(logits), np.stack(states)


def relative_error(found: Floats, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected))


@pytest.mark.parametrize("layers", TARGET_LAYERS, ids=str)
def test_drafts_are_those_of_the_definition(
    tmp_path: Path, target_gguf: Path, layers: tuple[int, ...]
) -> None:
    """Three unrolled steps in float32, which nothing but rounding keeps from being the same."""
    source, drafter = convert_drafter(tmp_path, target_gguf, layers, "float32")
    pair = GraphPair(convert(target_gguf, tmp_path / "target", layout="float32"), drafter)
    _, hidden = pair.target(TOKENS[:LENGTH], 0)
    reference = NumpyLlama(target_gguf)
    states, cache = reference.states(TOKENS[:LENGTH])
    np.testing.assert_allclose(hidden, states, atol=2e-4)

    tokens = TOKENS[LENGTH : LENGTH + 3]
    logits, found = draft(pair, tokens, LENGTH, hidden[-1])
    attached = NumpyAttached(source, target_gguf)
    expected = attached.draft(tokens, states[-1], cache)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(logits, attached.head(expected), atol=2e-3)
    assert logits.shape == (3, len(HEAD_IDS))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_drafts_nearly_the_same(
    tmp_path: Path, target_gguf: Path, layout: str
) -> None:
    source, drafter = convert_drafter(tmp_path, target_gguf, (0, 2, 5), layout)
    # Of those with the same K/V.
    exact = "fused-exact" if LAYOUTS[layout].fused else "float32"
    pair = GraphPair(convert(target_gguf, tmp_path / "target", layout=exact), drafter)
    _, hidden = pair.target(TOKENS[:LENGTH], 0)
    states, cache = NumpyLlama(target_gguf).states(TOKENS[:LENGTH])
    tokens = TOKENS[LENGTH : LENGTH + 2]
    logits, found = draft(pair, tokens, LENGTH, hidden[-1])
    attached = NumpyAttached(source, target_gguf)
    expected = attached.draft(tokens, states[-1], cache)
    assert relative_error(found, expected) < 0.03
    mixed = LAYOUTS[layout].mixed_head
    assert relative_error(logits, attached.head(expected)) < (0.04 if mixed else 0.03)


def test_the_features_and_the_shared_columns_matter(tmp_path: Path, target_gguf: Path) -> None:
    """Were they not read, the tests above could pass on anything that is close."""
    _, drafter = convert_drafter(tmp_path, target_gguf, (0, 2))
    pair = GraphPair(convert(target_gguf, tmp_path / "target"), drafter)
    _, hidden = pair.target(TOKENS[:LENGTH], 0)
    tokens = TOKENS[LENGTH : LENGTH + 2]
    logits, _ = draft(pair, tokens, LENGTH, hidden[-1])
    others, _ = draft(pair, tokens, LENGTH, hidden[-2])
    assert np.abs(others - logits).max() > 0.1
    pair.target(list(reversed(TOKENS[:LENGTH])), 0)
    others, _ = draft(pair, tokens, LENGTH, hidden[-1])
    assert np.abs(others - logits).max() > 0.1


def test_drafting_leaves_the_targets_logits_alone(tmp_path: Path, target_gguf: Path) -> None:
    """Its verification step overwrites whatever the drafter put behind the committed columns."""
    _, drafter = convert_drafter(tmp_path, target_gguf, (0, 2, 5))
    target = convert(target_gguf, tmp_path / "target")
    drafted, alone = GraphPair(target, drafter), GraphPair(target, drafter, garbage=-3.0)
    for pair in (drafted, alone):
        _, hidden = pair.target(TOKENS[:LENGTH], 0)
    draft(drafted, TOKENS[LENGTH : LENGTH + 4], LENGTH, hidden[-1])
    step = TOKENS[LENGTH : LENGTH + 5]
    for found, expected in zip(
        drafted.target(step, LENGTH), alone.target(step, LENGTH), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_hidden_output_changes_no_bit_of_the_logits(
    tmp_path: Path, tiny_gguf: Path, tiny_attached: Path, layout: str
) -> None:
    target = convert(tiny_gguf, tmp_path / "target", layout=layout)
    without = shutil.copytree(target, tmp_path / "without")
    model = onnx.load(without / "model.onnx", load_external_data=False)
    model.graph.output.remove(next(each for each in model.graph.output if each.name == "hidden"))
    onnx.save(model, without / "model.onnx")
    write_manifest(without, ModelFolder.open(target).manifest)
    pair, plain = GraphPair(target, tiny_attached), GraphPair(without, tiny_attached)
    past = 0
    for width in (17, 2, 5, 12):
        tokens = TOKENS[past : past + width]
        logits, hidden = pair.target(tokens, past)
        expected, nothing = plain.target(tokens, past)
        np.testing.assert_array_equal(logits, expected)
        assert hidden.any()
        assert not nothing.any()
        past += width
    for name, buffer in pair.cache.items():
        np.testing.assert_array_equal(
            buffer.numpy()[..., :past, :], plain.cache[name].numpy()[..., :past, :]
        )


def test_the_manifest_names_the_targets_layers(
    tiny_target: Path, tiny_drafter: Path, tiny_attached: Path
) -> None:
    attached = ModelFolder.open(tiny_attached)
    assert (attached.role, attached.is_attached) == ("drafter", True)
    assert attached.config.target_layers == (1,)
    assert attached.config.bridges == (0,)
    assert attached.manifest["config"]["target_layers"] == [1]
    assert attached.config.attachment_problem(ModelFolder.open(tiny_target).config) is None
    for folder in map(ModelFolder.open, (tiny_target, tiny_drafter)):
        assert not folder.is_attached
        assert folder.config.bridges == ()
        assert "target_layers" not in folder.manifest["config"]


@pytest.mark.parametrize("wrong", [[], [-1], [0, 1], ["1"], [True], 1], ids=str)
def test_a_damaged_manifest_is_refused(tmp_path: Path, tiny_attached: Path, wrong: object) -> None:
    folder = shutil.copytree(tiny_attached, tmp_path / "attached")
    manifest = dict(ModelFolder.open(folder).manifest)
    config = {**manifest["config"], "target_layers": wrong}
    (folder / MANIFEST).unlink()
    write_manifest(folder, {**manifest, "config": config})
    with pytest.raises(ModelFolderError, match="'target_layers'") as caught:
        ModelFolder.open(folder)
    assert "\n" not in str(caught.value)


def refusal(folder: Path, target: Path, **drafter: Any) -> str:
    """The one line that a conversion fails with; nothing is left behind."""
    source = write_tiny_drafter(folder / "drafter.gguf", **drafter)
    with pytest.raises(CheckpointError) as caught:
        convert(source, folder / "model", target_source=target)
    assert not (folder / "model").exists()
    message = str(caught.value)
    assert message.startswith(str(source))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("drafter", "expected"),
    [
        ({"target_layers": (0, 6)}, "layer 6, and the target has layers 0 to 5"),
        ({"target_layers": (2, 0)}, "must name 2 of the target's layers, ascending, not [2, 0]"),
        ({"target_layers": (2, 2)}, "ascending, not [2, 2]"),
        ({"target_layers": (-1,)}, "ascending, not [-1]"),
        (
            {"target_layers": (0, 2), "metadata": {"specdec.target_layers": [1]}},
            "must name 2 of the target's layers, ascending, not [1]",
        ),
        (
            {"target_layers": (0, 2), "metadata": {"specdec.target_layers": [0.0, 2.0]}},
            "ascending, not [0.0, 2.0]",
        ),
        (
            {"target_layers": (0, 2), "metadata": {"specdec.target_layers": 2}},
            "'specdec.target_layers' is 2, expected the numbers of the target's layers",
        ),
        (
            {"target_layers": (0,), "metadata": {"specdec.drafter_kind": "parallel"}},
            "is 'parallel', expected one of standalone, attached",
        ),
        (
            {"target_layers": (0, 2), "hidden": 128, "heads": 8},
            "a target with a hidden size of 128, and this one has a hidden size of 64",
        ),
        (
            {"target_layers": (0, 2), "kv_heads": 4},
            "a target with 4 key/value heads, and this one has 2 key/value heads",
        ),
        (
            {"target_layers": (0, 2), "metadata": {"llama.rope.freq_base": 5e5}},
            "a RoPE theta of 500000, and this one has a RoPE theta of 10000",
        ),
        (
            {"target_layers": (0, 2), "tensors": {"rope_freqs.weight": np.full(8, 2, np.float32)}},
            "its 'rope_freqs.weight' are not the target's",
        ),
        (
            {"target_layers": (0, 2), "tensors": {"blk.1.bridge.weight": np.ones((64, 64), "f")}},
            "'blk.1.bridge.weight' has shape (64, 64), expected (64, 128)",
        ),
        (
            {"target_layers": (0, 2), "tensors": {"blk.1.bridge.bias": np.ones(32, "f")}},
            "'blk.1.bridge.bias' has shape (32,), expected (64,)",
        ),
        (
            {"target_layers": (0, 2), "without": ["blk.1.bridge.scale"]},
            "tensor 'blk.1.bridge.scale' is missing",
        ),
        (
            {"target_layers": (0, 1), "tensors": {"blk.1.bridge.bias": np.ones(64, "f")}},
            "such as 'blk.1.bridge.bias'",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_drafters_that_do_not_fit_are_refused(
    tmp_path: Path, target_gguf: Path, drafter: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(tmp_path, target_gguf, **drafter)


def test_an_attached_drafter_names_its_target(tmp_path: Path, target_gguf: Path) -> None:
    message = refusal(tmp_path, target_gguf, target_layers=(0,), without=["specdec.target"])
    assert "'specdec.target' is missing" in message


def test_there_are_no_npu_graphs_of_an_attached_drafter(
    tmp_path: Path, tiny_gguf: Path, tiny_attached_gguf: Path
) -> None:
    made = tmp_path / "model"
    for make in (
        lambda: convert_htp(tiny_attached_gguf, made, target_source=tiny_gguf),
        lambda: quantize(tiny_attached_gguf, made, target_source=tiny_gguf),
        lambda: measure(tiny_attached_gguf, {}, target_source=tiny_gguf),
    ):
        with pytest.raises(InvalidInputError, match="take a standalone drafter"):
            make()
    assert not made.exists()


def test_a_bridge_that_the_fused_layouts_have_no_bit_for(tmp_path: Path) -> None:
    target = write_tiny_gguf(tmp_path / "target.gguf", layers=66, ffn=32)
    convert_drafter(tmp_path, target, (*range(62), 63))
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="layer 63 of this drafter begins with a bridge"):
        convert_drafter(tmp_path / "other", target, (*range(63), 64))
    assert not (tmp_path / "other" / "drafter").exists()
