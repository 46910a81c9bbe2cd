"""specdec beside its peers: same checkpoint, same prompts, in turns.

    python -m bench.peers [--peers specdec llama-cpp ...] [--kinds chat ...] [--max-tokens 128]

Environments are made and models converted when they are first needed (``--install`` does no more
than that). Writes peers.json, peers.md and peers.svg into ``--output``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench.peers.checkpoints import checkpoints
from bench.peers.contest import PREFILL, Question, Run, contest
from bench.peers.report import Report, write_report
from bench.peers.roster import OWN, PEERS, Absent, bring_up, prepare
from bench.peers.sanity import judge
from specdec import Generator, Model
from specdec.benchmark.machine import describe_machine
from specdec.distill.evaluate.prompts import KINDS, load_kinds

PREFILL_TOKENS = 512


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write what was measured."""
    options = _parse(arguments)
    begun = time.monotonic()

    def report(text: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {text}", file=sys.stderr, flush=True)

    files = checkpoints(report)
    ready, absent = prepare(options.peers, files, report, make_missing=not options.installed_only)
    if options.install:
        for one in absent:
            report(f"{one.name}: {one.reason}")
        return
    target = Model.load(options.target, threads=options.threads)
    questions = ask(target, options.kinds, options.prompts)
    common = {
        **files.as_json(),
        "threads": options.threads,
        "context": _context(questions, options.max_tokens),
        "specdec_target": options.target,
        "specdec_draft": options.draft,
    }
    runs: list[Run] = []
    with ExitStack() as stack:
        roster = bring_up(
            ready,
            common,
            lambda peer, mode: not options.modes or mode in options.modes,
            stack,
            report,
        )
        roster.absent[:0] = absent

        def on_failure(name: str, reason: str) -> None:
            report(f"{name} failed: {reason}")
            roster.absent.append(Absent(name, reason))

        for run in contest(
            roster.workers,
            questions,
            temperatures=options.temperatures,
            max_tokens=options.max_tokens,
            repeats=options.repeat,
            on_failure=on_failure,
        ):
            runs.append(run)
            if run.kind != PREFILL and run.prompt == 0 and len(run.tokens) > run.first:
                speed = (len(run.tokens) - run.first) / (run.seconds - run.first_seconds)
                report(f"{run.contestant}: {run.kind}, t={run.temperature:g}: {speed:.0f} tokens/s")
        failed = {one.name for one in roster.absent}
        memory = {
            name: worker.peak_bytes for name, worker in roster.workers.items() if name not in failed
        }
    report("asking the target what it thinks of the texts")
    reference = next((name for name in roster.own if name not in failed), None)
    verdicts = judge(runs, questions, reference, target) if reference else []
    write_report(
        Report(
            runs=runs,
            questions=questions,
            own=roster.own,
            memory=memory,
            versions=roster.versions,
            absent=roster.absent,
            verdicts=verdicts,
            machine=describe_machine(target, None),
            threads=options.threads,
            command=shlex.join(["python", "-m", "bench.peers", *(arguments or sys.argv[1:])]),
        ),
        options.output,
    )
    report(f"written to {options.output}")


def ask(target: Model, kinds: list[str], prompts: int) -> list[Question]:
    """Prompts in the chat template as tokens, and one of exactly 512 tokens for the prefill."""
    generator = Generator(target, max_context=16)
    sets = load_kinds(kinds, prompts)
    questions = [
        Question(kind.name, index, tuple(generator.encode(prompt)))
        for kind in sets
        for index, prompt in enumerate(kind.prompts)
    ]
    tokens = [
        token
        for kind in load_kinds(["summarise"])
        for p in kind.prompts
        for token in generator.encode(p)
    ]
    return [*questions, Question(PREFILL, 0, tuple(tokens[:PREFILL_TOKENS]))]


def _context(questions: list[Question], max_tokens: int) -> int:
    longest = max(len(question.tokens) for question in questions) + max_tokens
    return -(-(longest + 64) // 256) * 256


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        metavar="NAME",
        help=f"of {', '.join(PEERS)}; all by default",
    )
    parser.add_argument("--modes", nargs="+", metavar="MODE", help="only these modes of each peer")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["chat", "code"])
    parser.add_argument("--prompts", type=int, default=3, help="of each kind")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default="smollm2-135m", help="specdec's; the same checkpoint")
    parser.add_argument("--draft", default="smollm2-135m-drafter", help="specdec's")
    parser.add_argument("--install", action="store_true", help="only make what is missing")
    parser.add_argument(
        "--installed-only", action="store_true", help="leave out peers that are not installed"
    )
    parser.add_argument("--output", type=Path, default=Path("build/peers"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.repeat < 1 or options.prompts < 1 or options.max_tokens < 2:
        parser.error("--repeat and --prompts must be at least 1, --max-tokens at least 2")
    if OWN not in options.peers:
        parser.error("specdec must take part: its texts are what the others' are compared with")
    return options


if __name__ == "__main__":
    main()
