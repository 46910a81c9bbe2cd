"""A report as a picture: block efficiency by kind, and acceptance by position."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specdec.distill.evaluate.figures import Cell, Estimate
from specdec.distill.evaluate.report import PairReport
from specdec.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("svg", "png")
_PANEL = (4.6, 3.4)  # inches
_DPI = 150


def check_matplotlib() -> None:
    """Raise InvalidInputError where there is no matplotlib: before measuring, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InvalidInputError(
            "the plot needs matplotlib; run: pip install 'specdec[distill]'"
        ) from None


def write_plot(report: PairReport, file: Path) -> None:
    """Write a column of two panels for each temperature, as the file's suffix says (``FORMATS``).

    The upper panel has the block efficiency of each kind and draft length with its interval; the
    lower one, for the longest drafts, the acceptance of each position given those before it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    temperatures = report.plan.temperatures
    # The same report gives the same file: no random ids, no date.
    with matplotlib.rc_context({"svg.hashsalt": "specdec", "svg.fonttype": "none"}):
        size = (_PANEL[0] * len(temperatures), _PANEL[1] * 2)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(2, len(temperatures), squeeze=False, sharey="row")
        for column, temperature in enumerate(temperatures):
            _plot_block_efficiency(panels[0, column], report, temperature)
            _plot_positions(panels[1, column], report, temperature)
        panels[0, 0].set_ylabel("block efficiency (tokens per target step)")
        panels[1, 0].set_ylabel(f"accepted, given those before (k = {report.plan.gammas[-1]})")
        panels[0, -1].legend(fontsize="small")
        panels[1, -1].legend(fontsize="small")
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=_DPI, metadata=metadata)


def _plot_block_efficiency(panel: Axes, report: PairReport, temperature: float) -> None:
    cells = [cell for cell in report.cells if cell.temperature == temperature]
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    width = 0.8 / len(report.plan.gammas)
    for place, gamma in enumerate(report.plan.gammas):
        own = [cell for cell in cells if cell.gamma == gamma]
        left = [kinds.index(cell.kind) - 0.4 + width * (place + 0.5) for cell in own]
        panel.bar(
            left,
            [cell.block_efficiency.value for cell in own],
            width,
            yerr=_errors([cell.block_efficiency for cell in own]),
            error_kw={"elinewidth": 0.8},
            label=f"k = {gamma}",
        )
    other = report.published
    panel.axhline(
        other.block_efficiency,
        color="grey",
        linestyle="--",
        linewidth=1,
        label=f"{other.source}, k = {other.gamma},\nanother pair, at most",
    )
    panel.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    panel.set_ylim(bottom=0)
    panel.set_title(f"temperature {temperature:g}")


def _plot_positions(panel: Axes, report: PairReport, temperature: float) -> None:
    longest = report.plan.gammas[-1]
    cells: list[Cell] = [
        cell for cell in report.cells if cell.temperature == temperature and cell.gamma == longest
    ]
    for cell in cells:
        points = [(i + 1, e.value) for i, e in enumerate(cell.acceptance) if e is not None]
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=cell.kind)
    panel.set_xticks(range(1, longest + 1))
    panel.set_xlabel("position of the draft")
    panel.set_ylim(0, 1)


def _errors(estimates: list[Estimate]) -> list[list[float]]:
    low = [e.value - (e.value if e.low is None else e.low) for e in estimates]
    high = [(e.value if e.high is None else e.high) - e.value for e in estimates]
    return [[max(v, 0.0) for v in low], [max(v, 0.0) for v in high]]
