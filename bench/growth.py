"""How speed and memory grow with context, draft length and threads.

    python -m bench.growth [--quick] [--output build/growth]

Writes growth.json, growth.md and three pictures: context.svg (tokens/s and peak memory, beside what
the memory's bandwidth allows), lengths.svg (tokens/s by draft length, beside the cost model's
prediction) and threads.svg.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from bench import growth_figures as figures
from bench.growth_plots import draw
from bench.peers.install import peer_home
from bench.peers.process import Worker
from bench.peers.protocol import Request
from specdec import Generator, Model, SamplingParams, Stats
from specdec.benchmark.machine import describe_machine
from specdec.distill.evaluate.prompts import load_kinds

_SETTLE_SECONDS = 0.03  # threads of the step before go to sleep
_DRAFTER = "smollm2-135m-drafter"
_FITTED = (1, 2, 4)  # draft lengths that the prediction is made from


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write what was measured."""
    options = _parse(arguments)
    begun = time.monotonic()

    def report(text: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {text}", file=sys.stderr, flush=True)

    target = Model.load(options.target, threads=options.threads[-1])
    drafter = Model.load(options.draft, threads=options.threads[-1])
    bandwidths = {threads: figures.measured_bandwidth(threads) for threads in options.threads}
    report(f"memory: {', '.join(f'{t} threads {b / 1e9:.1f} GB/s' for t, b in bandwidths.items())}")
    result = {
        "command": shlex.join(["python", "-m", "bench.growth", *(arguments or sys.argv[1:])]),
        "machine": describe_machine(target, drafter),
        "bandwidth": bandwidths,
        "target_bytes": figures.weight_bytes(target.folder.path),
        "draft_bytes": figures.weight_bytes(drafter.folder.path),
        "cache_bytes": figures.cache_bytes(target),
        "context": by_context(options, target, report),
        "length": by_length(options, target, drafter, report),
        "threads": by_threads(options, report),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "growth.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (options.output / "growth.md").write_text(as_markdown(result), encoding="utf-8")
    draw(result, options.output)
    report(f"written to {options.output}")


def by_context(options: argparse.Namespace, target: Model, report: Any) -> list[dict[str, Any]]:
    """Tokens per second and peak memory behind prompts of growing length, in processes of own."""
    encode = Generator(target, max_context=16).encode
    kinds = load_kinds(["summarise", "code", "chat"])
    text = [token for kind in kinds for prompt in kind.prompts for token in encode(prompt)]
    question = encode("What was all that about? Tell me in many words.")
    most = target.config.context
    modes = {"plain": {}, "auto": {"draft": True, "draft_length": "auto"}}
    common = {
        "specdec_target": options.target,
        "specdec_draft": options.draft,
        "threads": options.threads[-1],
        "context": most,
    }
    rows = []
    with ExitStack() as stack:
        workers = {}
        for mode, told in modes.items():
            config = {**common, "mode": {**told, "ignore_eos": True}}
            log = peer_home("specdec") / "logs" / f"growth-{mode}.log"
            workers[mode] = stack.enter_context(
                Worker(Path(sys.executable), "bench.peers.specdec_itself", config, log)
            )
            workers[mode].generate(Request(question, options.max_tokens, 0.0, 0))
        for context in options.contexts:
            size = min(context, most - options.max_tokens - 1)
            request = Request(
                [*text[: size - len(question)], *question], options.max_tokens, 0.0, 0
            )
            speeds: dict[str, list[float]] = {mode: [] for mode in modes}
            answers: dict[str, dict[str, Any]] = {}
            for _ in range(options.repeat):
                for mode, worker in workers.items():
                    time.sleep(_SETTLE_SECONDS)
                    answer = answers[mode] = worker.generate(request)
                    speeds[mode].append(
                        (len(answer["tokens"]) - answer["first"])
                        / (answer["seconds"] - answer["first_seconds"])
                    )
            for mode, worker in workers.items():
                rows.append(
                    {
                        "mode": mode,
                        "context": size,
                        "tokens_per_second": median(speeds[mode]),
                        "slowest": min(speeds[mode]),
                        "fastest": max(speeds[mode]),
                        "prefill_seconds": answers[mode]["figures"]["prefill_seconds"],
                        "peak_bytes": worker.peak_bytes,
                    }
                )
                report(f"context {size}, {mode}: {median(speeds[mode]):.0f} tokens/s")
    return rows


def by_length(
    options: argparse.Namespace, target: Model, drafter: Model, report: Any
) -> dict[str, Any]:
    """Tokens per second at each draft length and at ``auto``, greedy, in turns."""
    (kind,) = load_kinds([options.kind], options.prompts)
    generator = Generator(target, drafter, max_context=2048)
    lengths: list[int | str] = [*options.lengths, "auto"]
    runs = _in_turns(dict.fromkeys(lengths, generator), kind.prompts, options)
    measured = {
        length: figures.LengthRun(length, *_spread(runs[length]), _total(runs[length]))
        for length in options.lengths
    }
    fitted = [measured[length] for length in options.lengths if length in _FITTED]
    predicted = figures.predictions(fitted, options.lengths)
    auto = _spread(runs["auto"])
    for length, run in measured.items():
        report(
            f"k={length}: {run.tokens_per_second:.0f} tokens/s, predicted {predicted[length]:.0f}"
        )
    report(f"auto: {auto[0]:.0f} tokens/s")
    return {
        "kind": kind.name,
        "acceptance": figures.acceptance(fitted),
        "fitted": [run.draft_length for run in fitted],
        "lengths": [
            {
                **{key: value for key, value in asdict(run).items() if key != "stats"},
                "predicted": predicted[length],
                "tokens_per_step": run.stats.block_efficiency,
                "step_seconds": run.stats.seconds["verify"] / run.stats.rounds,
                "draft_seconds": run.stats.seconds["draft"] / run.stats.drafted,
            }
            for length, run in measured.items()
        ],
        "auto": auto,
    }


def by_threads(options: argparse.Namespace, report: Any) -> list[dict[str, Any]]:
    """Tokens per second by the number of threads, greedy, plain and at ``auto``, in turns."""
    (kind,) = load_kinds([options.kind], options.prompts)
    generators: dict[Any, Generator] = {}
    for threads in options.threads:
        target = Model.load(options.target, threads=threads)
        drafter = Model.load(options.draft, threads=threads)
        generators[threads, "plain"] = Generator(target, max_context=2048)
        generators[threads, "auto"] = Generator(target, drafter, max_context=2048)
    runs = _in_turns(generators, kind.prompts, options)
    rows = []
    for threads, mode in generators:
        speed, slowest, fastest = _spread(runs[threads, mode])
        report(f"{threads} threads, {mode}: {speed:.0f} tokens/s")
        rows.append(
            {
                "threads": threads,
                "mode": mode,
                "tokens_per_second": speed,
                "slowest": slowest,
                "fastest": fastest,
            }
        )
    return rows


def _in_turns(
    generators: dict[Any, Generator], prompts: Sequence[str], options: argparse.Namespace
) -> dict[Any, list[list[Stats]]]:
    """Statistics of each setting: a list of texts for each repeat. Whole numbers set k."""
    runs: dict[Any, list[list[Stats]]] = {key: [] for key in generators}
    settings = list(generators)
    params = SamplingParams(max_tokens=options.max_tokens, temperature=0, ignore_eos=True)
    for key, generator in generators.items():
        _write(key, generator, prompts[0], params)
    for repeat in range(options.repeat):
        for stats in runs.values():
            stats.append([])
        for turn, prompt in enumerate(prompts):
            first = (repeat * len(prompts) + turn) % len(settings)
            for key in itertools.chain(settings[first:], settings[:first]):
                time.sleep(_SETTLE_SECONDS)
                runs[key][repeat].append(_write(key, generators[key], prompt, params))
    return runs


def _write(key: Any, generator: Generator, prompt: str, params: SamplingParams) -> Stats:
    if isinstance(key, (int, str)):
        generator.draft_length = key
    return generator.generate(prompt, params).stats


def _spread(repeats: Sequence[Sequence[Stats]]) -> tuple[float, float, float]:
    speeds = [sum(texts, start=Stats()).tokens_per_second for texts in repeats]
    return median(speeds), min(speeds), max(speeds)


def _total(repeats: Sequence[Sequence[Stats]]) -> Stats:
    return sum((stats for texts in repeats for stats in texts), start=Stats())


def as_markdown(result: dict[str, Any]) -> str:
    """The tables of all three."""
    bandwidth = max(result["bandwidth"].values())
    lines = [
        "| context | mode | tokens/s | bandwidth allows | prefill, s | peak memory, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["context"]:
        step = result["target_bytes"] + result["cache_bytes"] * row["context"]
        most = figures.most_tokens_per_second(bandwidth, step)
        lines.append(
            f"| {row['context']} | {row['mode']} | {_range(row)} | {most:.0f} a step "
            f"| {row['prefill_seconds']:.2f} | {row['peak_bytes'] / 1e6:.0f} |"
        )
    lengths = result["length"]
    lines += [
        "",
        "| k | tokens/s | predicted | tokens a step | step, ms | draft, ms |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['draft_length']} | {_range(row)} | {row['predicted']:.0f} "
            f"| {row['tokens_per_step']:.2f} | {1e3 * row['step_seconds']:.2f} "
            f"| {1e3 * row['draft_seconds']:.2f} |"
            for row in lengths["lengths"]
        ),
        f"| auto | {lengths['auto'][0]:.0f} ({lengths['auto'][1]:.0f} to {lengths['auto'][2]:.0f}) "
        "| | | | |",
        "",
        "| threads | mode | tokens/s | memory, GB/s |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['threads']} | {row['mode']} | {_range(row)} "
            f"| {result['bandwidth'][row['threads']] / 1e9:.1f} |"
            for row in result["threads"]
        ),
        "",
        f"The prediction is made from k = {', '.join(map(str, lengths['fitted']))} and an "
        f"acceptance of {lengths['acceptance']:.2f}. Made by `{result['command']}`.",
    ]
    return "\n".join(lines) + "\n"


def _range(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_second']:.0f} ({row['slowest']:.0f} to {row['fastest']:.0f})"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = [128, 256, 512, 1024, 2048, 4096, 8192]
    parser.add_argument("--contexts", nargs="+", type=int, default=whole)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(range(1, 17)))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kind", default="chat", help="of prompts, for lengths and threads")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer points, tokens and repeats")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default=_DRAFTER)
    parser.add_argument("--output", type=Path, default=Path("build/growth"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.quick:
        options.contexts, options.lengths = [128, 1024, 4096, 8192], [1, 2, 3, 4, 6, 8, 12, 16]
        options.prompts, options.max_tokens, options.repeat = 2, 64, 2
    if not set(options.lengths) & set(_FITTED):
        parser.error(f"--lengths must have one of {_FITTED}: the prediction is made from them")
    options.contexts.sort()
    options.threads.sort()
    return options


if __name__ == "__main__":
    main()
