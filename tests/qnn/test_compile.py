"""Compiled models: made, loaded, and refused where they do not belong."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("onnxruntime_qnn")

from specdec import (
    BackendError,
    Generator,
    InvalidInputError,
    Model,
    ModelFolderError,
    QnnOptions,
    SamplingParams,
)
from specdec.model_folder import MANIFEST, ModelFolder, write_manifest
from specdec.qnn import compiled, compiler, provider
from specdec.qnn.compile import Report, compile_model
from specdec.qnn.compiled import Compiled
from specdec.qnn.soc import find_soc
from tests.error_of import error_of

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def copied(folder: Path, destination: Path) -> Path:
    return Path(shutil.copytree(folder, destination))


def remake_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Writes a manifest that fits what lies in the folder, with a change."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    write_manifest(folder, manifest)


# Made


def test_a_compiled_model_writes_the_same_text(compiled_target: Path, qnn_target: Model) -> None:
    model = Model.load(compiled_target, backend="qnn")
    text = Generator(model, model, draft_length=3).generate("fox", GREEDY)
    assert text.tokens == Generator(qnn_target).generate("fox", GREEDY).tokens
    rows = []
    for loaded in (model, qnn_target):
        decoder = loaded.new_decoder(capacity=64, max_logit_rows=8)
        decoder.forward([1], 1)
        decoder.commit(1)
        rows.append(np.array(decoder.forward([5, 9, 200, 7], 4)))
    assert np.array_equal(*rows)


@pytest.mark.parametrize("soc", ["x-elite", "sm8750"])
def test_other_chips(fixed_drafter: Path, tmp_path: Path, soc: str) -> None:
    folder = compile_model(fixed_drafter, tmp_path / "made", soc)
    section = Compiled.read(ModelFolder.open(folder))
    assert section is not None
    assert (section.soc, section.shared_weights) == (soc, True)
    assert section.htp_arch == find_soc(soc).htp_arch
    error_of(BackendError, lambda: Model.load(folder, backend="qnn"), soc, "simulator")


def test_what_a_folder_says_of_itself(shared_target: Path, fixed_target: Path) -> None:
    folder = ModelFolder.open(shared_target)
    section = Compiled.read(folder)
    assert section is not None
    versions = provider.versions()
    assert (section.soc, section.soc_model, section.htp_arch) == ("sm8650", 57, 75)
    assert (section.qnn, section.onnxruntime_qnn) == (versions.qnn, versions.onnxruntime_qnn)
    assert (shared_target / section.source).resolve() == fixed_target.resolve()
    names = {*folder.manifest["files"]}
    assert not any(name.endswith(".data") for name in names)
    assert {"layers0.w4.onnx", "sink.npz", "tokenizer.json", "compile.json"} <= names
    binaries = [name for name in names if name.endswith(".bin") and "qnn" in name]
    assert len(binaries) == 2  # the layers and the heads


def test_the_report(shared_target: Path, compiled_target: Path) -> None:
    shared, apart = Report.read(shared_target), Report.read(compiled_target)
    assert (shared.soc, shared.shared_weights, apart.shared_weights) == ("sm8650", True, False)
    for report in (shared, apart):
        assert [part["name"] for part in report.parts] == ["layers0", "logits+best"]
        for part in report.parts:
            assert part["binary_bytes"] > 0
            assert part["source_bytes"] > 0
            assert part["peak_bytes"] is None or part["peak_bytes"] > 1e7
            for graph in part["graphs"]:
                assert graph["width"] in (4, 8)
                assert graph["seconds"] > 0
                assert graph["traffic"]["read"] > 0
    assert shared.parts[0]["binary_bytes"] < apart.parts[0]["binary_bytes"]


def test_unshared_for_a_chip_runs_in_the_simulator(half_target: Path, tmp_path: Path) -> None:
    folder = compile_model(half_target, tmp_path / "made", "sm8650", share_weights=False)
    model = Model.load(folder, backend="qnn")
    assert Generator(model).generate("fox", GREEDY, max_tokens=2).tokens


# Not made


def test_what_cannot_be_compiled(
    tiny_target: Path, fixed_target: Path, compiled_target: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    error_of(InvalidInputError, lambda: compile_model(tiny_target, out, "sm8650"), "quantize")
    error_of(InvalidInputError, lambda: compile_model(compiled_target, out, "sm8650"), "already")
    error_of(InvalidInputError, lambda: compile_model(fixed_target, out, "sm1"), "'sm1'", "sm8650")
    error_of(ModelFolderError, lambda: compile_model(tmp_path / "no", out, "sm8650"), "no")
    error_of(
        InvalidInputError,
        lambda: compile_model(fixed_target, fixed_target, "sm8650", replace_folder=True),
        "is the source",
    )
    out.mkdir()
    (out / "mine").write_text("x")
    error_of(ModelFolderError, lambda: compile_model(fixed_target, out, "sm8650"), "made")
    assert sorted(os.listdir(tmp_path)) == ["made"]


def with_odd_operator(folder: Path) -> Path:
    """A folder whose first graph has an operator that NPUs lack."""
    file = folder / "logits.w4.onnx"
    model = onnx.load(file, load_external_data=False)
    last = model.graph.node[-1]
    before = last.input[0]
    last.input[0] = "odd"
    node = onnx.helper.make_node("Hardmax", [before], ["odd"], "head.odd")
    model.graph.node.insert(len(model.graph.node) - 1, node)
    onnx.save(model, file)
    remake_manifest(folder, lambda manifest: None)
    return folder


def test_an_operator_that_the_npu_lacks(
    fixed_target: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_odd_operator(copied(fixed_target, tmp_path / "odd"))
    names = ("logits.w4.onnx", "'head.odd'", "Hardmax")
    error_of(BackendError, lambda: Model.load(folder, backend="qnn"), *names)
    error_of(BackendError, lambda: compile_model(folder, tmp_path / "made", "sm8650"), *names)
    assert os.listdir(tmp_path) == ["odd"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory"),
        ("import sys; sys.exit('no space left')", "no space left"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="other signals there")
def test_a_compiler_that_ends_early(
    fixed_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    popen = compiler.subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(compiler.subprocess, "Popen", start)
    out = tmp_path / "made"
    error_of(BackendError, lambda: compile_model(fixed_target, out, "sm8650"), "layers0", says)
    assert os.listdir(tmp_path) == []


# Refused


@pytest.mark.parametrize("name", ["layers0.w4_qnn.bin", "layers0.w4.onnx", "htp.json"])
@pytest.mark.parametrize("how", ["altered", "truncated", "missing"])
def test_a_damaged_folder(compiled_target: Path, tmp_path: Path, name: str, how: str) -> None:
    folder = copied(compiled_target, tmp_path / "copy")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data if how == "altered" else data[: len(data) // 2])
    if how == "missing":
        (folder / name).unlink()
    error_of(ModelFolderError, lambda: Model.load(folder, backend="qnn"), name, "compile it again")


def test_a_binary_that_is_damaged_and_listed_so(
    compiled_target: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(compiled_target, tmp_path / "copy")
    binary = folder / "layers0.w4_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:5000])
    remake_manifest(folder, lambda manifest: None)
    error_of(BackendError, lambda: Model.load(folder, backend="qnn"), "layers0.w4.onnx", "context")
    assert capfd.readouterr() == ("", "")


def test_a_stale_folder(fixed_target: Path, tmp_path: Path) -> None:
    source = copied(fixed_target, tmp_path / "source")
    section = {
        "soc": "simulator", "soc_model": 57, "htp_arch": 75, "shared_weights": False,
        "source": "../source", "source_sha256": "0" * 64, "onnxruntime": "1.31.1",
        "onnxruntime_qnn": "2.7.0", "qnn": "2.51.0",
    }  # fmt: skip
    folder = copied(fixed_target, tmp_path / "made")
    remake_manifest(folder, lambda manifest: manifest["graph"].update(compiled=section))
    error_of(
        ModelFolderError,
        lambda: Model.load(folder, backend="qnn"),
        "is stale", str(source), "specdec compile", "--soc simulator",
    )  # fmt: skip
    section["source_sha256"] = compiled.graph_sha256(ModelFolder.open(source))
    remake_manifest(folder, lambda manifest: manifest["graph"].update(compiled=section))
    assert Model.load(folder, backend="qnn").folder.is_compiled
    del section["soc"]
    remake_manifest(folder, lambda manifest: manifest["graph"].update(compiled=section))
    error_of(ModelFolderError, lambda: Model.load(folder, backend="qnn"), "'soc'", "again")
    section["soc"] = 57
    remake_manifest(folder, lambda manifest: manifest["graph"].update(compiled=section))
    error_of(ModelFolderError, lambda: Model.load(folder, backend="qnn"), "'soc'", "str")


def test_another_chip(compiled_target: Path) -> None:
    wrong = QnnOptions(soc_model=69)
    error_of(
        BackendError,
        lambda: Model.load(compiled_target, backend="qnn", qnn=wrong),
        "57", "69", "--soc sm8750",
    )  # fmt: skip


def test_an_older_qnn(compiled_target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = provider.Versions("1.24.4", "2.3.0", "2.47.0")
    monkeypatch.setattr(provider, "versions", lambda: old)
    error_of(
        BackendError,
        lambda: Model.load(compiled_target, backend="qnn"),
        "2.51.0", "2.47.0", "--upgrade",
    )  # fmt: skip


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As if there were an NPU, as far as the checks of compiled folders go."""

    def pretend(soc: str | None, verdict: str = "") -> None:
        npu = onnxruntime.OrtHardwareDeviceType.NPU
        device = SimpleNamespace(device=SimpleNamespace(type=npu))
        monkeypatch.setattr(provider, "devices", lambda: [device])
        monkeypatch.setattr(compiled, "device_soc", lambda: soc and find_soc(soc))
        monkeypatch.setattr(compiled, "_providers_verdict", lambda folder, device: verdict)

    return pretend


