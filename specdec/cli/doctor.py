"""``specdec doctor``: what is installed here, and whether it works."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from specdec.doctor import Check


def doctor(
    qnn: Annotated[
        bool, typer.Option("--qnn", help="Also look at the NPU: package, provider, a graph on it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check this installation, a line for each thing; exits with 1 where something failed.

    On a device, send the output along with a question.
    """
    from specdec.doctor import FAILED, examine

    checks = examine()
    if qnn:
        from specdec.qnn.doctor import examine_qnn

        checks += examine_qnn()
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        for check in checks:
            print(_line(check))
    if any(check.state == FAILED for check in checks):
        raise typer.Exit(1)


def _line(check: Check) -> str:
    remedy = f"; {check.remedy}" if check.remedy else ""
    return f"{check.state:<6}  {check.name}: {check.found}{remedy}"
