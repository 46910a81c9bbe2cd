"""``specdec bench``: is drafting worth it here, and with which draft length?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec.cli.options import (
    DEFAULT_MODEL,
    AcceptanceOption,
    BackendOption,
    DraftBackendOption,
    DraftOption,
    MaxContextOption,
    ModelOption,
    NoLookupOption,
    NpuOption,
    ThreadsOption,
)
from specdec.errors import InvalidInputError

if TYPE_CHECKING:
    from specdec.benchmark import Contestant, Run
    from specdec.benchmark.prompts import PromptSet
    from specdec.cli.models import Pair
    from specdec.sampling import SamplingParams

UNTRUNCATED: dict[str, Any] = {
    "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip


def bench(
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            "-p",
            help="A kind (chat, rewrite, code) or a file of prompts; may be repeated.",
            show_default="every kind",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Most tokens of one text.")
    ] = 128,
    k: Annotated[
        str | None,
        typer.Option(
            "--k",
            help="Draft lengths: '1..8', '4' or '2,4,6'.",
            show_default="1..8, or what one step of the target can check",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Times that everything is run.")] = 3,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="0 is greedy; others are untruncated.")
    ] = 0.0,
    acceptance: AcceptanceOption = "block",
    no_lookup: NoLookupOption = False,
    max_context: MaxContextOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = "auto",
    draft_backend: DraftBackendOption = "auto",
    npu_option: NpuOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write all figures here; '-' prints them.")
    ] = None,
) -> None:
    """Compare the target alone, draft lengths, 'auto' and n-gram drafts on the same prompts.

    All of them run in turns, so that a busy machine disturbs them alike.
    """
    if repeat < 1:
        raise InvalidInputError(f"--repeat is {repeat}; it must be at least 1")
    lengths = parse_draft_lengths(k or "1..8")
    if json_file is not None:
        _check_writable(json_file)

    from specdec.benchmark import contestants, differences, load_prompts, summarise
    from specdec.cli.bench_table import print_report
    from specdec.cli.models import load_pair
    from specdec.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, **UNTRUNCATED)
    kinds = load_prompts(prompts or [])
    pair = load_pair(
        model, draft, threads, backend=backend, draft_backend=draft_backend, npu_options=npu_option
    )
    plan = pair.target.plan
    if k is None and plan is not None:
        lengths = [length for length in lengths if length < plan.widths[-1]]
    entrants = contestants(pair.draft, lengths)
    runs = _run(pair, entrants, kinds, params, repeat, acceptance, max_context, not no_lookup)
    same_text = temperature == 0 or acceptance == "coupled"
    differing = differences(runs) if same_text else None
    summaries = summarise(runs)
    report = {
        "machine": _machine(pair),
        "settings": {
            "acceptance": acceptance if temperature else "greedy",
            "temperature": temperature,
            "max_tokens": max_tokens,
            "lookup": not no_lookup,
            "repeats": repeat,
            "npu_options": npu_option or [],
            "prompts": {kind.name: len(kind.prompts) for kind in kinds},
        },
        "texts_identical": None if differing is None else not differing,
        "differences": [asdict(difference) for difference in differing or []],
        "summaries": [asdict(summary) for summary in summaries],
        "runs": [_plain(run) for run in runs],
    }
    if json_file is not None:
        _write_json(report, json_file)
    print_report(report, summaries, differing, to_stderr=str(json_file) == "-")


def parse_draft_lengths(text: str) -> list[int]:
    """``"1..8"``, ``"4"``, ``"2,4..6"``: ascending, each once."""
    lengths: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("..")
            low, high = int(first), int(last or first)
            _check_range(text, low, high)
            lengths.update(range(low, high + 1))
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"--k is {text!r}; give draft lengths as '1..8', '4' or '2,4,6'"
        ) from None
    return sorted(lengths)


def _check_range(text: str, low: int, high: int) -> None:
    from specdec import _core

    most = _core.MAX_DRAFT_LENGTH
    if not 1 <= low <= high <= most:
        raise InvalidInputError(f"--k is {text!r}; draft lengths go from 1 to {most}")


def _run(
    pair: Pair,
    entrants: list[Contestant],
    kinds: list[PromptSet],
    params: SamplingParams,
    repeats: int,
    acceptance: str,
    max_context: int | None,
    lookup: bool,
) -> list[Run]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from specdec.benchmark import contest
    from specdec.cli.console import error_console

    runs: list[Run] = []
    total = repeats * len(entrants) * sum(len(kind.prompts) for kind in kinds)
    bars = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=error_console(),
        transient=True,
        auto_refresh=False,  # its thread would take part in what is measured
        disable=not sys.stderr.isatty(),
    )
    with bars:
        task = bars.add_task("", total=total)
        for run in contest(
            pair.target,
            entrants,
            kinds,
            params,
            repeats=repeats,
            acceptance=acceptance,
            max_context=max_context,
            lookup=lookup,
        ):
            runs.append(run)
            bars.advance(task)
            bars.refresh()
    return runs


def _machine(pair: Pair) -> dict[str, Any]:
    from specdec.benchmark import describe_machine

    return describe_machine(pair.target, pair.draft)


def _plain(run: Run) -> dict[str, Any]:
    return {
        "contestant": run.contestant,
        "kind": run.kind,
        "prompt": run.prompt,
        "repeat": run.repeat,
        "first_token_seconds": run.first_token_seconds,
        "decode_seconds": run.decode_seconds,
        "stats": asdict(run.stats),
    }


def _write_json(report: dict[str, Any], file: Path) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    if str(file) == "-":
        sys.stdout.write(text)
    else:
        file.write_text(text, encoding="utf-8")


def _check_writable(file: Path) -> None:
    """Before minutes of measuring rather than after."""
    if str(file) == "-":
        return
    existed = file.exists()
    try:
        file.open("a").close()
        if not existed:
            file.unlink()
    except OSError as error:
        raise InvalidInputError(f"{file}: cannot be written ({error.strerror})") from error
