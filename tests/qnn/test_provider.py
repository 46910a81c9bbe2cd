"""The provider, its options and its sessions: what is right runs, what is wrong says so."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("onnxruntime_qnn")

from specdec import BackendError, InvalidInputError, QnnOptions
from specdec.qnn import provider
from specdec.qnn.sessions import open_on_cpu, open_session, plain_line
from specdec.qnn.soc import SIMULATOR, SOCS, find_soc
from tests.error_of import error_of
from tests.qnn.graphs import write_linear

REFUSED = (BackendError, InvalidInputError)


def test_a_session_computes_what_the_graph_says(tmp_path: Path) -> None:
    graph = write_linear(tmp_path / "linear.onnx")
    x = np.random.default_rng(3).integers(29_000, 31_000, (1, 4, 32)).astype(np.uint16)
    (ours,) = open_session(graph, QnnOptions()).run(None, {"x": x})
    (theirs,) = open_on_cpu(graph).run(None, {"x": x})
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_an_operator_that_the_npu_lacks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = write_linear(tmp_path / "odd.onnx", then="Hardmax")
    error_of(REFUSED, lambda: open_session(graph, QnnOptions()), "odd.onnx", "'changed'", "Hardmax")
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_does_not_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = write_linear(tmp_path / "linear.onnx")
    library = tmp_path / "libQnnHtp.so"
    library.write_bytes(b"no library")
    wrong = QnnOptions(library=str(library))
    error_of(
        REFUSED,
        lambda: open_session(graph, wrong),
        "does not start",
        str(library),
        "specdec doctor",
    )
    chip = QnnOptions(soc_model=9999)
    error_of(REFUSED, lambda: open_session(graph, chip), "does not start", "INVALID_CONFIG")
    shared = QnnOptions(shared_memory=True)
    error_of(REFUSED, lambda: open_session(graph, shared), "shared_memory", "simulator")
    assert capfd.readouterr() == ("", "")


def test_a_damaged_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = tmp_path / "damaged.onnx"
    graph.write_bytes(write_linear(tmp_path / "linear.onnx").read_bytes()[:-400])
    error_of(REFUSED, lambda: open_session(graph, QnnOptions()), "damaged.onnx")
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_when_the_library_loads(tmp_path: Path) -> None:
    graph = write_linear(tmp_path / "linear.onnx")
    code = (
        "import sys, pathlib; from specdec import QnnOptions; "
        "from specdec.qnn.sessions import open_session; "
        "open_session(pathlib.Path(sys.argv[1]), QnnOptions())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(graph)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_the_simulator_is_no_npu() -> None:
    assert provider.npu_present() is False
    (device,) = provider.devices()
    assert provider.is_simulator(device)


# The package


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process that has not used the provider."""
    monkeypatch.setattr(provider, "_package", None)
    return monkeypatch


def test_no_package(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "onnxruntime_qnn", None)  # type: ignore[arg-type]
    error_of(REFUSED, provider.start, "is broken", "specdec[qnn]")

    def no_version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    fresh.setattr(metadata, "version", no_version)
    error_of(REFUSED, provider.start, "onnxruntime-qnn", "is not installed", "pip install")
    assert provider.npu_present() is False


def test_an_old_package(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(metadata, "version", lambda name: "1.24.4")
    error_of(REFUSED, provider.start, "onnxruntime-qnn 1.24.4 is too old", "--upgrade")


def test_an_old_runtime(fresh: pytest.MonkeyPatch) -> None:
    fresh.delattr(onnxruntime, "register_execution_provider_library")
    error_of(REFUSED, provider.start, onnxruntime.__version__, "--upgrade onnxruntime")


def test_another_platform(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(sys, "platform", "darwin")
    error_of(REFUSED, provider.start, "Windows, Linux", "backend='cpu'")


def test_a_runtime_that_refuses_the_plugin(fresh: pytest.MonkeyPatch) -> None:
    def refuse(name: str, path: str) -> None:
        raise RuntimeError("this plugin needs\nanother runtime")

    fresh.setattr(provider, "_all_devices", list)
    fresh.setattr(onnxruntime, "register_execution_provider_library", refuse)
    error_of(REFUSED, provider.start, "this plugin needs another runtime", "--upgrade")


def test_no_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_is_x86", lambda: False)
    error_of(REFUSED, provider.devices, "no Qualcomm NPU", "backend='cpu'")


# Options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("performance_mode", "fast"), ("priority", "urgent"), ("vtcm_mb", 0), ("vtcm_mb", 2.5),
        ("soc_model", "sm8650"), ("htp_arch", 12), ("finalization", 4), ("finalization", True),
        ("shared_memory", "yes"), ("rpc_control_latency", 0), ("library", "/no/such.so"),
        ("profiling", "basic"), ("profiling_file", "profile.csv"),
    ],
)  # fmt: skip
def test_bad_options(name: str, value: Any) -> None:
    error_of(REFUSED, lambda: QnnOptions(**{name: value}), name)


def test_provider_options() -> None:
    assert QnnOptions().provider_options() == {
        "htp_performance_mode": "burst",
        "qnn_context_priority": "normal",
        "offload_graph_io_quantization": "0",
    }
    options = QnnOptions(
        performance_mode="balanced", vtcm_mb=4, soc_model=57, htp_arch=75, finalization=3,
        shared_memory=True, profiling="detailed", profiling_file="p.csv",
    ).provider_options()  # fmt: skip
    assert options["htp_graph_finalization_optimization_mode"] == "3"
    assert options["enable_htp_shared_memory_allocator"] == "1"
    assert (options["soc_model"], options["htp_arch"], options["vtcm_mb"]) == ("57", "75", "4")
    assert options["profiling_level"] == "detailed"


def test_options_of_the_command_line() -> None:
    texts = ["performance_mode=balanced", "vtcm_mb=4", "shared_memory=true"]
    assert QnnOptions.parse(texts) == QnnOptions(
        performance_mode="balanced", vtcm_mb=4, shared_memory=True
    )
    assert QnnOptions.parse([]) == QnnOptions()
    for text in ("speed=1", "vtcm_mb", "vtcm_mb=much", "vtcm_mb=-1", "shared_memory=1", "=1"):
        error_of(REFUSED, lambda text=text: QnnOptions.parse([text]), text.partition("=")[0])


def test_chips() -> None:
    names = [soc.name for soc in (*SOCS, SIMULATOR)]
    assert len({*names}) == len(names)
    assert {"sm8650", "sm8750", "x-elite"} <= {*names}
    assert find_soc("SM8650").htp_arch == 75
    assert find_soc("SC8380XP").name == "x-elite"
    error_of(REFUSED, lambda: find_soc("sm9999"), "'sm9999'", "sm8650", "x-elite", "simulator")


def test_a_line_of_the_log_without_its_decoration() -> None:
    line = (
        "\x1b[1;31m2026-11-22 14:20:10.251247839 [E:onnxruntime:, file.cc:2453 GetCapability] "
        "QNN SetupBackend failed\x1b[m"
    )
    assert plain_line(line) == "QNN SetupBackend failed"
    assert plain_line("a [ONNXRuntimeError] : 1 : FAIL : what\nwas wrong") == "what was wrong"
