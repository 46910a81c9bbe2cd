"""What a training run tells: ``log.jsonl``, one object a line, and how long it will take."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from specdec.errors import InvalidInputError


class Log:
    """A file of JSON lines in the order of their steps, that a killed run leaves readable."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Go on after ``step``: lines of later steps, which will be made again, are dropped.

        Raises:
            InvalidInputError: It cannot be written.
        """
        kept = [line for line in read_log(path) if line.get("step", 0) <= step]
        partial = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text("".join(map(_line, kept)), encoding="utf-8")
            os.replace(partial, path)
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error

    def write(self, **entry: Any) -> None:
        """Add a line, with the time of day before everything else."""
        self._stream.write(_line({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **entry}))
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; a last one that a killed run left half written is not among them.

    Returns an empty list where there is no log.
    """
    return list(_read(path))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from error
    for line in text.splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def duration(seconds: float) -> str:
    """A time for people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
