"""The page of figures, and that it can be filled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import performance
from bench.performance import PAGE, SECTIONS, filled


def test_the_page_has_a_place_for_every_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "FOLDER", tmp_path)
    for name in SECTIONS:
        (tmp_path / name).mkdir()
    (tmp_path / "peers" / "peers.md").write_text("PEERS TABLE\n", encoding="utf-8")
    (tmp_path / "growth" / "growth.md").write_text("GROWTH TABLE\n", encoding="utf-8")
    steps = {"nbits8": {"1": 6.0, "8": 9.0}}
    (tmp_path / "layouts" / "layouts.json").write_text(json.dumps(steps), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        page = filled(page, name, section, quick=True)
        page = filled(page, name, section, quick=True)  # what was there is replaced
    for expected in (
        "PEERS TABLE",
        "GROWTH TABLE",
        "| `nbits8` | 6.00 | 9.00 | 1.50 x |",
        "(performance/growth/context.svg)",
        "few repeats",
    ):
        assert page.count(expected) >= 1, expected
    assert page.count("PEERS TABLE") == 1


def test_a_page_without_the_place_is_refused() -> None:
    section = SECTIONS["peers"]
    with pytest.raises((ValueError, OSError)):
        filled("no marks", "peers", section, quick=True)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_commands_take_their_options(name: str) -> None:
    section = SECTIONS[name]
    known = subprocess.run(
        [sys.executable, "-m", section.module, "--help"],
        cwd=PAGE.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in (*section.quick, *section.whole):
        assert not option.startswith("--") or option in known
