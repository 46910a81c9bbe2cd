"""What bench.memory tells of a process, and what a process that loaded a model holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.memory import PARTS, Phase, as_markdown, kv_bytes, parts_of
from specdec import Model

SMAPS = """\
55d0-55e0 r-xp 00000000 08:01 77         /usr/lib/libsome thing.so
Size:                 64 kB
Rss:                  40 kB
AnonHugePages:         0 kB
VmFlags: rd ex mr
7f00-7f10 rw-p 00000000 00:00 0
Rss:                4096 kB
AnonHugePages:      4096 kB
7f20-7f30 rw-p 00000000 08:01 78         /models/one/model.onnx.data
Rss:                  12 kB
AnonHugePages:         0 kB
7f40-7f50 rw-p 00000000 00:00 0          [heap]
Rss:                   7 kB
AnonHugePages:         0 kB
"""

SCRIPT = """
import argparse, json, sys
from bench.memory import run
phases, total = run(argparse.Namespace(target=sys.argv[1], draft="none", prompt=1500, text=2))
print(json.dumps([[vars(phase) for phase in phases], total]))
"""


def test_each_mapping_is_of_one_part() -> None:
    assert parts_of(SMAPS.splitlines(True)) == {
        "libraries": 40_960,
        "weights": 4108 * 1024,
        "other": 7168,
    }


def test_tables() -> None:
    parts = {"libraries": 2_000_000, "weights": 0, "other": 1_000_000}
    text = as_markdown([Phase("Python", 3_000_000, 3_500_000, parts)], [("peak", 3_500_000)])
    assert "| Python | 3.0 | 3.5 | 2.0 | 0.0 | 1.0 |" in text
    assert "| peak | 3.5 |" in text


def test_bytes_of_keys_and_values(target: Model) -> None:
    config = target.config
    bits = 16 if target.half_kv else 32
    elements = config.layers * config.kv_heads * config.head_dim
    assert kv_bytes(target, 5) == 5 * 2 * elements * bits // 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_in_memory_once(smollm2: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(smollm2)], capture_output=True, text=True, check=True
    )
    rows: list[dict[str, Any]]
    rows, total = json.loads(done.stdout)
    for row in rows:
        assert sum(row["parts"].values()) == pytest.approx(row["resident"], rel=0.05)
    sizes = dict(total)
    stored = (smollm2 / "model.onnx.data").stat().st_size
    loaded = next(row for row in rows if row["name"] == "target loaded")
    before = rows[rows.index(loaded) - 1]
    # While they are loaded, and after a long text from all over the vocabulary.
    assert loaded["peak"] - before["resident"] < 1.35 * stored
    assert rows[-1]["parts"]["weights"] < 1.1 * stored
    assert sizes["peak"] - sizes["weights"] - sizes["K/V of the text"] < 120e6
    assert set(rows[-1]["parts"]) == set(PARTS)
