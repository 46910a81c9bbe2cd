"""A run's log as a picture, and what more tokens would bring."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specdec.distill.evaluate.plot import FORMATS, check_matplotlib
from specdec.distill.progress import read_log
from specdec.distill.train import LOG
from specdec.errors import InvalidInputError

_SIZE = (9.6, 3.6)  # inches
_DPI = 150
_EXPONENTS = np.linspace(0.05, 2.0, 196)
_FEWEST = 4  # points that three parameters are fitted to


@dataclass(frozen=True)
class Curve:
    """``value(tokens) = limit - scale * tokens^-exponent``, least squares."""

    limit: float
    scale: float
    exponent: float
    error: float
    """Root mean square of what is left."""

    def at(self, tokens: float) -> float:
        """The value after so many tokens."""
        return float(self.limit - self.scale * tokens**-self.exponent)


def fit(tokens: Sequence[float], values: Sequence[float]) -> Curve | None:
    """A saturating power law through points with tokens > 0; None for fewer than four.

    For each exponent the other two follow by linear least squares; the best exponent wins.
    """
    points = [(x, y) for x, y in zip(tokens, values, strict=True) if x > 0]
    if len(points) < _FEWEST:
        return None
    x, y = np.array(points).T
    best: Curve | None = None
    for exponent in _EXPONENTS:
        columns = np.stack([np.ones_like(x), -(x**-exponent)], 1)
        (limit, scale), *_ = np.linalg.lstsq(columns, y)
        error = float(np.sqrt(np.mean((columns @ [limit, scale] - y) ** 2)))
        if best is None or error < best.error:
            best = Curve(float(limit), float(scale), float(exponent), error)
    return best


def plot_run(work: Path, output: Path | None = None, *, plot_format: str = "svg") -> Path:
    """Plot a run's loss and held-out acceptance against the tokens seen.

    Args:
        work: The run's folder (``OUTPUT.work``), or its ``train``.
        output: The picture; None: ``training.svg`` (or ``.png``) in ``work``.
        plot_format: ``"svg"`` or ``"png"``, where ``output`` is not given.

    Returns:
        The picture.

    Raises:
        InvalidInputError: There is no log, the format is unknown, or the file cannot be written.
    """
    if plot_format not in FORMATS:
        raise InvalidInputError(f"the plot's format is {plot_format!r}; it must be svg or png")
    check_matplotlib()
    logs = [path for path in (work / "train" / LOG, work / LOG) if path.is_file()]
    if not logs:
        raise InvalidInputError(f"{work}: has no training log; name a run's folder")
    entries = read_log(logs[0])
    file = output or work / f"training.{plot_format}"
    if file.suffix[1:] not in FORMATS:
        raise InvalidInputError(f"{file}: name a file that ends in .svg or .png")
    partial = file.with_name(f".{file.stem}.{secrets.token_hex(4)}{file.suffix}")
    try:
        _write(entries, partial)
        os.replace(partial, file)
    except OSError as error:
        raise InvalidInputError(f"{file}: cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)
    return file


def held_out_curve(entries: Sequence[dict[str, Any]]) -> tuple[list[int], list[list[float]]]:
    """Tokens seen, and the held-out acceptance by draft, of a log's measurements."""
    measured = [entry for entry in entries if "held_out" in entry]
    return (
        [entry["tokens"] for entry in measured],
        [entry["held_out"]["acceptance"] for entry in measured],
    )


def _write(entries: Sequence[dict[str, Any]], file: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    # The same log gives the same file: no random ids, no date.
    with matplotlib.rc_context({"svg.hashsalt": "specdec", "svg.fonttype": "none"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        left, right = figure.subplots(1, 2)
        steps = [entry for entry in entries if "loss" in entry]
        tokens = [entry["tokens"] for entry in steps]
        left.plot(tokens, [entry["loss"] for entry in steps], linewidth=0.8)
        left.set_ylabel("loss on the training text")
        right.plot(
            tokens,
            [entry["acceptance"] for entry in steps],
            color="grey",
            linewidth=0.6,
            label="training text",
        )
        seen, acceptance = held_out_curve(entries)
        for draft, values in enumerate(zip(*acceptance, strict=True), start=1):
            right.plot(seen, values, marker="o", markersize=3, label=f"held out, draft {draft}")
        curve = fit(seen, [values[0] for values in acceptance])
        if curve is not None:
            more = np.geomspace(min(t for t in seen if t > 0), 4 * max(seen), 100)
            right.plot(
                more,
                [curve.at(t) for t in more],
                color="black",
                linestyle="--",
                linewidth=0.8,
                label=f"{curve.limit:.3f} - {curve.scale:.3g} t^-{curve.exponent:.2f}",
            )
        right.set_ylabel("acceptance, sum of min(p, q)")
        right.legend(fontsize="x-small")
        for panel in (left, right):
            panel.set_xlabel("tokens seen")
        figure.savefig(file, dpi=_DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
