"""Whether the NPU can be used here: ``specdec doctor --qnn``."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from specdec.doctor import NOTE, OK, Check, check
from specdec.qnn import provider
from specdec.qnn.check_graph import check_input, write_check_graph
from specdec.qnn.device import device_name, device_soc
from specdec.qnn.options import QnnOptions
from specdec.qnn.sessions import open_on_cpu, open_session

_MOST_STEPS = 4
"""Of 65,536, by which the NPU's result may differ from the CPU's."""
_RUNS = 20


def examine_qnn() -> list[Check]:
    """The package, the provider, its devices, and a graph on the NPU or its simulator."""
    checks = [check("qnn package", _package), _chip()]
    provided = check("qnn provider", _provider)
    checks.append(provided)
    if provided.state != OK:
        return checks
    checks.append(_devices())
    with tempfile.TemporaryDirectory() as folder:
        graph = write_check_graph(Path(folder) / "check.onnx")
        remedy = "update the NPU driver (Windows Update, or the board's image) and onnxruntime-qnn"
        run = check("qnn graph", lambda: _run(graph), remedy)
        checks.append(run)
        if run.state == OK:
            checks.append(check("qnn compiled graph", lambda: _run_compiled(graph), remedy))
    return checks


def _package() -> str:
    provider.start()
    found = provider.versions()
    return f"{provider.PACKAGE} {found.onnxruntime_qnn} with QNN {found.qnn or 'of no version'}"


def _chip() -> Check:
    name, soc = device_name(), device_soc()
    if soc is not None:
        return Check("chip", NOTE, f"{name}: {soc.marketing}, specdec compile --soc {soc.name}")
    return Check("chip", NOTE, f"{name or 'not told by the system'}: none that models are for")


def _provider() -> str:
    (device,) = provider.devices()
    if provider.is_simulator(device):
        return "starts; there is no NPU, it simulates one: to try things, thousands of times slower"
    troubles = _troubles()
    return f"starts; finds an NPU{f', but says: {troubles}' if troubles else ''}"


def _devices() -> Check:
    lines = [_described(device) for device in onnxruntime.get_ep_devices()]
    return Check("devices", NOTE, "; ".join(lines))


def _described(device: Any) -> str:
    hardware = device.device
    kind = str(hardware.type).rpartition(".")[2]
    data = {**dict(hardware.metadata), **dict(device.ep_metadata)}
    more = ", ".join(f"{name} {value}" for name, value in sorted(data.items()))
    return (
        f"{device.ep_name} on {kind} of {hardware.vendor or 'no vendor'} "
        f"({hardware.vendor_id:#x}:{hardware.device_id:#x}{', ' + more if more else ''})"
    )


def _troubles() -> str:
    """What the provider itself has against the NPU; "" for nothing."""
    try:
        from onnxruntime.capi import _pybind_state as state

        (device,) = provider.devices()
        details = state.get_hardware_device_ep_incompatibility_details(
            provider.PROVIDER, device.device
        )
        return str(details["notes"] or "") if details["reasons_bitmask"] else ""
    except Exception:  # older versions do not tell, and the graph below will
        return ""


def _run(graph: Path) -> str:
    begin = time.perf_counter()
    session = open_session(graph, QnnOptions())
    loading = time.perf_counter() - begin
    steps, seconds = _compare(session, graph)
    return (
        f"loads in {loading:.2f} s, runs in {seconds * 1e3:.2f} ms, differs from the CPU by at "
        f"most {steps} of 65536 steps"
    )


def _run_compiled(graph: Path) -> str:
    compiled = graph.with_name("compiled.onnx")
    config = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": str(compiled),
    }
    open_session(graph, QnnOptions(), config)
    begin = time.perf_counter()
    session = open_session(compiled, QnnOptions())
    loading = time.perf_counter() - begin
    steps, _ = _compare(session, graph)
    return f"loads in {loading:.2f} s, differs from the CPU by at most {steps} of 65536 steps"


def _compare(session: Any, graph: Path) -> tuple[int, float]:
    """The largest difference from the CPU provider, and the median run's seconds."""
    x = check_input()
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        (ours,) = session.run(None, {"x": x})
        times.append(time.perf_counter() - begin)
    (theirs,) = open_on_cpu(graph).run(None, {"x": x})
    steps = int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max())
    if steps > _MOST_STEPS:
        raise RuntimeError(f"differs from the CPU by {steps} of 65536 steps")
    return steps, statistics.median(times)
