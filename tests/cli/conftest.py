"""Runs the command line, in this process or as a user would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from specdec.cli import app

Cli = Callable[..., "Outcome"]


class Outcome:
    """What a command did."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    @property
    def error(self) -> str:
        """The one line that a failed command says."""
        lines = self.stderr.splitlines()
        assert self.code in (1, 2), self.stderr
        assert "Traceback" not in self.stderr
        assert self.stdout == ""
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("specdec: error: ")
        return lines[0].removeprefix("specdec: error: ")


@pytest.fixture
def cli(specdec_home: object) -> Cli:
    """Runs a command with its own empty cache folder; unexpected exceptions are raised."""

    def run(*arguments: object, stdin: str | bytes | None = None) -> Outcome:
        runner = CliRunner()
        result = runner.invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run
