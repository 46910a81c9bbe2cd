"""Llama-2-7B's shape from checkpoint to context binaries, with random weights: sizes and costs.

    python -m bench.llama2_7b FOLDER [--layers 2] [--layout w4a16] [--widths 8 32] [--soc sm8650]

Makes a checkpoint, converts it (plain rounding; calibrated with one short random text), and
compiles it. What each stage took is in FOLDER/report.json, and printed as Markdown. Stages that are
done already are not done again: run it once more after an interruption. The whole model takes 13 GB
of disk for the checkpoint and 8 for the rest; a part of 8 layers takes about 4.5 GB of memory, and
3.5 more for each width after the first, which ``--separate`` avoids.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.random_llama import recipe_config, write_random_llama
from specdec.convert.htp.folder import convert_htp
from specdec.convert.htp.parts import DEFAULT_PART_BYTES
from specdec.qnn.compile import Report, compile_model

STAGES = ("checkpoint", "convert", "compile")
CALIBRATION_TOKENS = 16
REPORT_FILE = "report.json"


def main() -> None:
    arguments = _parse_arguments()
    if arguments.stage:
        _run(arguments.stage, arguments)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.folder / REPORT_FILE
    report = json.loads(file.read_text()) if file.is_file() else {}
    for stage in STAGES:
        key = f"{stage} {_output(stage, arguments).name}"
        if key not in report:
            report[key] = _measure(stage)
            file.write_text(json.dumps(report, indent=1))
    print(markdown(report, Report.read(_output("compile", arguments))))


def markdown(stages: Mapping[str, Mapping[str, Any]], report: Report) -> str:
    """Both reports as tables."""
    lines = [
        "| stage | seconds | of which CPU | peak memory, GB | load when it began and ended |",
        "|---|---|---|---|---|",
    ]
    for name, stage in stages.items():
        load = " / ".join(f"{value:.1f}" for value in stage["load"])
        lines.append(
            f"| {name} | {stage['seconds']:.0f} | {stage['cpu_seconds']:.0f} "
            f"| {stage['peak_bytes'] / 1e9:.1f} | {load} |"
        )
    widths = sorted({graph["width"] for part in report.parts for graph in part["graphs"]})
    moved = " | ".join(f"MB moved at width {width}" for width in widths)
    lines += [
        "",
        f"| part for {report.soc} | layers | weights, MB | binary, MB | seconds | peak, GB "
        f"| {moved} |",
        "|---|---|---|---|---|---|" + "---|" * len(widths),
    ]
    for part in report.parts:  # the heads have their weights, and so a binary, in common
        own = (
            f"{part['layers']} | {part['source_bytes'] / 1e6:.0f} "
            f"| {part['binary_bytes'] / 1e6:.0f} | {part['seconds']:.0f} "
            f"| {(part['peak_bytes'] or 0) / 1e9:.1f}"
        )
        for name in dict.fromkeys(graph["part"] for graph in part["graphs"]):
            traffic = {
                graph["width"]: graph["traffic"]
                for graph in part["graphs"]
                if graph["part"] == name
            }
            cells = " | ".join(_traffic_cell(traffic[width]) for width in widths)
            lines.append(f"| {name} | {own} | {cells} |")
            own = "| | | |"
    return "\n".join(lines)


def _traffic_cell(traffic: Mapping[str, int] | None) -> str:
    if traffic is None:
        return "not told"
    text = f"{(traffic['read'] + traffic['write']) / 1e6:.1f}"
    return text + (f" ({traffic['spill'] / 1e6:.1f} spilled)" if traffic["spill"] else "")


def _measure(stage: str) -> dict[str, Any]:
    """Runs a stage in a process of its own; what it and its children took."""
    load, begin = [os.getloadavg()[0]], time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bench.llama2_7b", *sys.argv[1:],
                                "--stage", stage])  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"stage '{stage}' failed")
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "load": [*load, os.getloadavg()[0]],
    }


def _run(stage: str, arguments: argparse.Namespace) -> None:
    output = _output(stage, arguments)
    source = output if stage == "checkpoint" else _output(_before(stage), arguments)
    begin = time.perf_counter()

    def progress(what: str, fraction: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = time.perf_counter() - begin
        print(f"{stage} {seconds:7.1f} s {peak:5.2f} GB  {what} {fraction:.0%}", flush=True)

    config = recipe_config(arguments.shape, layers=arguments.layers)
    match stage:
        case "checkpoint":
            write_random_llama(
                output, config, seed=arguments.seed, progress=lambda done: progress("tensors", done)
            )
        case "convert":
            rng = np.random.default_rng(arguments.seed)
            text = rng.integers(3, config.vocab, CALIBRATION_TOKENS - 1).tolist()
            convert_htp(
                source,
                output,
                layout=arguments.layout,
                widths=arguments.widths,
                context=arguments.context,
                calibration=[[1, *text]],
                part_bytes=arguments.part_bytes,
                chat_template="llama-2",
                replace=True,
                progress=progress,
            )
        case "compile":
            compile_model(
                source,
                output,
                arguments.soc,
                share_weights=not arguments.separate,
                replace_folder=True,
                progress=progress,
            )


def _before(stage: str) -> str:
    return STAGES[STAGES.index(stage) - 1]


def _output(stage: str, arguments: argparse.Namespace) -> Path:
    """The folder that a stage makes; its name tells what it depends on."""
    name = arguments.shape + ("" if arguments.layers is None else f"-{arguments.layers}-layers")
    if stage != "checkpoint":
        name += f"-{arguments.layout}-" + "-".join(map(str, sorted(arguments.widths)))
        name += "" if arguments.context == 1024 else f"-context-{arguments.context}"
    if stage == "compile":
        name += f"-{arguments.soc}" + ("-separate" if arguments.separate else "")
    folder: Path = arguments.folder / name
    return folder


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="llama-2-7b-chat", help="a known model's name")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--layout", default="w4a16")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--soc", default="sm8650")
    parser.add_argument("--separate", action="store_true", help="a binary for each width")
    parser.add_argument("--part-bytes", type=int, default=DEFAULT_PART_BYTES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
