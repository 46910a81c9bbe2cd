"""Tokens per second of all texts together, by the number that share a step.

    python -m bench.batch_speed [--batches 1 2 4 8] [--lengths auto 2 4] [--kind chat]

Plain decoding and each draft length write the same prompts at each batch size, in turns, within one
run. Tokens are counted behind the prefill; a speed is the median over the turns, with the slowest
and the fastest in brackets. Greedy texts must be the same everywhere, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from specdec import Generator, Model, SamplingParams
from specdec.benchmark.machine import describe_machine
from specdec.distill.evaluate.prompts import load_kinds

_SETTLE_SECONDS = 0.03  # threads of the step before go to sleep
PLAIN = "plain"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    options = _parse(arguments)
    target = Model.load(options.target, threads=options.threads)
    drafter = Model.load(options.draft, threads=options.threads) if options.lengths else None
    (kind,) = load_kinds([options.kind], options.prompts)
    params = SamplingParams(temperature=options.temperature, seed=1, max_tokens=options.tokens)
    acceptance = "coupled" if options.temperature else "block"

    def generator(draft: Model | None) -> Generator:
        return Generator(target, draft, max_context=options.context, acceptance=acceptance)

    # A Generator for each batch size: another size would give up the caches of the one before.
    contestants = {
        (mode, size): generator(None if mode == PLAIN else drafter)
        for mode, size in product([PLAIN, *options.lengths], options.batches)
    }
    speeds: dict[tuple[str, int], list[float]] = {key: [] for key in contestants}
    efficiencies: dict[tuple[str, int], float] = {}
    expected = None
    for turn in range(options.turns + 1):  # the first one warms up
        for (mode, size), writer in contestants.items():
            time.sleep(_SETTLE_SECONDS)
            results = writer.generate_many(
                kind.prompts,
                params,
                batch_size=size,
                draft_length=None if mode == PLAIN else _length(mode),
            )
            for result in results:
                if result.error is not None:
                    raise result.error
            texts = [result.tokens for result in results]
            expected = expected or texts
            if texts != expected:
                sys.exit(f"{mode} at batch size {size} wrote another text: a bug")
            efficiencies[mode, size] = writer.stats.block_efficiency
            if turn > 0:
                speeds[mode, size].append(writer.stats.tokens_per_second)
        print(f"turn {turn} of {options.turns}", file=sys.stderr, flush=True)
    print(as_markdown(speeds, efficiencies))
    if options.json:
        record = {
            "command": shlex.join(["python", "-m", "bench.batch_speed", *sys.argv[1:]]),
            "machine": describe_machine(target, drafter),
            "tokens": sum(map(len, expected or [])),
            "runs": [
                {"mode": mode, "batch": size, "tokens_per_second": values}
                for (mode, size), values in speeds.items()
            ],
        }
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


def as_markdown(
    speeds: dict[tuple[str, int], list[float]], efficiencies: dict[tuple[str, int], float]
) -> str:
    """A row for each mode, a column for each batch size."""
    modes = list(dict.fromkeys(mode for mode, _ in speeds))
    sizes = sorted({size for _, size in speeds})
    alone = median(speeds[modes[0], sizes[0]])
    lines = [
        "| draft length | block efficiency | "
        + " | ".join(f"batch {size}" for size in sizes)
        + " |",
        "|" + "---|" * (len(sizes) + 2),
    ]
    for mode in modes:
        cells = []
        for size in sizes:
            values = speeds[mode, size]
            middle = median(values)
            spread = f"{min(values):.0f} to {max(values):.0f}"
            cells.append(f"{middle:.0f} ({spread}), {middle / alone:.2f} x")
        efficiency = efficiencies[mode, sizes[-1]]
        lines.append(f"| {mode} | {efficiency:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _length(text: str) -> Any:
    return text if text == "auto" else int(text)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m", help="of layout fused")
    parser.add_argument("--draft", default="smollm2-135m-drafter")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument(
        "--lengths", nargs="*", default=["auto", "2", "4"], help="draft lengths; none: plain alone"
    )
    parser.add_argument("--kind", default="chat", help="of prompts, as in specdec bench")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96, help="of each text, at most")
    parser.add_argument("--temperature", type=float, default=0, help="above 0: coupled, seed 1")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
