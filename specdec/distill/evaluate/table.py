"""A report as tables: on the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specdec.distill.evaluate.figures import Cell, Estimate
from specdec.distill.evaluate.report import PairReport
from specdec.stats import percents

if TYPE_CHECKING:
    from rich.console import Console

HEADINGS = (
    "kind", "k", "prompts", "steps", "block efficiency", "MBSU", "accepted if reached, %",
    "accepted, %", "draft / step", "draft / plain step",
)  # fmt: skip
_TEXT_COLUMNS = (0, 6, 7)
_WIDTH = 190  # where there is no terminal that says how wide it is


def print_report(report: PairReport, console: Console | None = None) -> None:
    """Print a table for each temperature, and whether greedy texts were the target's own."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    for line in heading(report):
        console.print(line)
    for temperature in report.plan.temperatures:
        title = f"temperature {temperature:g}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, name in enumerate(HEADINGS):
            table.add_column(name, justify="left" if index in _TEXT_COLUMNS else "right")
        for row in rows(report, temperature):
            table.add_row(*row)
        console.print(table)
    identical = report.texts is None or report.texts.identical
    for line in notes(report):
        console.print(line)
    console.print(texts(report), style=None if identical else "red")


def markdown(report: PairReport) -> str:
    """The same as a Markdown document."""
    lines = ["# Acceptance", "", *(f"{line}  " for line in heading(report)), ""]
    for temperature in report.plan.temperatures:
        lines += [f"## Temperature {temperature:g}", "", _line(HEADINGS)]
        lines.append(_line(["---"] * len(HEADINGS)))
        lines += [_line(row) for row in rows(report, temperature)]
        lines.append("")
    lines += [line for note in [*notes(report), texts(report)] for line in (note, "")]
    return "\n".join(lines)


def heading(report: PairReport) -> list[str]:
    """What was measured, on what."""
    machine, plan, costs = report.machine, report.plan, report.cost_ratio
    target, draft = machine["target"], machine["draft"]
    models = f"target {target['name']} ({target['layout']}, {target['device']}), "
    models += (
        "drafts from the text so far"
        if draft is None
        else f"drafter {draft['name']} ({draft['layout']}, {draft['device']})"
    )
    prompts = ", ".join(f"{count} {kind}" for kind, count in report.prompts.items())
    return [
        models,
        f"c = {costs.step_weights:.3f} (weights that a step of the drafter reads over the "
        f"target's; {costs.parameters:.3f} by all parameters)",
        f"{machine['cpu']}, {machine['logical_cores']} logical cores, threads: "
        f"{machine['threads']}, onnxruntime {machine['onnxruntime']}",
        f"prompts: {prompts}; up to {plan.max_tokens} tokens each; acceptance "
        f"{plan.acceptance}, candidates for each position {plan.width}, seed {plan.seed}",
    ]


def rows(report: PairReport, temperature: float) -> list[list[str]]:
    """The cells of one temperature; the last row is what others published."""
    cells = [cell for cell in report.cells if cell.temperature == temperature]
    other = report.published
    published = [
        f"{other.source} *", str(other.gamma), "", "", f"up to {other.block_efficiency:g}",
        "", "", "", "", "",
    ]  # fmt: skip
    return [*(_row(cell) for cell in cells), published]


def notes(report: PairReport) -> list[str]:
    """What the figures mean."""
    other = report.published
    return [
        "Brackets hold 95 % intervals (bootstrap over prompts). A step is one of the target's; "
        "block efficiency is tokens per step, MBSU is block efficiency / (1 + k c). Acceptance is "
        "by position of the draft. The last columns are measured seconds: a draft over the step "
        "that checks it, and over a step without drafts.",
        f"* {other.pair}: {other.note}. It reports up to {other.speed_up:g} times the speed of "
        f"plain decoding, at c = {other.cost_ratio:g} by all parameters.",
    ]


def texts(report: PairReport) -> str:
    """Whether greedy texts were the target's own."""
    found = report.texts
    if found is None:
        return "Texts were sampled and not compared (temperature 0 compares them)."
    if found.identical:
        return (
            f"Texts: all {found.compared} greedy ones are identical, token for token, to what the "
            "target writes alone."
        )
    first = found.differing[0]
    line = (
        f"Texts: {len(found.differing)} of {found.compared} greedy ones differ from the target's "
        f"own, first {first.kind} prompt {first.prompt} at k = {first.gamma}, token "
        f"{first.position}."
    )
    if not report.machine["width_invariant"]:
        line += " This machine's kernels are not width-invariant: see 'specdec inspect'."
    return line


def _row(cell: Cell) -> list[str]:
    return [
        cell.kind,
        str(cell.gamma),
        str(cell.prompts),
        str(cell.rounds),
        _interval(cell.block_efficiency),
        _interval(cell.mbsu),
        percents(None if e is None else e.value for e in cell.acceptance),
        percents(None if e is None else e.value for e in cell.unconditional),
        _interval(cell.step_cost),
        _interval(cell.plain_step_cost),
    ]


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}..{estimate.high:.2f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
