"""Folders of fixed-shape graphs on the CPU provider against a forward pass in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from specdec.convert.float_forward import FloatForward, LayerWeights
from specdec.convert.gguf_checkpoint import GgufCheckpoint
from specdec.convert.htp.folder import convert_htp
from specdec.convert.htp.layouts import HTP_LAYOUTS
from specdec.convert.htp.weights import W8, Kind
from specdec.convert.matrix import FloatArray
from specdec.htp_plan import PLAN_FILE, HtpPlan
from tests.convert.htp.chain import Array, Chain, decode
from tests.convert.numpy_llama import NumpyLlama
from tests.tiny_gguf import DEFAULT_VOCAB, write_tiny_drafter, write_tiny_gguf

PAST = 64
SINK = 1
TOKENS = [SINK, *np.random.default_rng(5).integers(2, DEFAULT_VOCAB, 50).tolist()]
CALIBRATION = [
    np.random.default_rng(seed).integers(2, DEFAULT_VOCAB, 60).tolist() for seed in range(6, 12)
]
WIDTHS = (8, 32)
Convert = Callable[..., Path]


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Convert:
    """Converts the tiny target, once for each set of arguments."""
    made: dict[str, Path] = {}

    def once(layout: str, **arguments: int) -> Path:
        key = f"{layout}{arguments}"
        if key not in made:
            destination = tmp_path_factory.mktemp("htp") / "model"
            made[key] = convert_htp(
                tiny_gguf,
                destination,
                layout=layout,
                widths=WIDTHS,
                context=PAST,
                calibration=CALIBRATION,
                **arguments,  # type: ignore[arg-type]
            )
        return made[key]

    return once


def cosines(found: Array, expected: Array) -> Array:
    """Of each row."""
    product = (found * expected).sum(axis=-1)
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine: Array = product / lengths
    return cosine


@pytest.mark.parametrize(
    ("layout", "least", "mean"),
    [
        ("w8a16", 0.995, 0.9995),
        ("w4a16", 0.80, 0.94),
        ("w4a16-b64", 0.80, 0.94),
        ("w4a16-b32", 0.85, 0.95),
        ("w4a16-b16", 0.85, 0.96),
        ("w4a16-b32m", 0.995, 0.9995),
        ("w4fp16-b32m", 0.99999, 0.99999),
        ("fp16", 0.99999, 0.99999),
    ],
)
def test_logits_are_close_to_an_independent_forward_pass(
    convert: Convert, tiny_gguf: Path, layout: str, least: float, mean: float
) -> None:
    assert layout in HTP_LAYOUTS
    expected = NumpyLlama(tiny_gguf).logits(TOKENS)
    narrow = Chain(convert(layout)).logits(TOKENS, 8)
    found = cosines(narrow, expected)
    assert found.min() > least
    assert found.mean() > mean
    wide = Chain(convert(layout)).logits(TOKENS, 32)
    np.testing.assert_allclose(wide, narrow, atol=0.01 * np.std(expected))


@pytest.mark.parametrize(
    "shape",
    [
        {"tied": False},
        {"heads": 8, "kv_heads": 1, "hidden": 128},
        {"heads": 4, "kv_heads": 4},
        {"quant": "F16", "embedding_quant": "F32", "ffn": 96, "layers": 3},
    ],
    ids=str,
)
def test_other_shapes(tmp_path: Path, shape: dict[str, int | bool | str]) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    folder = convert_htp(
        source, tmp_path / "model", widths=(8,), context=PAST, calibration=CALIBRATION
    )
    found = cosines(Chain(folder).logits(TOKENS, 8), NumpyLlama(source).logits(TOKENS))
    assert found.mean() > 0.999


def test_a_trimmed_head_gives_the_rows_of_its_ids(tmp_path: Path, tiny_gguf: Path) -> None:
    ids = [0, 7, 8, 100, 299]
    source = write_tiny_drafter(tmp_path / "drafter.gguf", head_ids=ids)
    folder = convert_htp(
        source,
        tmp_path / "drafter",
        widths=(8,),
        context=PAST,
        calibration=CALIBRATION,
        target_source=tiny_gguf,
    )
    expected = NumpyLlama(source, vocabulary=tiny_gguf).logits(TOKENS)
    found = Chain(folder).logits(TOKENS, 8)
    assert found.shape == (len(TOKENS), len(ids))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * np.std(expected)
    assert np.load(folder / "head_ids.npy").tolist() == ids


@pytest.mark.parametrize("layout", ["w8a16", "fp16"])
def test_the_best_head_names_the_largest_logit(convert: Convert, layout: str) -> None:
    folder = convert(layout)
    logits = Chain(folder).logits(TOKENS, 8)
    chain = Chain(folder)
    while chain.length + 8 <= len(TOKENS):
        start = chain.length
        best = chain.step(TOKENS[start : start + 8], 8, head="best")
        assert best.dtype == np.int32
        np.testing.assert_array_equal(best, logits[start : start + 8].argmax(axis=-1))


def test_new_columns_are_the_floats_but_for_a_channels_scale_and_centre(
    tmp_path: Path, tiny_gguf: Path
) -> None:
    """An affine function of each channel, as close as the 8 bits allow in the first layer."""
    folder = convert_htp(
        tiny_gguf, tmp_path / "model", widths=(8,), context=PAST, calibration=[TOKENS]
    )
    checkpoint = GgufCheckpoint(tiny_gguf)
    floats: dict[str, FloatArray] = {}
    forward = FloatForward(checkpoint, [TOKENS])
    forward.layer(LayerWeights.load(checkpoint, 0), "", floats.__setitem__)
    chain = Chain(folder)
    chain.logits(TOKENS, 8)
    keys = decode(chain.keys[0][0, :, :, 1 : len(TOKENS)], chain.plan.key[0])
    values = decode(chain.values[0][0, :, 1 : len(TOKENS)], chain.plan.value[0])
    cached = {
        "key_rotated": (keys.transpose(2, 0, 1), chain.plan.key[0]),
        "value": (values.transpose(1, 0, 2), chain.plan.value[0]),
    }
    for site, (found, encoding) in cached.items():
        rows = found.reshape(len(found), -1)
        for channel in range(rows.shape[1]):
            expected = floats[site][:, channel]
            slope, offset = np.polyfit(expected, rows[:, channel], 1)
            error = np.abs(slope * expected + offset - rows[:, channel])
            assert 0.3 < slope < 3
            assert error.max() < 2 * encoding.scale  # the weights have errors of their own


def test_stale_columns_behind_the_length_change_nothing(convert: Convert) -> None:
    folder = convert("w8a16")
    clean, littered = Chain(folder), Chain(folder)
    generator = np.random.default_rng(2)
    for tensors in (littered.keys, littered.values):
        for tensor in tensors:
            junk = generator.integers(0, 256, tensor.shape, np.uint8)
            first = tensor.copy()
            tensor[:] = junk
            if tensors is littered.keys:
                tensor[..., :1] = first[..., :1]
            else:
                tensor[:, :, :1] = first[:, :, :1]
    expected = clean.logits(TOKENS, 8)
    np.testing.assert_allclose(littered.logits(TOKENS, 8), expected, atol=2e-2)


def test_weights_are_stored_once_for_all_widths_and_heads(convert: Convert) -> None:
    folder = convert("w8a16")
    plan = HtpPlan.read(folder / PLAN_FILE)
    assert sorted(path.name for path in folder.glob("*.data")) == ["head.data", "layers0.data"]
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert weights <= (folder / "layers0.data").stat().st_size < weights + 2 * 7 * 4096
    for part in plan.parts:
        graphs = [
            onnx.load(folder / name, load_external_data=False) for name in part.graphs.values()
        ]
        places = [
            {
                tensor.name: [(entry.key, entry.value) for entry in tensor.external_data]
                for tensor in graph.graph.initializer
                if tensor.external_data
            }
            for graph in graphs
        ]
        assert places[0]
        assert all(place == places[0] for place in places)


def test_parts_are_cut_by_size_and_give_the_same_logits(convert: Convert) -> None:
    whole, cut = convert("w8a16"), convert("w8a16", part_bytes=40_000)
    plan = HtpPlan.read(cut / PLAN_FILE)
    assert [(part.name, part.first_layer, part.end_layer) for part in plan.chain(8, "logits")] == [
        ("layers0", 0, 1),
        ("layers1", 1, 2),
        ("logits", 2, 2),
    ]
    np.testing.assert_array_equal(Chain(cut).logits(TOKENS, 8), Chain(whole).logits(TOKENS, 8))


def test_linears_of_other_kinds_in_one_model(tmp_path: Path, tiny_gguf: Path) -> None:
    kinds = {"layers.1.down": W8, "layers.0.query": Kind(4, 16), "head": HTP_LAYOUTS["w4a16"].body}
    layout = HTP_LAYOUTS["w4a16-b32"].mixed("mixed", kinds)
    folder = convert_htp(
        tiny_gguf,
        tmp_path / "model",
        layout=layout,
        widths=(8,),
        context=PAST,
        calibration=CALIBRATION,
    )
    (part, head) = HtpPlan.read(folder / PLAN_FILE).chain(8, "logits")
    types = {
        tensor.name: tensor.data_type
        for name in (part.graphs[8], head.graphs[8])
        for tensor in onnx.load(folder / name, load_external_data=False).graph.initializer
    }
    eight, four = onnx.TensorProto.INT8, onnx.TensorProto.INT4
    assert types["layers.1.down.weights.codes"] == eight
    assert types["layers.0.down.weights.codes"] == four
    assert types["head.logits.weights.codes"] == four
    expected = NumpyLlama(tiny_gguf).logits(TOKENS)
    assert cosines(Chain(folder).logits(TOKENS, 8), expected).mean() > 0.9
