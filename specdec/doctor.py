"""What is installed here and whether it works: ``specdec doctor``."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime

from specdec.hub import models_home

OK, FAILED, NOTE = "ok", "failed", "note"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: str
    """``"ok"``, ``"failed"``, or ``"note"`` for what is only told."""
    found: str
    remedy: str | None = None
    """What to do where it failed."""


def check(name: str, look: Callable[[], str], remedy: str | None = None) -> Check:
    """``look``'s finding, or what it raised."""
    try:
        return Check(name, OK, look())
    except Exception as error:
        return Check(name, FAILED, " ".join(str(error).split()) or type(error).__name__, remedy)


def examine() -> list[Check]:
    """The machine, the packages, and a graph on the CPU."""
    system = f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical cores"
    return [
        Check("system", NOTE, system),
        Check("python", NOTE, platform.python_version()),
        Check("specdec", NOTE, metadata.version("specdec")),
        check("core", _core, "pip install --force-reinstall specdec"),
        check("cpu", _cpu_session, "pip install --upgrade onnxruntime"),
        check("models", _models, "set SPECDEC_HOME to a folder that can be written"),
    ]


def _core() -> str:
    from specdec import _core as core

    return f"loads; drafts of up to {core.MAX_DRAFT_LENGTH} tokens"


def _cpu_session() -> str:
    from specdec.qnn.check_graph import check_input, write_check_graph

    with tempfile.TemporaryDirectory() as folder:
        graph = write_check_graph(Path(folder) / "check.onnx")
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        x = check_input()
        (y,) = session.run(None, {"x": x})
        (again,) = session.run(None, {"x": x})
    if not np.array_equal(y, again):
        raise RuntimeError("a graph gives different results from run to run")
    return f"onnxruntime {onnxruntime.__version__} runs a quantised graph"


def _models() -> str:
    home = models_home()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=home):
        pass
    folders = home / "models"
    names = sorted(path.name for path in folders.iterdir()) if folders.is_dir() else []
    names = [name for name in names if not name.startswith(".")]
    return f"{home}: {', '.join(names) or 'none yet'}"
