"""The kernels of Linear and NormLinear, without ONNX Runtime, under sanitizers."""

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
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(COMPILER) is None, reason="needs GCC's sanitizers"
)
def test_instruction_sets_agree_under_sanitizers(tmp_path: Path) -> None:
    sources = [*OPS.glob("row_kernels*.cpp")]
    sources += [OPS / f"{name}.cpp" for name in ("isa", "op", "greatest_output")]
    program = tmp_path / "check"
    check = Path(__file__).with_name("row_kernels_check.cpp")
    command = [COMPILER, *FLAGS, "-D_GLIBCXX_ASSERTIONS", *SANITIZE, *map(str, sources), str(check)]
    subprocess.run([*command, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agree with plain" in done.stdout
