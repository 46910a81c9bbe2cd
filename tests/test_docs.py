"""Every command and example in README.md and docs/ runs.

A block below ``<!-- long -->`` takes minutes and runs with the long tests. The set-up commands are
what CI itself runs before it gets here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(<!-- (?P<note>[\w -]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code in a document."""

    document: str
    line: int
    note: str | None
    language: str
    code: str


def blocks() -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(
                Block(document.name, line, match["note"], match["language"], match["code"])
            )
    return found


def parameters(language: str) -> list[object]:
    return [
        pytest.param(
            block,
            id=f"{block.document}:{block.line}",
            marks=[pytest.mark.long] if block.note == "long" else [],
        )
        for block in blocks()
        if block.language == language and block.note != "set-up"
    ]


def test_readme_has_two_set_up_commands() -> None:
    (set_up,) = (block for block in blocks() if block.note == "set-up")
    assert len(set_up.code.strip().splitlines()) == 2


@pytest.mark.parametrize("block", parameters("python"))
def test_example_runs(block: Block, smollm2: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", block.code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("block", parameters("bash"))
def test_commands_run(block: Block, smollm2: Path) -> None:
    # The commands of the environment that runs the tests, wherever that is.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name} links to {link}"
