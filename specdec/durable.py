"""The few calls that make a written folder durable and put it in place in one step."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path


def is_running_elsewhere(pid: int) -> bool:
    """Whether another process than this one has that id."""
    if pid == os.getpid():
        return False
    if sys.platform == "win32":  # os.kill(pid, 0) would end it there
        query_limited_information, still_active = 0x1000, 259
        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(query_limited_information, False, pid)
        if not handle:
            return False
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == still_active
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def flush_tree(folder: Path) -> None:
    """Flush every file and directory below ``folder`` to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _flush_directory(path)
        else:
            _flush_file(path)


def move_into_place(folder: Path, target: Path, *, replace: bool) -> None:
    """Rename ``folder`` to ``target``, a sibling.

    With ``replace`` an existing ``target`` takes the old place of ``folder`` where the system can
    swap in one step, and is deleted otherwise.

    Raises:
        FileExistsError: ``target`` exists and ``replace`` is not set.
    """
    if not (replace and target.exists()):
        if os.path.lexists(target):
            raise FileExistsError(target)
        try:
            os.rename(folder, target)
        except OSError as error:  # a folder that came in between gives ENOTEMPTY on some systems
            if target.exists():
                raise FileExistsError(target) from error
            raise
    elif not _exchange(folder, target):
        aside = folder.with_name(folder.name[:-8] + secrets.token_hex(4))
        os.rename(target, aside)
        try:
            os.rename(folder, target)
        except OSError:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _flush_directory(target.parent)


def _flush_file(path: Path) -> None:
    # Windows flushes only what is open for writing; elsewhere a read-only file must work too.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_directory(path: Path) -> None:
    if sys.platform != "win32":  # there a directory cannot be opened, nor needs to be
        _flush_file(path)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one atomic step; False where the system has no such call."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        names = os.fsencode(first), os.fsencode(second)
        if sys.platform == "linux":
            at_cwd, rename_exchange = -100, 2
            return bool(libc.renameat2(at_cwd, names[0], at_cwd, names[1], rename_exchange) == 0)
        if sys.platform == "darwin":
            rename_swap = 2
            return bool(libc.renamex_np(names[0], names[1], rename_swap) == 0)
    return False
