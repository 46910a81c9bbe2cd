"""What was measured as JSON, as a table and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers.contest import PREFILL, Question, Run
from bench.peers.roster import Absent
from bench.peers.sanity import Verdict
from bench.peers.summary import ALL_KINDS, Summary, prefill_speeds, restless, summarise


@dataclass(frozen=True)
class Report:
    """Everything that a run found."""

    runs: Sequence[Run]
    questions: Sequence[Question]
    own: Sequence[str]
    memory: dict[str, int]
    """Peak bytes by contestant."""
    versions: dict[str, dict[str, str]]
    absent: Sequence[Absent]
    verdicts: Sequence[Verdict]
    machine: dict[str, Any]
    threads: int
    command: str

    @property
    def summaries(self) -> list[Summary]:
        return summarise(self.runs, self.own)

    @property
    def prefill(self) -> dict[str, list[float]]:
        """Prompt tokens per second by contestant."""
        lengths = {q.index: len(q.tokens) for q in self.questions if q.kind == PREFILL}
        return prefill_speeds(self.runs, lengths)


def write_report(report: Report, folder: Path) -> None:
    """Write peers.json, peers.md and peers.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(as_json(report), indent=1), encoding="utf-8")
    (folder / "peers.md").write_text(as_markdown(report), encoding="utf-8")
    draw(report, folder / "peers.svg")


def as_json(report: Report) -> dict[str, Any]:
    """All figures, and the counts of every single text (without its tokens)."""
    return {
        "command": report.command,
        "machine": report.machine,
        "threads": report.threads,
        "versions": report.versions,
        "absent": [asdict(one) for one in report.absent],
        "summaries": [asdict(summary) for summary in report.summaries],
        "prefill_tokens_per_second": report.prefill,
        "peak_bytes": report.memory,
        "verdicts": [
            {**asdict(verdict), "is_sane": verdict.is_sane} for verdict in report.verdicts
        ],
        "runs": [{**asdict(run), "tokens": len(run.tokens)} for run in report.runs],
    }


def as_markdown(report: Report) -> str:
    """Tables by temperature, then what must be known to read them."""
    parts = []
    for temperature in dict.fromkeys(s.temperature for s in report.summaries):
        warm = [s for s in report.summaries if s.temperature == temperature]
        name = "Greedy" if temperature == 0 else f"Temperature {temperature:g}"
        parts.append(f"### {name}\n\n{_speed_table(report, warm)}")
    parts.append(_notes(report))
    return "\n\n".join(parts) + "\n"


def _speed_table(report: Report, summaries: Sequence[Summary]) -> str:
    kinds = list(dict.fromkeys(s.kind for s in summaries))
    order = list(report.versions)
    names = sorted({s.contestant for s in summaries}, key=order.index)
    cells = {(s.contestant, s.kind): s for s in summaries}
    prefill = report.prefill
    head = [
        "",
        *(f"{kind}, tokens/s" for kind in kinds),
        "over the best peer",
        "tokens a step",
        "first token, ms",
        "prefill of 512, tokens/s",
        "peak memory, MB",
    ]
    rows = [head, ["---"] * len(head)]
    for name in names:
        mine = [cells[name, kind] for kind in kinds if (name, kind) in cells]
        last = mine[-1]
        ratio, steps = last.over_best_peer, last.accepted_per_round
        rows.append(
            [
                f"**{name}**" if name in report.own else name,
                *(_spread(cells.get((name, kind))) for kind in kinds),
                f"{ratio:.2f} x" if ratio is not None else "",
                f"{steps:.2f}" if steps is not None else "",
                f"{1e3 * last.first_token_seconds:.0f}",
                f"{median(prefill[name]):.0f}" if name in prefill else "",
                f"{report.memory[name] / 1e6:.0f}" if name in report.memory else "",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _spread(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return f"{summary.tokens_per_second:.0f} ({summary.slowest:.0f} to {summary.fastest:.0f})"


def _notes(report: Report) -> str:
    repeats = 1 + max((run.repeat for run in report.runs), default=0)
    prompts = sum(question.kind != PREFILL for question in report.questions)
    lines = [
        f"Medians of {repeats} repeats, the slowest and the fastest in brackets; {prompts} "
        f"prompts; {report.threads} threads on {report.machine['cpu']}. Tokens/s count the tokens "
        "behind the first over the time behind it.",
        f"Made by `{report.command}`.",
    ]
    lines += [f"Did not take part: {one.name}: {one.reason}" for one in report.absent]
    odd = [verdict for verdict in report.verdicts if not verdict.is_sane]
    lines.append(
        "**Texts that the target finds unlikely: "
        + "; ".join(
            f"{v.contestant} (temperature {v.temperature:g}): {v.nats:.2f} nats a token against "
            f"{v.reference_nats:.2f}"
            for v in odd
        )
        + ".**"
        if odd
        else "The target finds all contestants' texts about as likely as its own."
    )
    for temperature in dict.fromkeys(verdict.temperature for verdict in report.verdicts):
        nats = [
            f"{verdict.contestant} {verdict.nats:.2f}"
            for verdict in report.verdicts
            if verdict.temperature == temperature
        ]
        lines.append(
            "Nats a token of the texts under the target at temperature 1, written at temperature "
            f"{temperature:g}: {'; '.join(nats)}."
        )
    if noisy := restless(report.runs):
        worst = max(run.others for run in noisy)
        lines.append(
            f"In {len(noisy)} of {len(report.runs)} runs the waiting contestants took more than "
            f"2 % of a core (at most {worst:.0%})."
        )
    versions: dict[str, str] = {}
    for name, said in report.versions.items():
        versions.setdefault(name.partition(",")[0], ", ".join(f"{k} {v}" for k, v in said.items()))
    lines.append("Versions: " + "; ".join(f"{k}: {v}" for k, v in versions.items()) + ".")
    return "\n\n".join(lines)


def draw(report: Report, path: Path) -> None:
    """Bars of tokens per second with the spread over the repeats, a panel for each temperature."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "specdec"  # the same picture for the same figures
    from matplotlib import pyplot

    summaries = report.summaries
    temperatures = list(dict.fromkeys(s.temperature for s in summaries))
    if not temperatures:
        return
    whole = ALL_KINDS if any(s.kind == ALL_KINDS for s in summaries) else summaries[0].kind
    most = max(sum(s.temperature == t and s.kind == whole for s in summaries) for t in temperatures)
    figure, axes = pyplot.subplots(
        1, len(temperatures), figsize=(6.2 * len(temperatures), 0.9 + 0.3 * most), squeeze=False
    )
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        shown = [s for s in summaries if s.temperature == temperature and s.kind == whole]
        shown.sort(key=lambda s: s.tokens_per_second)
        speeds = [s.tokens_per_second for s in shown]
        spread = [
            [s.tokens_per_second - s.slowest for s in shown],
            [s.fastest - s.tokens_per_second for s in shown],
        ]
        colours = ["#1b6ca8" if s.contestant in report.own else "#b5b5b5" for s in shown]
        axis.barh([s.contestant for s in shown], speeds, xerr=spread, color=colours, height=0.7)
        axis.set_xlabel("tokens per second")
        axis.set_title("greedy" if temperature == 0 else f"temperature {temperature:g}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
