"""What people are told beside the result, all of it on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


def error_console() -> Console:
    """Standard error; colours only where it is a terminal, and lines as long as they are."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def tell(message: str) -> None:
    """One dim line on standard error."""
    error_console().print(message, style="dim")


class StageProgress:
    """Shows what ``pull`` and ``convert`` report: bars on a terminal, else a line for each stage.

    Shows nothing at all until something is reported.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._stage = ""
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, fraction: float) -> None:
        """Take a report: the stage, and the fraction of it that is done."""
        if stage != self._stage:
            self._begin(stage)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=fraction)

    def _begin(self, stage: str) -> None:
        self._stage = stage
        if not sys.stderr.isatty():
            print(f"specdec: {self._subject}: {stage}", file=sys.stderr, flush=True)
            return
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if self._task is not None:
            self._bars.update(self._task, completed=1.0)
        self._task = self._bars.add_task(f"{self._subject}: {stage}", total=1.0)


def _new_bars() -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=error_console(),
        transient=True,
    )
