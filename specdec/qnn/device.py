"""Which chip this is, as far as the operating system tells."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from specdec.qnn.soc import SOCS, Soc

_WINDOWS_FAMILIES = (("X1", "x-elite"), ("X2", "x2-elite"))
"""Part numbers begin so: X1E80100, X1P64100, X2E96100..."""


def device_name() -> str | None:
    """The chip's part number or its name for people; None where nothing is said."""
    if sys.platform == "win32":
        return _from_registry()
    try:
        return Path("/sys/devices/soc0/machine").read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return _from_android()


def device_soc() -> Soc | None:
    """The chip that this process runs on, if it is one that models are compiled for."""
    name = device_name() or ""
    for soc in SOCS:
        if soc.part.lower() in name.lower():
            return soc
    for family, known in _WINDOWS_FAMILIES:
        if re.search(rf"\b{family}[EP]?-?\d", name):
            return next(soc for soc in SOCS if soc.name == known)
    return None


def _from_registry() -> str | None:
    if sys.platform == "win32":  # for the type checker as well
        import winreg

        key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as handle:
                return str(winreg.QueryValueEx(handle, "ProcessorNameString")[0]).strip()
        except OSError:
            return None
    return None


def _from_android() -> str | None:
    try:
        done = subprocess.run(
            ["getprop", "ro.soc.model"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
