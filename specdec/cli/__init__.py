"""The command line: one file for each command, which imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from specdec.cli.bench import bench
from specdec.cli.chat import chat
from specdec.cli.compile import compile_command
from specdec.cli.convert import convert
from specdec.cli.distill import distill
from specdec.cli.doctor import doctor
from specdec.cli.estimate import estimate
from specdec.cli.generate import generate
from specdec.cli.inspect import inspect
from specdec.cli.pull import pull
from specdec.cli.quantize import quantize
from specdec.errors import ModelRunError, SpecdecError

__all__ = ["app", "main"]

INTERRUPTED = 130  # as shells count a process that Ctrl-C ended
BROKEN_PIPE = 141  # the same for a reader that went away


class _Commands(TyperGroup):
    """Turns the errors that a user can act on into one line each, and a lost reader into none."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SpecdecError as error:
            line = " ".join(str(error).split())
            print(f"specdec: error: {line}", file=sys.stderr)
            raise typer.Exit(1 if isinstance(error, ModelRunError) else 2) from error
        except BrokenPipeError as error:
            # What is buffered cannot be written, and the interpreter would try to on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"specdec {version('specdec')}")
        raise typer.Exit


@app.callback()
def _specdec(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version."),
    ] = False,
) -> None:
    """Lossless speculative decoding: the target's own text, sooner."""


app.command()(generate)
app.command()(chat)
app.command()(bench)
app.command()(pull)
app.command()(convert)
app.command()(quantize)
app.command("compile")(compile_command)
app.command()(distill)
app.command()(inspect)
app.command()(doctor)
app.command()(estimate)


def main() -> None:
    """Run the command line of this process, and exit."""
    try:
        app(prog_name="specdec")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
