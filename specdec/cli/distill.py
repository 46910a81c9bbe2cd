"""``specdec distill``: a target in, a drafter for it out; or how well a pair does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from specdec.distill.options import RUN, Options, option_names

_EVALUATION = "Evaluating (--evaluate)"

# How options that the command line cannot hold as they are come from it.
_TYPED = {
    "target_layers": str | None,
    "prompts": list[str] | None,
    "initial": Path | None,
    "text": Path | None,
}


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of ``Options`` for its ``options``, in that place."""
    signature = inspect.signature(command, eval_str=True)
    parameters = list(signature.parameters.values())
    place = next(i for i, one in enumerate(parameters) if one.name == "replace")
    parameters[place:] = [*_options(), *parameters[place:-1]]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _options() -> list[inspect.Parameter]:
    types = get_type_hints(Options) | _TYPED
    found = []
    for option in fields(Options):
        about = option.metadata
        if not about:
            continue
        flag = (f"--{option.name}",) if types[option.name] is bool else ()
        declared = typer.Option(
            *flag,
            help=about["help"],
            rich_help_panel=about["part"],
            show_default=about["otherwise"] or True,
        )
        found.append(
            inspect.Parameter(
                option.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if about["otherwise"] else option.default,
                annotation=Annotated[types[option.name], declared],
            )
        )
    return found


@_with_options
def distill(
    target: Annotated[
        str | None,
        typer.Argument(help="A GGUF file, a Hugging Face folder, or a name that pull knows."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The drafter's model folder to make."),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="PAIR",
            help="Measure TARGET,DRAFTER, or a drafter that names its target, and make nothing.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="WORK", help="Plot the log of a run's folder, and make nothing."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Replace a model folder or files that are there.",
            rich_help_panel=RUN,
        ),
    ] = False,
    prompts_per_kind: Annotated[
        int | None,
        typer.Option(
            help="Prompts of each kind to measure with.",
            show_default="2 for a new drafter, 10 with --evaluate",
            rich_help_panel=_EVALUATION,
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Kinds of prompts, or files of them.",
            show_default="all",
            rich_help_panel=_EVALUATION,
        ),
    ] = None,
    gammas: Annotated[
        str, typer.Option(help="Draft lengths.", rich_help_panel=_EVALUATION)
    ] = "3,5,8",
    temperatures: Annotated[
        str, typer.Option(help="0 is greedy.", rich_help_panel=_EVALUATION)
    ] = "0,0.6,1",
    max_tokens: Annotated[
        int, typer.Option(help="Tokens of a text.", rich_help_panel=_EVALUATION)
    ] = 128,
    acceptance: Annotated[
        str, typer.Option(help="block, token or coupled.", rich_help_panel=_EVALUATION)
    ] = "block",
    width: Annotated[
        int,
        typer.Option(help="Candidates for each position, 1 to 8.", rich_help_panel=_EVALUATION),
    ] = 1,
    backend: Annotated[
        str, typer.Option(help="What the target runs on.", rich_help_panel=_EVALUATION)
    ] = "auto",
    draft_backend: Annotated[
        str, typer.Option(help="What the drafter runs on.", rich_help_panel=_EVALUATION)
    ] = "auto",
    plot_format: Annotated[
        str, typer.Option(help="svg or png.", rich_help_panel=_EVALUATION)
    ] = "svg",
    **options: Any,
) -> None:
    """Make a drafter that fits a target; prints the folder, which appears when it is whole.

    The target writes text, a student learns to say what it would say, and the result is exported
    and measured. Killed at any moment and called again, it goes on where it was.
    """
    given = {**options, **locals()}
    _check_mode(target, output, evaluate, plot)
    if evaluate is not None:
        _evaluate(evaluate, given)
    elif plot is not None:
        _plot(plot, output, plot_format)
    else:
        _make(str(target), Path(str(output)), given)


def _check_mode(
    target: str | None, output: Path | None, evaluate: str | None, plot: Path | None
) -> None:
    from specdec.errors import InvalidInputError

    if evaluate is not None or plot is not None:
        if target is not None or (evaluate is not None and plot is not None):
            raise InvalidInputError("give one of TARGET, --evaluate PAIR and --plot WORK")
    elif target is None or output is None:
        raise InvalidInputError(
            "give TARGET and -o DRAFTER to make a drafter, or --evaluate PAIR to measure one"
        )


def _make(target: str, output: Path, given: dict[str, Any]) -> None:
    from specdec.cli.console import StageProgress, tell

    _require_torch()
    from specdec.distill.pipeline import distill as make_drafter

    values = {name: given[name] for name in option_names() if given.get(name) is not None}
    values["prompts"] = tuple(given["prompts"] or ())
    if given["target_layers"] is not None:
        values["target_layers"] = _numbers("target-layers", given["target_layers"], int)
    for name in ("initial", "text"):
        if given[name] is not None:
            values[name] = str(given[name])
    with StageProgress(output.name) as progress:
        folder = make_drafter(
            target,
            output,
            Options(**values),
            replace=given["replace"],
            progress=progress,
            say=tell,
        )
    print(folder)


def _evaluate(pair: str, given: dict[str, Any]) -> None:
    from specdec.cli.console import StageProgress
    from specdec.distill.evaluate.run import PROMPTS_PER_KIND, run_evaluation

    kinds = given["kinds"]
    with StageProgress(pair) as progress:
        run_evaluation(
            pair,
            output=given["output"],
            replace=given["replace"],
            plot_format=given["plot_format"],
            kinds=[name.strip() for name in kinds.split(",")] if kinds else (),
            prompts_per_kind=given["prompts_per_kind"] or PROMPTS_PER_KIND,
            gammas=_numbers("gammas", given["gammas"], int),
            temperatures=_numbers("temperatures", given["temperatures"], float),
            max_tokens=given["max_tokens"],
            seed=given["seed"],
            acceptance=given["acceptance"],
            width=given["width"],
            threads=given["threads"],
            backend=given["backend"],
            draft_backend=given["draft_backend"],
            progress=progress,
        )


def _plot(work: Path, output: Path | None, plot_format: str) -> None:
    from specdec.distill.plot import plot_run

    print(plot_run(work, output, plot_format=plot_format))


def _require_torch() -> None:
    from specdec.errors import InvalidInputError

    try:
        import torch  # noqa: F401
    except ImportError:
        raise InvalidInputError(
            "making a drafter needs PyTorch; run: pip install 'specdec[distill]'"
        ) from None


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    from specdec.errors import InvalidInputError

    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InvalidInputError(f"--{option} is '{text}': give {what} divided by commas") from None
