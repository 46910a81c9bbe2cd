"""Sessions whose whole graph is on the NPU, or an error that says why it is not; and on the CPU."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from specdec.errors import BackendError, ModelFolderError
from specdec.qnn import provider
from specdec.qnn.native_output import native_output
from specdec.qnn.options import QnnOptions
from specdec.qnn.soc import SIMULATOR

_FATAL, _ERROR = 4, 3  # ONNX Runtime's severities
_TRACE_FILE = "qnn_op_trace.json"
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_START_WORDS = ("SetupBackend failed", "creating QNN EP")
# Said of every graph that did not come whole to the NPU, whatever the reason.
_FALLBACK_LINES = (
    "assigned to the default CPU EP",
    "Conflicting session configuration",
    "Unsupported nodes in QNN EP",
)


def open_session(
    graph: Path,
    options: QnnOptions,
    config: Mapping[str, str] | None = None,
    *,
    log_severity: int = _FATAL,
) -> Any:
    """An ``onnxruntime.InferenceSession`` with all of a graph on the NPU (or its simulator).

    Args:
        graph: An ONNX file with fixed shapes, or a wrapper of a context binary.
        options: The provider's options.
        config: More entries of the session's configuration.
        log_severity: What ONNX Runtime prints: 4 nothing, 0 all.

    Raises:
        BackendError: The provider cannot be had or does not start, or it does not take the whole
            graph: then the message names the first node and its operator.
    """
    try:
        return _open(graph, options, config or {}, {}, log_severity)
    except BackendError:
        raise
    except Exception as error:
        # ONNX Runtime says little of why; the provider says it in its log and in a trace of the
        # graph, so look a second time with both.
        raise _explained(graph, options, config or {}, error) from error


def open_on_cpu(path: Path, threads: int | None = None) -> Any:
    """A session of a graph on the CPU provider, quantizer by quantizer as the NPU computes it.

    Raises:
        ModelFolderError: ONNX Runtime cannot load the graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Fused integer kernels round otherwise than the NPU, which computes quantizers one by one.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelFolderError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it "
            f"({plain_line(str(error))}); convert the model again"
        ) from error


def _open(
    graph: Path,
    options: QnnOptions,
    config: Mapping[str, str],
    extra: Mapping[str, str],
    severity: int,
) -> Any:
    package = provider.start()
    devices = provider.devices()
    simulated = provider.is_simulator(devices[0])
    if simulated and options.shared_memory:
        raise BackendError("shared_memory is for devices: the simulator has no memory to share")
    provider_options = {"backend_path": package.get_qnn_htp_path()}
    if simulated and options.soc_model is None and options.htp_arch is None:
        provider_options["soc_model"] = str(SIMULATOR.soc_model)
        provider_options["htp_arch"] = str(SIMULATOR.htp_arch)
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = severity
    session_options.intra_op_num_threads = 1  # nothing of the graph runs on the CPU
    for key, value in {"session.disable_cpu_ep_fallback": "1", **config}.items():
        session_options.add_session_config_entry(key, value)
    session_options.add_provider_for_devices(
        devices, {**provider_options, **options.provider_options(), **extra}
    )
    # Its own retry on the CPU would print to standard output and hide the reason.
    return onnxruntime.InferenceSession(str(graph), session_options, enable_fallback=0)


def _explained(
    graph: Path, options: QnnOptions, config: Mapping[str, str], error: Exception
) -> BackendError:
    with tempfile.TemporaryDirectory() as folder:
        trace = {"enable_framework_op_trace": "1", "framework_op_trace_dir": folder}
        # What the first try wrote of a binary would be in the way.
        config = {key: config[key] for key in config if not key.startswith("ep.context_")}
        with native_output() as output:
            try:
                _open(graph, options, config, trace, _ERROR)
            except Exception as second:
                error = second
        nodes = _unsupported_nodes(Path(folder) / _TRACE_FILE)
    if nodes:
        return BackendError(f"{graph}: {_describe(nodes)}")
    reason = _reason(error, output.text)
    starting = any(words in reason for words in _START_WORDS)
    if starting:
        return BackendError(f"QNN does not start ({reason}); run: specdec doctor --qnn")
    return BackendError(f"{graph}: QNN does not take it: {reason}")


def _unsupported_nodes(trace: Path) -> list[dict[str, str]]:
    """What the NPU does not take, as the provider tells it: names, operators and reasons."""
    try:
        nodes = json.loads(trace.read_text(encoding="utf-8"))["unsupported_nodes"]
    except (OSError, ValueError, KeyError):
        return []
    # Quantizers around such a node are left over with it: name the cause.
    causes = [node for node in nodes if node["op_type"] not in _QUANTIZERS]
    return causes or list(nodes)


def _describe(nodes: list[dict[str, str]]) -> str:
    first = nodes[0]
    # Reasons are glued together without a space; the first is the node's own.
    reason = re.split(r"\.(?=[A-Z])|\.$", " ".join(first.get("reason", "").split()))[0]
    others = f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else ""
    return (
        f"the NPU does not take node {first['node_name']!r}, operator {first['op_type']}{others}: "
        f"{reason or 'no reason given'}; nothing falls back to the CPU, so change that node"
    )


def _reason(error: BaseException, log: str) -> str:
    """The provider's own words if it logged any, or else ONNX Runtime's."""
    # A retry of ONNX Runtime's hides the first error behind its own.
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [plain_line(line) for line in log.splitlines() if "[E:" in line or "[F:" in line]
    lines = [line for line in lines if not any(common in line for common in _FALLBACK_LINES)]
    return lines[0] if lines else plain_line(str(error))


def plain_line(text: str) -> str:
    """A message of ONNX Runtime in one line, without its decoration."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(text.split()))
    text = re.sub(r"^[-\d]+ [\d:.]+ \[[A-Z]:[^\]]*\] ?", "", text)  # time, severity and place
    text = re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return text.strip() or "no reason given"
