"""The whole way on tiny checkpoints: texts, sensitivity, folders, what is measured of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from specdec.convert.checkpoint import ModelSource
from specdec.convert.float_forward import LINEAR_INPUTS
from specdec.convert.htp.layouts import HTP_LAYOUTS
from specdec.convert.htp.weights import W8
from specdec.convert.matrix import DenseMatrix, Matrix
from specdec.convert.source import open_source
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.model import Model
from specdec.model_folder import ModelFolder
from specdec.quantize import Settings, measure, quantize
from specdec.quantize import texts as texts_
from specdec.quantize.first_row import first_row_apart
from specdec.quantize.layerwise import LayerwiseQuantiser
from specdec.quantize.quality import FloatReference, compare, model_logits
from specdec.quantize.report import plot, table
from specdec.quantize.report import write as write_report
from specdec.quantize.sensitivity import Sensitivity, choose, scan
from tests.convert.numpy_llama import NumpyLlama

SMALL = {"context": 64, "widths": (8,), "written_tokens": 0}


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [[1, *map(int, random.integers(3, 300, 40))] for _ in range(3)]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text("One text to calibrate with.\n\f\nAnd another one, quite short.\n")
    return file


def test_the_reference_is_the_float_model(tiny_gguf: Path, texts: list[list[int]]) -> None:
    reference = FloatReference(open_source(tiny_gguf, None), texts)
    expected = NumpyLlama(tiny_gguf).logits(texts[1])[1:]
    np.testing.assert_allclose(reference.logits(1), expected, atol=1e-4)


def test_a_reference_is_its_own_equal(tiny_gguf: Path, texts: list[list[int]]) -> None:
    reference = FloatReference(open_source(tiny_gguf, None), texts)
    quality = compare("float", reference, reference.logits)
    assert quality.positions == 3 * 40
    assert (quality.top1, quality.kl, quality.perplexity_ratio) == (1, 0, 1)


def test_perplexity_counts_the_tokens_that_a_trimmed_head_names(
    tiny_gguf: Path, tiny_drafter_gguf: Path, texts: list[list[int]]
) -> None:
    checkpoint = open_source(tiny_drafter_gguf, tiny_gguf)
    reference = FloatReference(checkpoint, texts[:1])
    logits = NumpyLlama(tiny_drafter_gguf, tiny_gguf).logits(texts[0])[1:-1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = list(checkpoint.head_ids)  # type: ignore[arg-type]
    losses = [
        -row[ids.index(token)]
        for row, token in zip(logits, texts[0][2:], strict=True)
        if token in ids
    ]
    assert 0 < len(losses) < len(logits)
    quality = compare("float", reference, reference.logits)
    assert quality.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_a_model_folder_gives_the_logits_of_every_position(
    tiny_gguf: Path, tiny_target: Path, texts: list[list[int]]
) -> None:
    reference = FloatReference(open_source(tiny_gguf, None), texts)
    quality = compare("fused", reference, model_logits(Model.load(tiny_target), texts))
    assert quality.kl < 0.005
    assert quality.top1 > 0.9


def test_texts_begin_with_the_first_token(tiny_gguf: Path) -> None:
    speech = texts_.Speech.of(open_source(tiny_gguf, None))
    pieces = list(speech.encode("some words and more of them " * 20, 50))
    assert len(pieces) > 1
    assert all(piece[0] == speech.first and len(piece) <= 50 for piece in pieces)
    joined = [token for piece in pieces for token in piece[1:]]
    assert joined == speech.tokenizer.encode("some words and more of them " * 20)


def test_shipped_texts_are_apart() -> None:
    calibration, held_out = (texts_.shipped(name) for name in (texts_.CALIBRATION, texts_.HELD_OUT))
    assert len(calibration) >= 5
    words = " ".join(held_out).split()
    seen = " ".join(" ".join(calibration).split())
    runs = (" ".join(words[start : start + 6]) for start in range(len(words) - 5))
    assert not any(run in seen for run in runs)


class LoudToken:
    """A checkpoint whose token 7 has an embedding a thousand times as large."""

    def __init__(self, checkpoint: ModelSource) -> None:
        self._checkpoint = checkpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def matrix(self, name: str) -> Matrix:
        matrix = self._checkpoint.matrix(name)
        if name != "embedding":
            return matrix
        values = matrix.dequantise().copy()
        values[7] *= 1000
        return DenseMatrix(values)


def test_texts_with_a_second_sink_are_left_out(tiny_gguf: Path) -> None:
    checkpoint: Any = LoudToken(open_source(tiny_gguf, None))
    plain = [[1, 5, 9, 12], [1, 8, 4], [1], [1, 20, 30, 40]]
    texts = [*plain[:2], [1, 7, 9], *plain[2:]]
    assert texts_.without_second_sinks(checkpoint, texts) == plain


def test_what_the_model_writes_follows_the_seed(tiny_target: Path) -> None:
    model = Model.load(tiny_target)
    written = texts_.write(model, 200, seed=3, length=64)
    assert texts_.all_tokens(written) >= 200
    assert max(map(len, written)) <= 64
    assert texts_.write(model, 200, seed=3, length=64) == written
    assert texts_.write(model, 200, seed=4, length=64) != written


def test_held_out_texts_answer_other_questions(tiny_target: Path) -> None:
    model = Model.load(tiny_target)
    calibration, held_out = (
        texts_.write(model, 2000, seed=0, length=64, held_out=which) for which in (False, True)
    )
    starts = {tuple(text[:32]) for text in calibration}
    assert not starts & {tuple(text[:32]) for text in held_out}


def test_layers_are_quantised_with_what_the_layers_before_them_give(
    tiny_gguf: Path, texts: list[list[int]]
) -> None:
    checkpoint = open_source(tiny_gguf, None)
    layout = HTP_LAYOUTS["w4a16-b32"]
    reference = FloatReference(checkpoint, texts)
    kls = {}
    for method in ("rtn", "gptq"):
        quantiser = LayerwiseQuantiser(checkpoint, texts, layout.kind, method)
        replaced = {}
        for layer in range(checkpoint.config.layers):
            for role in LINEAR_INPUTS:
                name = f"layers.{layer}.{role}"
                linear = quantiser(name, np.empty(0), layout.kind(name), None)
                replaced[name] = linear.dequantise()
        changed = FloatReference(checkpoint, texts, replaced)
        kls[method] = compare(method, reference, changed.logits).kl
    assert 0 < kls["gptq"] < kls["rtn"]


def test_position_0_keeps_its_float_weights(tiny_gguf: Path, texts: list[list[int]]) -> None:
    random = np.random.default_rng(0)
    x, first, others = (random.standard_normal(shape) for shape in ((3, 8), (8, 5), (8, 5)))
    product = x @ first_row_apart(first, others)  # type: ignore[arg-type]
    np.testing.assert_allclose(product[:1], x[:1] @ first)
    np.testing.assert_allclose(product[1:], x[1:] @ others)


def test_sensitivities_are_of_every_linear(tiny_gguf: Path, texts: list[list[int]]) -> None:
    checkpoint = open_source(tiny_gguf, None)
    found = scan(checkpoint, texts, HTP_LAYOUTS["w4a16-b32"], "rtn")
    assert [entry.linear for entry in found] == [
        f"layers.{layer}.{role}" for layer in range(2) for role in LINEAR_INPUTS
    ]
    reference = FloatReference(checkpoint, texts)
    entry = found[-1]
    role = entry.linear.rpartition(".")[2]
    weights = np.ascontiguousarray(checkpoint.matrix(entry.linear).dequantise().T)
    rounded = HTP_LAYOUTS["w4a16-b32"].kind(role).round(weights).dequantise()
    changed = FloatReference(checkpoint, texts, {entry.linear: rounded})
    assert entry.kl == pytest.approx(compare("x", reference, changed.logits).kl, rel=1e-3)


def test_a_budget_goes_where_it_helps_most() -> None:
    found = [
        Sensitivity("a", 0.4, 100),
        Sensitivity("b", 0.3, 50),
        Sensitivity("c", 0.1, 60),
        Sensitivity("d", 0.09, 10),
    ]
    assert choose(found, 60) == {"b": W8, "d": W8}
    assert choose(found, 120) == {"b": W8, "d": W8, "c": W8}
    assert choose(found, 10**6) == dict.fromkeys("abcd", W8)
    assert choose(found, 5) == {}


@pytest.mark.parametrize("layout", ["w8a16", "w4a16-b32m", "w4a16-b32"])
def test_quality_of_a_quantised_folder(
    layout: str, tiny_gguf: Path, calibration: Path, tmp_path: Path
) -> None:
    settings = Settings(layout=layout, calibration=calibration, **SMALL)  # type: ignore[arg-type]
    folder = quantize(tiny_gguf, tmp_path / "made", settings)
    made = ModelFolder.open(folder)
    assert (made.backend, made.layout, made.config.context) == ("qnn", layout, 64)
    float_quality, quality = measure(tiny_gguf, {layout: folder}, held_out=calibration)
    assert float_quality.kl == 0
    assert quality.choice == layout
    assert quality.kl < (0.2 if layout == "w4a16-b32" else 0.01)


def test_weights_that_stay_as_they_are_need_no_texts(tiny_gguf: Path, tmp_path: Path) -> None:
    stages = set()
    folder = quantize(
        tiny_gguf,
        tmp_path / "made",
        Settings(layout="w4fp16-b32m", context=64, widths=(8,)),
        progress=lambda stage, fraction: stages.add(stage),
    )
    assert ModelFolder.open(folder).layout == "w4fp16-b32m"
    assert stages == {"checking", "writing the graphs"}


def test_a_drafter_is_calibrated_with_what_its_target_writes(
    tiny_gguf: Path, tiny_drafter_gguf: Path, tmp_path: Path
) -> None:
    settings = Settings(context=64, widths=(8,), written_tokens=100)
    stages = []
    folder = quantize(
        tiny_drafter_gguf,
        tmp_path / "made",
        settings,
        target_source=tiny_gguf,
        progress=lambda stage, fraction: stages.append(stage),
    )
    assert ModelFolder.open(folder).role == "drafter"
    assert "writing calibration text" in stages


def test_mixed_layouts_hold_some_linears_in_8_bits(
    tiny_gguf: Path, calibration: Path, tmp_path: Path
) -> None:
    def count_of_8_bits(mixed: float | None) -> int:
        settings = Settings(
            layout="w4a16-b32",
            mixed=mixed,
            calibration=calibration,
            method="mse",
            **SMALL,  # type: ignore[arg-type]
        )
        folder = quantize(tiny_gguf, tmp_path / f"{mixed}", settings)
        suffix = "" if mixed is None else "-mixed"
        assert ModelFolder.open(folder).layout == f"w4a16-b32{suffix}"
        graph = onnx.load(folder / "layers0.w8.onnx", load_external_data=False).graph
        return sum(
            tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
            for tensor in graph.initializer
        )

    assert count_of_8_bits(None) == 0
    assert 1 < count_of_8_bits(0.01) < 14


def test_what_cannot_be_is_said_at_once(tiny_gguf: Path, tmp_path: Path) -> None:
    def fail(stage: str, fraction: float) -> None:
        pytest.fail(stage)

    with pytest.raises(ModelFolderError, match="already exists"):
        quantize(tiny_gguf, tmp_path, progress=fail)
    with pytest.raises(InvalidInputError, match="widths"):
        quantize(tiny_gguf, tmp_path / "made", Settings(widths=(7,)), progress=fail)
    with pytest.raises(InvalidInputError, match="a context of 9999 tokens"):
        quantize(tiny_gguf, tmp_path / "made", Settings(context=9999), progress=fail)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "w3a16"}, "no layout 'w3a16': choose one of w8a16"),
        ({"method": "awq"}, "no method 'awq'"),
        ({"mixed": 1.0}, "with a layout of 4 bits"),
        ({"mixed": 0.0, "layout": "w4a16"}, "above 0"),
        ({"written_tokens": -1}, "0 or more"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


def test_reports(tmp_path: Path, tiny_gguf: Path, texts: list[list[int]]) -> None:
    reference = FloatReference(open_source(tiny_gguf, None), texts)
    quality = compare("a <b> & c", reference, reference.logits)
    assert table([quality]).count("\n") == 3
    (svg,) = ElementTree.fromstring(plot([quality])).iter("{http://www.w3.org/2000/svg}svg")
    assert "a <b> & c" in "".join(svg.itertext())
    files = write_report(tmp_path / "report", [quality], {"seed": "0"})
    assert [file.name for file in files] == ["report.md", "report.json", "report.svg"]
    assert json.loads(files[1].read_text())["choices"][0]["positions"] == 120
