"""Milliseconds per step of each layout, by width.

    python -m bench.layout_speed smollm2-135m [--layouts fused nbits8] [--json FILE]

``--processor-time`` counts the time that all threads worked and not the time that passed, for a
machine that does other things too; take one thread, since waiting ones work as well.

Steps run behind a filled cache on buffers bound beforehand. Layouts take turns within one run, so
that whatever else the machine does hits all of them. The median over all turns is printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.graph_runner import GraphRunner, session_options
from bench.sources import gguf
from specdec.convert import LAYOUTS, convert

WIDTHS = (1, 2, 4, 5, 8, 9, 16, 32, 128)
BURST = 3  # steps of one layout in a row; one more before them is not counted


def main() -> None:
    arguments = _parse_arguments()
    capacity = arguments.past + max(arguments.widths)
    runners: dict[str, GraphRunner] = {}
    with tempfile.TemporaryDirectory() as scratch, gguf(arguments.source) as source:
        for layout in arguments.layouts:
            folder = convert(
                source,
                Path(scratch) / layout,
                layout=layout,
                target_source=arguments.target_source,
            )
            # Threads of one session that spin for its next step would slow the others' steps.
            options = session_options(arguments.threads, {"session.force_spinning_stop": "1"})
            runners[layout] = GraphRunner(folder / "model.onnx", capacity, options)
        tokens = np.random.default_rng(0).integers(0, arguments.vocabulary, capacity).tolist()
        for runner in runners.values() if arguments.past else ():
            runner.step(tokens[: arguments.past], 0, first_row=arguments.past - 1)
        print(f"{'layout':16}" + "".join(f"{width:9d}" for width in arguments.widths))
        table = {layout: dict[int, float]() for layout in runners}
        for width in arguments.widths:
            for layout, milliseconds in _measure(runners, tokens[:width], arguments).items():
                table[layout][width] = milliseconds
        for layout, row in table.items():
            print(f"{layout:16}" + "".join(f"{value:9.2f}" for value in row.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="a GGUF file, or a known model's name")
    parser.add_argument("--target-source", type=Path, help="a drafter's target")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--past", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--vocabulary", type=int, default=256, help="draw ids below this")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _measure(
    runners: dict[str, GraphRunner], tokens: list[int], arguments: argparse.Namespace
) -> dict[str, float]:
    bindings = {name: runner.prepare(tokens, arguments.past) for name, runner in runners.items()}
    clock = time.process_time if arguments.processor_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(arguments.turns):
        for name, runner in runners.items():
            run = runner.session.run_with_iobinding
            run(bindings[name])
            for _ in range(BURST):
                start = clock()
                run(bindings[name])
                seconds[name].append(clock() - start)
    return {name: float(np.median(values)) * 1e3 for name, values in seconds.items()}


if __name__ == "__main__":
    main()
