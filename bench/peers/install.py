"""Virtual environments of peers: made when first asked for, at the lowest priority, then kept.

They lie below ``SPECDEC_HOME`` (or the user's cache), in ``peers/NAME``; deleting that folder
undoes everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from specdec.file_lock import file_lock
from specdec.hub import models_home

Report = Callable[[str], None]

ROOT = Path(__file__).resolve().parents[2]
"""Where ``python -m bench...`` works."""

STAMP = "made-of.json"
"""The file in a folder that says what it was made of."""


class PeerUnavailableError(Exception):
    """A peer cannot run here; the message says what was tried and what came of it."""


def peer_home(name: str) -> Path:
    """The folder of one peer's environment, models and logs."""
    folder = models_home() / "peers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(
    name: str, requirements: Sequence[str], report: Report, *, make_missing: bool = True
) -> Path:
    """The Python of the peer's environment, which is made if it is not there as wanted.

    Raises:
        PeerUnavailableError: pip could not install the requirements, or the environment is missing
            and ``make_missing`` is false.
    """
    home = peer_home(name)
    python = home / "venv" / "bin" / "python"
    if not make_missing and not (home / "venv" / STAMP).is_file():
        raise PeerUnavailableError("it is not installed (python -m bench.peers --install)")

    def make(folder: Path) -> None:
        report(f"{name}: installing {', '.join(requirements)}")
        venv.create(folder, with_pip=True, symlinks=True)
        run_quietly(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-input",
                "--no-compile",
                *requirements,
            ],
            log=home / "install.log",
        )

    made_once(home / "venv", {"requirements": list(requirements)}, make, report)
    return python


def made_once(
    folder: Path, of: Mapping[str, object], make: Callable[[Path], None], report: Report
) -> Path:
    """``folder``, made by ``make`` unless it was made of exactly ``of`` before.

    Processes that want the same folder at once wait for the first. What is half made, or made of
    something else, is deleted.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    with file_lock(lock, on_wait=lambda: report(f"waiting for another process: {folder}")):
        stamp = folder / STAMP
        content = json.dumps(of, indent=1, sort_keys=True)
        with contextlib.suppress(OSError):
            if stamp.read_text(encoding="utf-8") == content:
                return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        stamp.write_text(content, encoding="utf-8")
    return folder


def run_quietly(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command at the lowest priority, with all that it prints in ``log``.

    Raises:
        PeerUnavailableError: It failed; the message holds the end of what it printed.
    """
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=ROOT,
                start_new_session=True,  # a scheduling group of its own, which can be a low one
                preexec_fn=_lowest_priority if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise PeerUnavailableError(f"'{command[0]}' cannot be run: {error.strerror}") from error
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        end = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-4:])
        raise PeerUnavailableError(
            f"'{' '.join(command[:6])} ...' ended with {code} (all of it is in {log}): {end}"
        )


def _lowest_priority() -> None:
    os.nice(19)
    # On Linux niceness only counts within a session's group; the group has one of its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")
