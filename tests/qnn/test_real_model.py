"""SmolLM2-135M and its drafter, all of their layers, in the simulator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime_qnn")

from specdec import Generator, Model, SamplingParams
from specdec.qnn.compile import Report, compile_model

pytestmark = pytest.mark.long

GREEDY = SamplingParams(temperature=0, max_tokens=8)
PROMPT = "Why is the sky blue?"


@pytest.fixture(scope="module")
def folders(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Target and drafter in w8a16, rounded to nearest: enough to see that they run."""
    made = {}
    for name in ("smollm2-135m", "smollm2-135m-standalone-drafter"):
        made[name] = tmp_path_factory.mktemp("npu") / name
        options = ["--method", "rtn", "--written-tokens", "0", "--context", "128", "--widths", "8"]
        command = [
            sys.executable,
            "-m",
            "specdec",
            "quantize",
            name,
            "-o",
            str(made[name]),
            *options,
        ]
        subprocess.run(command, check=True)
    return made


def test_both_whole_on_the_npu(folders: dict[str, Path]) -> None:
    target, drafter = (Model.load(folder, backend="qnn") for folder in folders.values())
    generator = Generator(target, drafter, draft_length=4)
    chunks = list(generator.stream(PROMPT, GREEDY))
    tokens = tuple(token for chunk in chunks for token in chunk.tokens)
    stats = generator.stats
    print(stats, chunks)
    assert len(tokens) == GREEDY.max_tokens
    assert stats.accepted > 0
    on_cpu = Model.load(folders["smollm2-135m"], backend="cpu")
    # The same graphs, to rounding: greedy text agrees but for near-ties.
    plain = Generator(on_cpu).generate(PROMPT, GREEDY).tokens
    assert sum(a == b for a, b in zip(tokens, plain, strict=True)) >= 4


@pytest.mark.parametrize("soc", ["sm8650", "x-elite", "sm8750"])
def test_compiled(folders: dict[str, Path], tmp_path: Path, soc: str) -> None:
    folder = compile_model(folders["smollm2-135m"], tmp_path / soc, soc)
    report = Report.read(folder)
    source = sum(part["source_bytes"] for part in report.parts)
    binaries = sum(part["binary_bytes"] for part in report.parts)
    print(report)
    assert binaries < 1.3 * source  # two heads, one copy of their weights
    layers = next(graph for part in report.parts for graph in part["graphs"])
    assert layers["traffic"]["spill"] == 0
