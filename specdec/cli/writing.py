"""A stream on standard output: the model's text as it comes, and nothing else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from specdec.cli.console import tell

if TYPE_CHECKING:
    from specdec.generator import Chunk, Generator

_DRAFTED, _PLAIN = "\x1b[32m", "\x1b[0m"


class Interrupt:
    """Whether Ctrl-C was pressed."""

    pressed = False


@contextmanager
def cancel_on_interrupt(generator: Generator) -> Iterator[Interrupt]:
    """Ctrl-C ends the stream within a round; pressed again, it interrupts as usual."""
    interrupt = Interrupt()

    def cancel(signum: int, frame: Any) -> None:
        interrupt.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        generator.cancel()

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def write_stream(
    generator: Generator,
    start: Callable[[], Iterator[Chunk]],
    *,
    show_drafted: bool = False,
    newline: bool = False,
) -> tuple[str, str]:
    """Write a stream's text to standard output as it comes; returns it and its finish reason.

    With ``newline``, and on a terminal, a newline follows; also where standard error goes to the
    same file or pipe, as the figures would share the text's last line.
    """
    terminal = sys.stdout.isatty()
    paint = _painter(generator) if show_drafted and terminal else str
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    text, finish = "", "cancelled"
    try:
        with cancel_on_interrupt(generator) as interrupt:
            stream = start()
            while not interrupt.pressed:  # also before the stream, which would forget a cancel
                chunk = next(stream, None)
                if chunk is None:
                    break
                sys.stdout.write(paint(chunk))
                sys.stdout.flush()
                text += chunk
                finish = chunk.finish_reason or finish
            stream.close()  # type: ignore[attr-defined]
    finally:
        if text and (newline or terminal or _outputs_are_one()):
            print(flush=True)
    return text, finish


def _outputs_are_one() -> bool:
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False


def tell_stats(generator: Generator, finish: str, models: str) -> None:
    """The stats line, on standard error."""
    ends = {"cancelled": ["interrupted"], "length": ["stopped at the limit"]}
    tell(" · ".join([*ends.get(finish, []), models, str(generator.stats)]))


def _painter(generator: Generator) -> Callable[[Chunk], str]:
    """Colours the tokens that the drafter guessed right."""

    def paint(chunk: Chunk) -> str:
        drafted = generator.target.tokenizer.decode(
            chunk.tokens[: chunk.drafted], begins_text=False
        )
        # Text that was held back shifts the boundary: then the chunk stays as it is.
        if not drafted or not chunk.startswith(drafted):
            return chunk
        return f"{_DRAFTED}{drafted}{_PLAIN}{chunk[len(drafted) :]}"

    return paint