def check(folder: Path) -> QnnOptions:
    opened = ModelFolder.open(folder)
    section = Compiled.read(opened)
    assert section is not None
    return compiled.check_compiled(opened, section, QnnOptions())


def test_on_devices(shared_target: Path, on_a_device: Callable[..., None]) -> None:
    for soc in ("sm8650", None):
        on_a_device(soc, "EP_SUPPORTED_OPTIMAL")
        assert check(shared_target) == QnnOptions()
    on_a_device("sm8750")
    error_of(BackendError, lambda: check(shared_target), "v75", "v79", "--soc sm8750")
    on_a_device(None, "EP_UNSUPPORTED")
    error_of(BackendError, lambda: check(shared_target), "cannot run on this device")
    on_a_device(None, "EP_SUPPORTED_PREFER_RECOMPILATION")
    with pytest.warns(UserWarning, match="not at its best"):
        check(shared_target)


def test_sessions_that_share_a_binary(shared_target: Path, compiled_target: Path) -> None:
    shared = Compiled.read(ModelFolder.open(shared_target))
    apart = Compiled.read(ModelFolder.open(compiled_target))
    assert shared is not None
    assert apart is not None
    assert shared.session_config() == {"ep.share_ep_contexts": "1"}
    assert apart.session_config() == {}
