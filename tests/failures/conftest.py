"""The tiny model, and a copy of its folder to damage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture
def folder(tiny_target: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_target, tmp_path / "copy"))
