"""A worker's process, as the orchestrator sees it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.peers.install import ROOT, PeerUnavailableError
from bench.peers.protocol import Request


class Worker:
    """Runs ``python -m MODULE`` with a configuration; a context manager that ends the process."""

    def __init__(self, python: Path, module: str, config: dict[str, Any], log: Path) -> None:
        """Start the process and wait until it is ready.

        Raises:
            PeerUnavailableError: It could not load what the configuration asks for.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                text=True,
                encoding="utf-8",
            )
        try:
            ready = self._ask(config)
        except BaseException:
            self.close()
            raise
        self.pid: int = ready["pid"]
        self.versions: dict[str, str] = ready["versions"]

    def generate(self, request: Request) -> dict[str, Any]:
        """The worker's reply.

        Raises:
            PeerUnavailableError: It failed at this text, or died.
        """
        return self._ask(asdict(request))

    @property
    def peak_bytes(self) -> int:
        """The most physical memory that the engine's process has had so far."""
        return _status(self.pid, "VmHWM") * 1024

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the worker and of the engine's process, so far."""
        return sum(_cpu_seconds(pid) for pid in {self._process.pid, self.pid})

    def close(self) -> None:
        """End the process: it sees the end of its input, and is killed if that does not help."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise PeerUnavailableError(f"the process ended with {code}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerUnavailableError(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return f"{' | '.join([line for line in lines if line.strip()][-3:])} (log: {self._log})"


def cpu_seconds_of(workers: Iterable[Worker]) -> float:
    """Processor time of all these workers, so far."""
    return sum(worker.cpu_seconds for worker in workers)


def _status(pid: int, field: str) -> int:
    for line in (
        Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").split("\n")
    ):
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise PeerUnavailableError(f"the system does not tell {field} of process {pid}")


def _cpu_seconds(pid: int) -> float:
    fields: Sequence[str] = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
