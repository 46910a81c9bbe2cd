"""Pictures of what ``bench.growth`` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.growth_figures import most_tokens_per_second

_COLOURS = {"plain": "#7a7a7a", "auto": "#1b6ca8"}
_MODEL, _BOUND = "#d1751f", "#b5b5b5"


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write context.svg, lengths.svg and threads.svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "specdec"  # the same picture for the same figures
    _draw_context(result, folder / "context.svg")
    _draw_lengths(result, folder / "lengths.svg")
    _draw_threads(result, folder / "threads.svg")


def _draw_context(result: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    bandwidth = max(result["bandwidth"].values())
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for mode, colour in _COLOURS.items():
        rows = [row for row in result["context"] if row["mode"] == mode]
        contexts = [row["context"] for row in rows]
        _with_spread(speed, contexts, rows, colour, mode)
        peaks = [row["peak_bytes"] / 1e6 for row in rows]
        memory.plot(contexts, peaks, "o-", color=colour, label=mode)
    contexts = sorted({row["context"] for row in result["context"]})
    steps = [result["target_bytes"] + result["cache_bytes"] * context for context in contexts]
    most = [most_tokens_per_second(bandwidth, step) for step in steps]
    speed.plot(contexts, most, "--", color=_BOUND, label="memory bound of plain decoding")
    least = [step / 1e6 for step in steps]
    memory.plot(contexts, least, "--", color=_BOUND, label="weights and K/V")
    _finish(speed, "tokens of context", "tokens per second", logarithmic=True)
    _finish(memory, "tokens of context", "peak memory, MB", logarithmic=True)
    _save(figure, path)


def _draw_lengths(result: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    lengths = result["length"]
    rows = lengths["lengths"]
    ks = [row["draft_length"] for row in rows]
    figure, axis = pyplot.subplots(figsize=(6.4, 3.8))
    _with_spread(axis, ks, rows, _COLOURS["auto"], "measured")
    fitted = ", ".join(map(str, lengths["fitted"]))
    predicted = [row["predicted"] for row in rows]
    axis.plot(ks, predicted, "--", color=_MODEL, label=f"cost model, from k = {fitted}")
    axis.axhline(lengths["auto"][0], color=_COLOURS["plain"], linewidth=1, label="auto")
    bandwidth = max(result["bandwidth"].values())
    most = [
        most_tokens_per_second(
            bandwidth,
            result["target_bytes"],
            row["tokens_per_step"],
            row["draft_length"] * result["draft_bytes"],
        )
        for row in rows
    ]
    axis.plot(ks, most, ":", color=_BOUND, label="memory bound")
    _finish(axis, "draft length k", "tokens per second")
    _save(figure, path)


def _draw_threads(result: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.4))
    for mode, colour in _COLOURS.items():
        rows = [row for row in result["threads"] if row["mode"] == mode]
        _with_spread(axis, [row["threads"] for row in rows], rows, colour, mode)
    threads = sorted({row["threads"] for row in result["threads"]})
    most = [most_tokens_per_second(_of(result, n), result["target_bytes"]) for n in threads]
    axis.plot(threads, most, "--", color=_BOUND, label="memory bound of plain decoding")
    axis.set_xticks(threads)
    _finish(axis, "threads", "tokens per second")
    _save(figure, path)


def _of(result: dict[str, Any], threads: int) -> float:
    by_threads = {int(number): value for number, value in result["bandwidth"].items()}
    return float(by_threads[threads])


def _with_spread(axis: Any, x: list[int], rows: list[Any], colour: str, label: str) -> None:
    speeds = [row["tokens_per_second"] for row in rows]
    below = [row["tokens_per_second"] - row["slowest"] for row in rows]
    above = [row["fastest"] - row["tokens_per_second"] for row in rows]
    axis.errorbar(x, speeds, yerr=[below, above], fmt="o-", color=colour, label=label, capsize=2)


def _finish(axis: Any, x: str, y: str, *, logarithmic: bool = False) -> None:
    if logarithmic:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
