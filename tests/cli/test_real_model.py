"""The README's first command, on the real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def generate(*options: str) -> tuple[str, str]:
    command = [sys.executable, "-m", "specdec", "generate", "Why is the sky blue?", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return done.stdout, done.stderr


def test_the_known_drafter_changes_nothing_but_the_speed(smollm2: Path) -> None:
    drafted, figures = generate("--max-tokens", "32", "--temperature", "0")
    alone, _ = generate("--max-tokens", "32", "--temperature", "0", "--draft", "none")
    assert drafted == alone
    assert len(drafted.split()) > 15
    assert "smollm2-135m drafted by smollm2-135m-drafter (its known drafter)" in figures
