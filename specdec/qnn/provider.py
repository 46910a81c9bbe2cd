"""The QNN execution provider: a plugin of ONNX Runtime, registered when it is first needed.

On a device the provider lists an NPU: Windows and ONNX Runtime enumerate it, and on Linux and
Android the provider adds one where it finds Qualcomm's DSP driver. On x86-64 it lists the CPU
instead, and the HTP library of that platform simulates the NPU.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import onnxruntime

from specdec.errors import BackendError
from specdec.qnn.native_output import native_output

PROVIDER = "QNNExecutionProvider"
PACKAGE = "onnxruntime-qnn"
INSTALL = "pip install 'specdec[qnn]'"
OLDEST = (2, 0)
"""The first version that is a plugin; those before it were builds of ONNX Runtime."""

_lock = threading.Lock()
_package: Any = None


@dataclass(frozen=True)
class Versions:
    """What is installed; empty strings for what is not."""

    onnxruntime: str
    onnxruntime_qnn: str
    qnn: str


def versions() -> Versions:
    """Versions of ONNX Runtime, of the provider's package and of the QNN libraries inside it."""
    try:
        package = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return Versions(onnxruntime.__version__, "", "")
    try:
        info = import_module("onnxruntime_qnn.build_and_package_info")
        qnn = str(getattr(info, "qnn_version", ""))
    except ImportError:
        qnn = ""
    return Versions(onnxruntime.__version__, package, qnn)


def start() -> Any:
    """Register the provider, once for the process; returns the ``onnxruntime_qnn`` package.

    Raises:
        BackendError: The package is not installed, too old, not made for this platform, or ONNX
            Runtime refuses it.
    """
    global _package
    with _lock:
        if _package is None:
            package = _import_package()
            _register(package)
            if not _npus() and _is_x86() and sys.platform == "linux":
                # The simulator prints a line on standard output when it is first loaded. What is
                # wrong with it, a session will tell.
                with native_output(), suppress(OSError):
                    ctypes.CDLL(package.get_qnn_htp_path())
            _package = package
        return _package


def npu_present() -> bool:
    """Whether the provider finds a real NPU; False where the provider cannot be had."""
    try:
        start()
    except BackendError:
        return False
    return bool(_npus())


def devices() -> list[Any]:
    """The device to run on: the NPU, or on x86-64 the simulator.

    Raises:
        BackendError: The provider cannot be had, or finds no NPU.
    """
    start()
    found = _npus() or [
        device
        for device in _all_devices()
        if device.device.type == onnxruntime.OrtHardwareDeviceType.CPU and _is_x86()
    ]
    if not found:
        raise BackendError(
            f"QNN finds no Qualcomm NPU on this {platform.machine()} {platform.system()} machine; "
            "check its NPU driver (on Linux /dev/fastrpc-cdsp must be readable), or use "
            "backend='cpu'"
        )
    return found[:1]


def is_simulator(device: Any) -> bool:
    """Whether what ``devices`` gave simulates an NPU."""
    return bool(device.device.type != onnxruntime.OrtHardwareDeviceType.NPU)


def _npus() -> list[Any]:
    npu = onnxruntime.OrtHardwareDeviceType.NPU
    return [device for device in _all_devices() if device.device.type == npu]


def _all_devices() -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _import_package() -> Any:
    if sys.platform not in ("linux", "win32"):
        raise BackendError(
            f"backend 'qnn' runs on Windows, Linux and Android, not on {platform.system()}; "
            "use backend='cpu'"
        )
    installed = versions().onnxruntime_qnn
    if installed and _number(installed) < OLDEST:
        raise BackendError(
            f"{PACKAGE} {installed} is too old for backend 'qnn', which needs "
            f"{'.'.join(map(str, OLDEST))} or later; pip install --upgrade {PACKAGE}"
        )
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} is too old for backend 'qnn': it takes no "
            "plugins; pip install --upgrade onnxruntime"
        )
    try:
        return import_module("onnxruntime_qnn")
    except ImportError as error:
        what = f"is broken ({error})" if installed else "is not installed"
        raise BackendError(
            f"backend 'qnn' needs the package {PACKAGE}, which {what}; {INSTALL} (there are wheels "
            "for Windows and Linux, on x86-64 and Arm64)"
        ) from error


def _register(package: Any) -> None:
    if _all_devices():  # by the program that we are part of
        return
    try:
        onnxruntime.register_execution_provider_library(PROVIDER, package.get_library_path())
    except Exception as error:
        line = " ".join(str(error).split())
        now = versions()
        raise BackendError(
            f"onnxruntime {now.onnxruntime} does not take {PACKAGE} {now.onnxruntime_qnn} "
            f"({line}); pip install --upgrade onnxruntime {PACKAGE}"
        ) from error


def _number(version: str) -> tuple[int, ...]:
    """The leading numbers of a version."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
