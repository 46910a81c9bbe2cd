"""Compiles one part of a model in a process of its own: ``python -m specdec.qnn.compile_part``.

Reads a job (JSON) from the file that it is given and writes the result beside it. QNN tells a
graph's memory traffic only in its log, so the log is turned on whole, and goes to standard error
for the parent to read.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime

from specdec.errors import SpecdecError
from specdec.qnn.options import QnnOptions
from specdec.qnn.sessions import open_session

GRAPH_LINE = "specdec: graph "
"""What the log says before the lines of a graph."""


def main(job_file: Path) -> None:
    job = json.loads(job_file.read_text(encoding="utf-8"))
    result = job_file.with_suffix(".result")
    try:
        document: dict[str, Any] = {"graphs": compile_graphs(job)}
    except SpecdecError as error:
        document = {"error": str(error)}
    document["peak_bytes"] = peak_bytes()
    result.write_text(json.dumps(document), encoding="utf-8")


def compile_graphs(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Compile the job's graphs, in one context where they share weights."""
    options = QnnOptions(**job["options"])
    # Before the provider is registered, which takes this level for QNN's own log.
    onnxruntime.set_default_logger_severity(0)
    onnxruntime.set_default_logger_verbosity(4)
    done, kept = [], []
    for index, graph in enumerate(job["graphs"]):
        config = {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "0",
            "ep.context_file_path": graph["output"],
        }
        if job["share_weights"]:
            config["ep.share_ep_contexts"] = "1"
            if index + 1 == len(job["graphs"]):
                config["ep.stop_share_ep_contexts"] = "1"
        print(f"{GRAPH_LINE}{graph['name']}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        session = open_session(Path(graph["source"]), options, config, log_severity=0)
        done.append({"name": graph["name"], "seconds": time.perf_counter() - begin})
        if job["share_weights"]:
            kept.append(session)  # the context is written with the last of them
    return done


def peak_bytes() -> int | None:
    """Most memory that this process had; None where the system does not tell."""
    # Not from getrusage(), which counts what the parent had when it started this process.
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
