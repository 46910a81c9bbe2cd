"""What a folder of fixed-shape graphs holds, and what cannot be converted to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specdec.convert.checkpoint import ModelConfig
from specdec.convert.float_forward import (
    LINEAR_INPUTS,
    FloatForward,
    LayerWeights,
    load_linear,
)
from specdec.convert.htp.folder import convert_htp
from specdec.convert.htp.layouts import HTP_LAYOUTS
from specdec.convert.htp.parts import DEFAULT_PART_BYTES, cut_layers
from specdec.convert.htp.stats import LinearStats
from specdec.convert.htp.weights import Kind, QuantLinear
from specdec.convert.huggingface_checkpoint import HuggingfaceCheckpoint
from specdec.convert.matrix import FloatArray
from specdec.errors import CheckpointError, InvalidInputError, ModelFolderError
from specdec.htp_plan import PLAN_FILE, HtpPlan
from specdec.model_folder import ModelFolder
from tests.convert.htp.chain import Chain, decode
from tests.convert.numpy_llama import NumpyLlama
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_huggingface import write_tiny_huggingface

TEXTS = [np.random.default_rng(seed).integers(2, 300, 40).tolist() for seed in range(3)]
LLAMA_7B = ModelConfig(
    layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, ffn=11008, vocab=32000,
    context=4096, rope_theta=1e4, norm_eps=1e-5, tied_head=False,
)  # fmt: skip


def test_the_manifest_and_the_files_around_the_graphs(tmp_path: Path, tiny_gguf: Path) -> None:
    path = convert_htp(
        tiny_gguf,
        tmp_path / "model",
        widths=(32, 8, 8),
        context=64,
        calibration=TEXTS,
        name="small",
    )
    folder = ModelFolder.open(path)
    assert (folder.name, folder.backend, folder.layout) == ("small", "qnn", "w8a16")
    assert folder.graph_path == path / PLAN_FILE
    assert folder.config.context == 64
    plan = HtpPlan.read(path / PLAN_FILE)
    assert plan.widths == (8, 32)
    assert {encoding.zero_point for encoding in (*plan.key, *plan.value)} == {128}
    reference = NumpyLlama(tiny_gguf)
    rows = np.fromfile(path / plan.embedding_file, np.uint16).reshape(300, 64)
    expected = reference.weights("token_embd.weight")
    np.testing.assert_allclose(decode(rows, plan.x), expected, atol=plan.x.scale)
    tables = np.fromfile(path / plan.rotary_file, np.uint16).reshape(2, 64 + 32, 8)
    cosine, sine = decode(tables, plan.rotary)
    np.testing.assert_allclose(cosine**2 + sine**2, 1, atol=2e-4)
    np.testing.assert_allclose(cosine[5, 0], np.cos(5), atol=1e-4)
    sink = np.load(path / "sink.npz")
    assert (sink["token"], sink["token"].dtype) == (1, np.int32)
    assert sink["key"].shape == sink["value"].shape == (2, 2, 16)
    assert sink["key"].dtype == sink["value"].dtype == np.uint8
    np.testing.assert_allclose(sink["logits"], reference.logits([1])[0], atol=1e-4)


def test_float16_needs_no_calibration_and_has_no_sink(tmp_path: Path, tiny_gguf: Path) -> None:
    path = convert_htp(
        tiny_gguf, tmp_path / "model", layout="fp16", widths=(8,), context=64, best_head=False
    )
    plan = HtpPlan.read(path / PLAN_FILE)
    assert plan.sink_file is None
    assert not (path / "sink.npz").exists()
    assert not plan.has_head("best")
    blocked = np.uint16(plan.mask_blocked).view(np.float16)
    assert (np.uint16(plan.mask_allowed).view(np.float16), blocked) == (0, -10_000)


def test_a_quantiser_sees_every_linear_in_order(tmp_path: Path, tiny_gguf: Path) -> None:
    seen: list[str] = []

    def quantiser(
        name: str, weights: FloatArray, kind: Kind, stats: LinearStats | None
    ) -> QuantLinear:
        seen.append(name)
        assert stats is not None
        assert stats.moment.shape == (len(weights), len(weights))
        assert stats.rows == sum(len(text) for text in TEXTS)
        return kind.round(weights)

    convert_htp(
        tiny_gguf,
        tmp_path / "model",
        widths=(8,),
        context=64,
        calibration=TEXTS,
        quantiser=quantiser,
        gather_moments=True,
    )
    assert seen == [*(f"layers.{i}.{role}" for i in (0, 1) for role in LINEAR_INPUTS), "head"]


def test_a_repeated_sink_does_not_widen_the_ranges(tmp_path: Path, tiny_gguf: Path) -> None:
    folders = [
        convert_htp(
            tiny_gguf,
            tmp_path / str(sinks),
            widths=(8,),
            context=64,
            calibration=[[1] * sinks + text for text in TEXTS],
        )
        for sinks in (0, 1, 3)
    ]
    plans = [HtpPlan.read(folder / PLAN_FILE) for folder in folders]
    assert plans[0] == plans[1] == plans[2]


def test_a_model_without_a_first_token_takes_that_of_the_texts(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", without=["tokenizer.ggml.bos_token_id"])
    arguments: dict[str, Any] = {"widths": (8,), "context": 64}
    with pytest.raises(CheckpointError, match="all begin with the same one"):
        convert_htp(source, tmp_path / "model", calibration=[[3, 4], [4, 3]], **arguments)
    path = convert_htp(source, tmp_path / "model", calibration=[[7, *TEXTS[0]]], **arguments)
    assert np.load(path / "sink.npz")["token"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "w2"}, "w4a16-b32"),
        ({"widths": ()}, "multiples of 2"),
        ({"widths": (8, 3)}, "multiples of 2"),
        ({"widths": (0,)}, "multiples of 2"),
        ({"widths": (4,), "layout": "fp16"}, "multiples of 8"),
        ({"context": 1000}, "256 at most"),
        ({"context": 4}, "widest step 8"),
        ({"calibration": ()}, "give calibration texts"),
        ({"calibration": [[1]]}, "give calibration texts"),
        ({"calibration": [[5, 300]]}, "tokens of the vocabulary"),
        ({"part_bytes": 0}, "part_bytes"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(
    tmp_path: Path, tiny_gguf: Path, arguments: dict[str, Any], message: str
) -> None:
    defaults: dict[str, Any] = {"widths": (8,), "context": 64, "calibration": TEXTS}
    with pytest.raises(InvalidInputError, match=message) as caught:
        convert_htp(tiny_gguf, tmp_path / "model", **(defaults | arguments))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_stays_as_it_was(tmp_path: Path, tiny_gguf: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").write_text("mine")
    with pytest.raises(ModelFolderError):
        convert_htp(tiny_gguf, tmp_path / "model", layout="fp16", widths=(8,), context=64)
    assert (tmp_path / "model" / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("layout", "longest"), [("w4a16", 8), ("w4a16-b32", 8), ("w4a16-b16", 8), ("w8a16", 4)]
)
def test_llama_2_7b_is_cut_into_parts_that_the_npu_maps(layout: str, longest: int) -> None:
    cuts = cut_layers(LLAMA_7B, HTP_LAYOUTS[layout], DEFAULT_PART_BYTES)
    assert [len(cut) for cut in cuts] == [longest] * (32 // longest)
    assert [cut.start for cut in cuts] == list(range(0, 32, longest))


def test_layers_are_spread_evenly_over_parts() -> None:
    layer = 202_375_168
    for limit, lengths in ((33 * layer, [32]), (31 * layer, [16, 16]), (10 * layer, [8] * 4)):
        cuts: Sequence[range] = cut_layers(LLAMA_7B, HTP_LAYOUTS["w8a16"], limit)
        assert [len(cut) for cut in cuts] == lengths


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    source = write_tiny_huggingface(tmp_path / "source")
    path = convert_htp(source, tmp_path / "model", widths=(8,), context=64, calibration=TEXTS)
    chain = Chain(path)
    text = [int(np.load(path / "sink.npz")["token"]), *TEXTS[0]]
    rows: list[FloatArray] = []

    def keep(site: str, values: FloatArray) -> None:
        if site == "logits":
            rows.append(values)

    checkpoint = HuggingfaceCheckpoint(source)
    forward = FloatForward(checkpoint, [text])
    for layer in range(checkpoint.config.layers):
        forward.layer(LayerWeights.load(checkpoint, layer), "", keep)
    forward.head(checkpoint.vector("final_norm"), load_linear(checkpoint, "head"), keep)
    error = chain.logits(text, 8)[1:] - rows[0]
    assert np.sqrt(np.mean(error**2)) < 0.05 * np.std(rows[0])
