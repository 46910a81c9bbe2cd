"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from specdec.generator import Ngram
from specdec.model import Model
from specdec.qnn.device import device_name
from specdec.qnn.provider import versions


def describe_machine(target: Model, draft: Model | Ngram | None) -> dict[str, Any]:
    """Processor, versions, models and threads, ready for JSON."""
    models = [model for model in (target, draft) if isinstance(model, Model)]
    return {
        "cpu": cpu_model(),
        "logical_cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "specdec": version("specdec"),
        "onnxruntime": onnxruntime.__version__,
        "npu": _describe_npu() if any(model.backend == "qnn" for model in models) else None,
        "threads": target.threads or "one for each physical core",
        "target": _describe(target),
        "draft": _describe(draft) if isinstance(draft, Model) else None,
        "width_invariant": target.width_invariant,
    }


def _describe_npu() -> dict[str, Any]:
    return {"chip": device_name(), **asdict(versions())}


def cpu_model() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _describe(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "layout": model.folder.layout,
        "device": model.device,
        "source": model.folder.source,
    }
