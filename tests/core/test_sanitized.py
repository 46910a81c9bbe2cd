"""The core's own tests under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from core_build import COMPILER, REPOSITORY


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(COMPILER) is None, reason="needs GCC's sanitizers"
)
def test_core_under_sanitizers() -> None:
    done = subprocess.run([sys.executable, str(REPOSITORY / "tests" / "sanitized.py")])
    assert done.returncode == 0
