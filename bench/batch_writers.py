"""Tokens per second of the engines that write training text, for one target.

    python bench/batch_writers.py TARGET.gguf [--steps 8] [--rounds 2]

Every row stands at a place of its own, 30 to 370 tokens into its conversation. The engines take
turns, so that what else the machine does falls on all of them; besides the wall clock the processor
time of a step is taken, which other work disturbs less. With several threads it counts those that
wait for work, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from specdec.convert.source import open_source
from specdec.distill.write.engine import BatchWriter, open_writer
from specdec.distill.write.options import WriteOptions

ENGINES = ("torch", "onnx fused", "onnx nbits8", "onnx split16-nbits8", "onnx int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    source = open_source(args.target, None)
    wall: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    used: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        # One engine at a time in memory: the KV caches of four would not fit a small machine.
        for name in args.engines:
            engine, _, layout = name.partition(" ")
            options = WriteOptions(
                rows=max(args.rows), engine=engine, layout=layout or "int8", threads=args.threads
            )
            with tempfile.TemporaryDirectory() as scratch:
                writer = open_writer(source, options, Path(scratch))
            for rows in args.rows:
                steps, cpu = _measure(writer, rows, args.steps, source.config.vocab)
                wall[name, rows] += steps
                used[name, rows].append(cpu)
                print(f"{name}, {rows} rows: {rows / cpu:.0f}/s of processor", file=sys.stderr)
    print("| engine | rows | ms a step | tokens/s | tokens per processor second |")
    print("|---|---|---|---|---|")
    for (name, rows), steps in wall.items():
        median = float(np.median(steps))
        cpu = float(np.median(used[name, rows]))
        print(f"| {name} | {rows} | {1e3 * median:.0f} | {rows / median:.0f} | {rows / cpu:.0f} |")


def _measure(writer: BatchWriter, rows: int, count: int, vocab: int) -> tuple[list[float], float]:
    """The wall seconds of each step, and the processor seconds of one."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, vocab, rows)
    lengths = random.integers(30, 370, rows).astype(np.int32)
    writer.step(tokens, lengths)
    steps: list[float] = []
    processor = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        writer.step(tokens, lengths)
        steps.append(time.perf_counter() - start)
    return steps, (time.process_time() - processor) / len(steps)


if __name__ == "__main__":
    main()
