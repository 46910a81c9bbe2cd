"""Runs ``compile_part`` in a child process, and reads QNN's log of it.

A process for each part gives its memory back before the next one starts, and a crash of the
compiler's ends as one line.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from specdec.errors import BackendError
from specdec.qnn.compile_part import GRAPH_LINE
from specdec.qnn.options import QnnOptions
from specdec.qnn.sessions import plain_line

_TRAFFIC = re.compile(r"\b(spill_bytes|fill_bytes|write_total_bytes|read_total_bytes)=(\d+)")
_COMPLAINTS = ("[E:", "[F:", "<E>", "terminate called", "what()")


@dataclass(frozen=True)
class Traffic:
    """QNN's "DDR bandwidth summary": bytes that one run of a graph moves, as planned."""

    read: int = 0
    write: int = 0
    spill: int = 0
    fill: int = 0


@dataclass(frozen=True)
class CompiledGraph:
    """One graph."""

    name: str
    """Of its file."""
    seconds: float
    traffic: Traffic | None
    """None where QNN's log does not tell."""


@dataclass(frozen=True)
class CompiledGraphs:
    """What compiling graphs in one process took."""

    graphs: tuple[CompiledGraph, ...]
    peak_bytes: int | None
    """Most memory that the process had."""


def compile_graphs(
    name: str, graphs: list[dict[str, str]], options: QnnOptions, *, share_weights: bool
) -> CompiledGraphs:
    """Compile ``graphs`` (``name``, ``source``, ``output``) in one child process.

    Raises:
        BackendError: QNN does not take a graph, or the process ended early.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        document = {
            "graphs": graphs, "options": asdict(options), "share_weights": share_weights,
        }  # fmt: skip
        job.write_text(json.dumps(document), encoding="utf-8")
        command = [sys.executable, "-m", "specdec.qnn.compile_part", str(job)]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                traffic, complaints = _read_log(process.stderr or ())
            except BaseException:
                process.kill()
                raise
        try:
            result = json.loads(job.with_suffix(".result").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise _ended_early(name, process.returncode, complaints) from None
    if "error" in result:
        raise BackendError(result["error"])
    return CompiledGraphs(
        tuple(
            CompiledGraph(done["name"], done["seconds"], traffic.get(done["name"]))
            for done in result["graphs"]
        ),
        result["peak_bytes"],
    )


def _read_log(lines: Iterable[str]) -> tuple[dict[str, Traffic], list[str]]:
    """The last summary of each graph, and the last complaints. The log may be very long."""
    traffic: dict[str, dict[str, int]] = {}
    complaints: deque[str] = deque(maxlen=3)
    graph = line = ""
    for line in lines:
        if line.startswith(GRAPH_LINE):
            graph = line.removeprefix(GRAPH_LINE).strip()
        if "_bytes=" in line:  # few of a million lines have it
            for name, size in _TRAFFIC.findall(line):
                kind = name.removesuffix("_bytes").removesuffix("_total")
                traffic.setdefault(graph, {})[kind] = int(size)
        if any(words in line for words in _COMPLAINTS):
            complaints.append(plain_line(line))
    if not complaints:
        complaints.append(plain_line(line))
    return {name: Traffic(**sizes) for name, sizes in traffic.items()}, list(complaints)


def _ended_early(name: str, code: int, complaints: list[str]) -> BackendError:
    how = f"exit code {code}"
    if code < 0:
        how = f"signal {-code}"
        if -code == getattr(signal, "SIGKILL", None):
            how += ", as where memory runs out: cut the model into smaller parts"
    said = f"; it said: {complaints[-1]}" if complaints else ""
    return BackendError(f"{name}: QNN's compiler ended early ({how}){said}")
