"""The tables that ``specdec bench`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from specdec.stats import percents

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from specdec.benchmark import Difference, Summary

_WIDTH = 130  # where there is no terminal that says how wide it is


def print_report(
    report: dict[str, Any],
    summaries: Sequence[Summary],
    differing: Sequence[Difference] | None,
    *,
    to_stderr: bool = False,
) -> None:
    """Print a table for each kind of prompt, and whether all texts were the target's own.

    ``differing`` is None where texts may differ: sampled ones with another rule than ``coupled``.
    """
    from rich.console import Console

    console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    _print_heading(console, report)
    for kind in dict.fromkeys(summary.kind for summary in summaries):
        console.print(_table(kind, [s for s in summaries if s.kind == kind]))
    _print_texts(console, report, differing)


def _print_heading(console: Console, report: dict[str, Any]) -> None:
    machine, settings = report["machine"], report["settings"]
    target, draft = machine["target"], machine["draft"]
    models = f"target {target['name']} ({target['layout']}, {target['device']})"
    if draft is not None:
        models += f", drafter {draft['name']} ({draft['layout']}, {draft['device']})"
    console.print(models, style="bold")
    console.print(
        f"{machine['cpu']}, {machine['logical_cores']} logical cores, "
        f"threads: {machine['threads']}, onnxruntime {machine['onnxruntime']}"
    )
    if (npu := machine["npu"]) is not None:
        console.print(f"NPU of {npu['chip'] or 'an unknown chip'}, QNN {npu['qnn']}")
    prompts = ", ".join(f"{count} {kind}" for kind, count in settings["prompts"].items())
    console.print(
        f"prompts: {prompts}; up to {settings['max_tokens']} tokens each, repeated "
        f"{settings['repeats']}x; temperature {settings['temperature']:g}, "
        f"acceptance {settings['acceptance']}"
    )


def _table(kind: str, summaries: Sequence[Summary]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=f"prompts: {kind}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in (
        "accepted", "tokens\n/round", "tokens/s\nmedian", "slowest..\nfastest", "x target",
        "first token\nms", "draft/verify\n/other %", "accepted by position %",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    best = max(summaries, key=lambda summary: summary.tokens_per_second)
    for summary in summaries:
        table.add_row(*_cells(summary), style="bold" if summary is best else None)
    return table


def _cells(summary: Summary) -> list[str]:
    drafted = bool(summary.acceptance_by_position)
    shares = (summary.draft_share, summary.verify_share, summary.other_share)
    return [
        summary.contestant,
        f"{summary.acceptance_rate:.1%}" if drafted else "-",
        f"{summary.block_efficiency:.2f}",
        f"{summary.tokens_per_second:.1f}",
        f"{summary.slowest:.1f}..{summary.fastest:.1f}",
        "-" if summary.ratio is None else f"{summary.ratio:.2f}",
        f"{summary.first_token_seconds * 1e3:.0f}",
        percents(shares, "/"),
        percents(summary.acceptance_by_position[:8]) or "-",
    ]


def _print_texts(
    console: Console, report: dict[str, Any], differing: Sequence[Difference] | None
) -> None:
    if differing is None:
        console.print(
            "texts are sampled and not compared (acceptance 'coupled' gives the same text for all)"
        )
        return
    if not differing:
        console.print("texts: identical, token for token, for all contestants", style="green")
        return
    first = differing[0]
    console.print(
        f"texts: {len(differing)} of {len(report['runs'])} differ from the target's own, "
        f"first {first.contestant!r} on {first.kind} prompt {first.prompt} at token "
        f"{first.position}",
        style="red",
    )
    if not report["machine"]["width_invariant"]:
        console.print("(this machine's kernels are not width-invariant: see 'specdec inspect')")
