"""From minutes to tokens, by speeds that are measured once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from specdec.distill.options import MINUTES, Options
from specdec.distill.write import WriteOptions, WriteProgress

if TYPE_CHECKING:
    from specdec.distill.run import Run

# Shares of the time: of the text; of export and measuring at the end; of training, which gets what
# is left between these two once text and states are there.
TEXT_SHARE = 0.25
FINISH_SHARE = 0.12
TRAINING_SHARES = (0.3, 0.6)
_WARM_STEPS, _TIMED_STEPS = 2, 6
_LEAST_TRAINING = 2048


def write_options(options: Options, context: int) -> WriteOptions:
    """How a target with a context of ``context`` tokens writes."""
    values = WriteOptions(
        length=min(options.length, context),
        conversations=options.conversations,
        prompts=options.prompts,
        chat_template=options.chat_template,
        seed=options.seed,
        threads=options.threads,
    )
    values.check()
    return values


def with_tokens(options: WriteOptions, tokens: int) -> WriteOptions:
    """The same until so many tokens are there."""
    return replace(options, tokens=tokens)


def text_tokens(write: Callable[[int], WriteProgress | None], options: Options) -> int:
    """How much text fits the time, by the speed of the first shard, which stays."""
    started = time.monotonic()
    found = write(1)
    seconds = max(time.monotonic() - started, 1e-3)
    first = found.tokens if found else 1
    budget = 60 * (options.minutes or MINUTES) * TEXT_SHARE
    return max(first, round(first * budget / seconds))


def training_speed(run: Run) -> float:
    """Tokens a second of one process, on the run's own text; the weights are thrown away."""
    folder = run.work / ".measure"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        trainer = run.trainer(folder, run.student(), measuring=True)
        marks: list[tuple[float, int]] = []

        def stop(position: object) -> bool:
            if trainer.position.step in (_WARM_STEPS, _WARM_STEPS + _TIMED_STEPS):
                marks.append((time.monotonic(), trainer.position.tokens))
            return len(marks) > 1

        trainer.run(stop=stop)
        (start, before), (end, after) = marks[0], marks[-1]
        return (after - before) / max(end - start, 1e-6)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def training_tokens(speed: float, options: Options, spent: float) -> int:
    """What fits the time that is left after ``spent`` seconds, at ``speed`` tokens a second."""
    budget = 60 * (options.minutes or MINUTES)
    low, high = (share * budget for share in TRAINING_SHARES)
    seconds = min(high, max(low, budget * (1 - FINISH_SHARE) - spent))
    return max(_LEAST_TRAINING, round(seconds * speed))
