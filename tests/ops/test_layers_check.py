"""Stages and layers in C++ threads, under sanitizers: a barrier that is none is a data race."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
OPS = REPOSITORY / "csrc" / "ops"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread"]
SANITIZERS = ["thread", "address,undefined,float-cast-overflow"]


def run_check(tmp_path: Path, ops: Path, sanitizers: str) -> subprocess.CompletedProcess[str]:
    names = ["row_kernels*", "attention_*", "attention", "isa", "op", "linear"]
    names += ["layers_step", "weight_memory", "mapped_files"]
    sources = {str(path) for name in names for path in ops.glob(f"{name}.cpp")}
    check = tmp_path / "check.cpp"
    text = Path(__file__).with_name("layers_check.cpp").read_text()
    check.write_text(text.replace("../../csrc/ops", str(ops)))
    program = tmp_path / "check"
    sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    command = [COMPILER, *FLAGS, *sanitize, *sorted(sources), str(check), "-o", str(program)]
    subprocess.run(command, check=True)
    return subprocess.run([program], capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(COMPILER) is None, reason="needs GCC's sanitizers"
)
@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_stages_and_layers_under_sanitizers(tmp_path: Path, sanitizers: str) -> None:
    done = run_check(tmp_path, OPS, sanitizers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stages and layers are right" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(COMPILER) is None, reason="needs GCC's sanitizers"
)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "      wait(idle);\n",
            "      static_cast<void>(idle);\n",
        ),  # no stage waits for the one before
        (
            "fetch_add(finished, std::memory_order_release)",
            "fetch_add(finished, std::memory_order_relaxed)",
        ),
        ("part < end", "part <= end"),  # a part of the next stage
    ],
)
def test_broken_stages_are_caught(tmp_path: Path, before: str, after: str) -> None:
    core = tmp_path / "csrc"
    shutil.copytree(REPOSITORY / "csrc", core)
    stages = core / "ops" / "stages.h"
    text = stages.read_text()
    assert text.count(before) == 1
    stages.write_text(text.replace(before, after))
    done = run_check(tmp_path, core / "ops", "thread")
    assert done.returncode != 0, "a broken barrier was not seen"
