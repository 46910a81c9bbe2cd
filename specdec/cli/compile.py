"""``specdec compile``: a fixed-shape model in, the same model for one chip out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec.cli.options import ReplaceOption

if TYPE_CHECKING:
    from rich.table import Table

    from specdec.qnn.compile import Report


def compile_command(
    source: Annotated[Path, typer.Argument(help="A model folder that 'specdec quantize' made.")],
    soc: Annotated[
        str,
        typer.Option(help="The chip: sm8650, sm8750, x-elite..., its part number, or simulator."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to make.", show_default="SOURCE-SOC"),
    ] = None,
    share_weights: Annotated[
        bool | None,
        typer.Option(
            "--share-weights/--no-share-weights",
            help="One binary, and one copy of the weights, for all widths.",
            show_default="yes for chips, no for the simulator, which cannot load it",
        ),
    ] = None,
    optimization: Annotated[
        int | None,
        typer.Option(help="0 to 3: how long to look for faster graphs.", show_default="QNN's"),
    ] = None,
    vtcm_mb: Annotated[
        int | None,
        typer.Option(help="Megabytes of on-chip memory to plan with.", show_default="all"),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also print sizes, times and memory traffic.")
    ] = False,
    replace: ReplaceOption = False,
) -> None:
    """Compile a model for one chip, on any x86-64 machine; prints the folder.

    Such a folder loads fast, on that chip alone. A part is compiled at a time, in a process of its
    own. What it took is in the folder's compile.json.
    """
    from specdec.cli.console import StageProgress
    from specdec.qnn.compile import Report, compile_model
    from specdec.qnn.options import QnnOptions
    from specdec.qnn.soc import find_soc

    options = QnnOptions(finalization=optimization, vtcm_mb=vtcm_mb)
    if output is None:
        output = source.with_name(f"{source.name}-{find_soc(soc).name}")
    with StageProgress(output.name) as progress:
        folder = compile_model(
            source,
            output,
            soc,
            share_weights=share_weights,
            options=options,
            replace_folder=replace,
            progress=progress,
        )
    print(folder)
    if report:
        _print_report(Report.read(folder))


def _print_report(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 130
    console.print(_table(report))


def _table(report: Report) -> Table:
    """A line for each graph; what belongs to a part as a whole stands in its first line."""
    from rich import box
    from rich.table import Table

    how = "weights shared" if report.shared_weights else "a binary for each graph"
    qnn = report.versions["qnn"]
    title = f"compiled for {report.soc} by QNN {qnn} in {report.seconds:.1f} s, {how}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("part", "layers", "source\nMB", "binary\nMB", "peak\nMB", "graph"):
        table.add_column(heading, justify="left" if heading in ("part", "graph") else "right")
    for heading in ("seconds", "read\nMB/run", "written\nMB/run", "spilled\nMB/run"):
        table.add_column(heading, justify="right")
    for part in report.parts:
        own = [part["name"], str(part["layers"] or ""), _mb(part["source_bytes"])]
        own += [_mb(part["binary_bytes"]), _mb(part["peak_bytes"])]
        for graph in part["graphs"]:
            traffic = graph["traffic"] or {}
            moved = [_mb(traffic.get(kind)) for kind in ("read", "write", "spill")]
            name = f"{graph['part']}, width {graph['width']}"
            table.add_row(*own, name, f"{graph['seconds']:.1f}", *moved)
            own = [""] * len(own)
    return table


def _mb(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.2f}"
