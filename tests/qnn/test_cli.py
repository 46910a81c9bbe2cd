"""``specdec compile``, ``specdec doctor --qnn``, and models of fixed shape on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime_qnn")

from specdec.model_folder import ModelFolder
from specdec.qnn import doctor, provider


def test_compile(cli: Any, fixed_drafter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    outcome = cli("compile", fixed_drafter, "-o", folder, "--soc", "SM8650", "--report")
    assert outcome.code == 0, outcome.stderr
    printed, _, table = outcome.stdout.partition("\n")
    assert printed == str(folder)
    assert ModelFolder.open(folder).is_compiled
    for words in ("compiled for sm8650", "weights shared", "layers0, width 8", "logits+best"):
        assert words in table
    assert "already exists" in cli("compile", fixed_drafter, "-o", folder, "--soc", "sm8650").stderr
    assert "'sm1'" in cli("compile", fixed_drafter, "--soc", "sm1").error
    wrong = cli("compile", fixed_drafter, "--soc", "sm8650", "--optimization", 4)
    assert "finalization is 4" in wrong.error


def test_inspect(cli: Any, fixed_target: Path, compiled_target: Path) -> None:
    on_cpu = cli("inspect", fixed_target, "--json")
    found = json.loads(on_cpu.stdout)
    assert found["plan"] == {
        "context": 64,
        "widths": [4, 8],
        "parts": {
            "layers0": {"kind": "layers", "layers": 2},
            "logits": {"kind": "logits", "layers": 0},
            "best": {"kind": "best", "layers": 0},
        },
        "first_token": 1,
        "compiled": None,
    }
    assert (found["device"], found["width_invariant"]) == ("CPU", True)
    simulated = cli("inspect", compiled_target, "--backend", "qnn").stdout
    for words in ("steps of 4 or 8 tokens", "simulator (Hexagon v75)", "NPU simulator"):
        assert words in simulated
    elsewhere = cli("inspect", compiled_target)
    assert elsewhere.code == 0, elsewhere.stderr
    for words in ("simulator (Hexagon v75)", "not this machine", "there is none here"):
        assert words in " ".join(elsewhere.stdout.split())
    assert "not_loaded" in json.loads(cli("inspect", compiled_target, "--json").stdout)


def test_generate(cli: Any, compiled_target: Path, tiny_drafter: Path) -> None:
    models = ("-m", compiled_target, "-d", tiny_drafter, "--backend", "qnn")
    outcome = cli("generate", "fox", *models, "-n", 4, "-t", 0, "-k", 3)
    assert outcome.code == 0, outcome.stderr
    assert "block efficiency" in outcome.stderr
    slow = cli("generate", "fox", *models, "-n", 1, "--npu-option", "performance_mode=fast")
    assert "performance_mode is 'fast'" in slow.error
    wide = cli("generate", "fox", *models, "-k", 9)
    assert "1 to 7" in wide.error
    wrong = cli("generate", "fox", *models, "--draft-backend", "qnn")
    assert "made for the CPU" in wrong.error


def test_bench(cli: Any, compiled_target: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "one.txt"
    prompts.write_text("fox")
    options = ("-d", "ngram", "-p", prompts, "-n", 2, "--repeat", 1, "--max-context", 40)
    outcome = cli("bench", "-m", compiled_target, "--backend", "qnn", *options)
    assert outcome.code == 0, outcome.stderr
    assert "NPU simulator" in outcome.stdout
    assert "k = 7" in outcome.stdout
    assert "k = 8" not in outcome.stdout  # more than a step can check


def test_doctor(cli: Any) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "failed" not in outcome.stdout
    assert "qnn" not in outcome.stdout
    outcome = cli("doctor", "--qnn", "--json")
    checks = {check["name"]: check for check in json.loads(outcome.stdout)}
    assert outcome.code == 0
    assert "simulates" in checks["qnn provider"]["found"]
    assert provider.PROVIDER in checks["devices"]["found"]
    for name in ("qnn graph", "qnn compiled graph"):
        assert checks[name]["state"] == "ok"
        assert "differs from the CPU by at most" in checks[name]["found"]


def test_doctor_without_the_package(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_package", None)
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)  # type: ignore[arg-type]
    outcome = cli("doctor", "--qnn")
    assert outcome.code == 1
    (line,) = [line for line in outcome.stdout.splitlines() if "qnn package" in line]
    assert line.startswith("failed")
    assert "pip install 'specdec[qnn]'" in line
    assert "qnn graph" not in outcome.stdout


def test_doctor_of_an_npu_that_miscomputes(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MOST_STEPS", -1)
    outcome = cli("doctor", "--qnn")
    assert outcome.code == 1
    (line,) = [line for line in outcome.stdout.splitlines() if " qnn graph" in line]
    assert line.startswith("failed")
    assert "differs from the CPU" in line
    assert "driver" in line
