"""What native libraries print, caught before it reaches the user's terminal."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_lock = threading.Lock()


@dataclass
class NativeOutput:
    """Lines printed to the process's own standard output and error."""

    text: str = ""


@contextmanager
def native_output() -> Iterator[NativeOutput]:
    """Catch what is printed below Python to standard output and error while the body runs.

    The whole process is affected, so the body should be short. Where the streams are closed,
    nothing is caught.
    """
    caught = NativeOutput()
    with _lock:
        _flush()
        try:
            saved = [os.dup(1), os.dup(2)]
        except OSError:
            yield caught
            return
        with tempfile.TemporaryFile() as file:
            try:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                yield caught
            finally:
                _flush()
                for descriptor, copy in zip((1, 2), saved, strict=True):
                    os.dup2(copy, descriptor)
                    os.close(copy)
                file.seek(0)
                caught.text = file.read().decode("utf-8", errors="replace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    if sys.platform != "win32":  # the C library's own buffers
        ctypes.CDLL(None).fflush(None)
