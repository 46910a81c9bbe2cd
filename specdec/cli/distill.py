"""``specdec distill``: a target in, a drafter for it out; or how well a pair does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_TEXT, _SHAPE, _TRAINING, _RUN, _EVALUATION = (
    "The text",
    "The drafter",
    "Training",
    "The run",
    "Evaluating (--evaluate)",
)


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
    minutes: Annotated[
        float | None,
        typer.Option(help="About how long all of it may take.", show_default="25"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="attached (reads the target's states) or standalone.",
            show_default="attached for a GGUF file",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Parameters in its layers, such as 115m.", rich_help_panel=_SHAPE),
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option(help="Its step as a fraction of the target's.", rich_help_panel=_SHAPE),
    ] = None,
    target_layers: Annotated[
        str | None,
        typer.Option(
            help="The target's layers that it starts from: 0,10,20,29.", rich_help_panel=_SHAPE
        ),
    ] = None,
    head: Annotated[
        int | None, typer.Option(help="Ids in its head.", rich_help_panel=_SHAPE)
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            help="Weights to begin with: a run's checkpoint.pt, or a drafter.gguf.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    origin: Annotated[
        str,
        typer.Option(
            help="Where its first weights come from: target or random.", rich_help_panel=_SHAPE
        ),
    ] = "target",
    layout: Annotated[
        str | None,
        typer.Option(
            help="How it holds weights: a layout of convert's, or for an NPU of quantize's.",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="A file of prompts for the target to answer; may be repeated.",
            show_default="the target writes them itself",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A folder of text that is there already.", rich_help_panel=_TEXT),
    ] = None,
    text_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens for the target to write.", show_default="by time", rich_help_panel=_TEXT
        ),
    ] = None,
    length: Annotated[
        int, typer.Option(help="Tokens of its longest conversation.", rich_help_panel=_TEXT)
    ] = 400,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Take in new shards between epochs.", rich_help_panel=_TEXT),
    ] = False,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="A Jinja file, or the name of a template that comes with specdec: llama-2.",
            show_default="the target's own",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to train on.", show_default="by time", rich_help_panel=_TRAINING),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="cached (the target's states on disk) or online.",
            show_default="cached on a CPU",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(help="kl, reverse_kl, tvd, tvd++, lk or lk_mix.", rich_help_panel=_TRAINING),
    ] = "lk",
    loss_from: Annotated[
        float,
        typer.Option(help="Share of the run that is KL alone.", rich_help_panel=_TRAINING),
    ] = 0.6,
    loss_share: Annotated[
        float,
        typer.Option(help="How much of KL the loss replaces then.", rich_help_panel=_TRAINING),
    ] = 0.7,
    depth: Annotated[
        int,
        typer.Option(help="Drafts of a round that are unrolled.", rich_help_panel=_TRAINING),
    ] = 2,
    on_policy: Annotated[
        float,
        typer.Option(
            help="Share of the batches that the drafter writes itself.", rich_help_panel=_TRAINING
        ),
    ] = 0.0,
    on_policy_tokens: Annotated[
        int, typer.Option(help="Tokens that it writes then.", rich_help_panel=_TRAINING)
    ] = 8,
    optimizer: Annotated[
        str, typer.Option(help="adamw or muon.", rich_help_panel=_TRAINING)
    ] = "adamw",
    rate: Annotated[
        float, typer.Option(help="Highest learning rate.", rich_help_panel=_TRAINING)
    ] = 8e-4,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens of a batch.", rich_help_panel=_TRAINING)
    ] = 2048,
    accumulate: Annotated[
        int, typer.Option(help="Batches of a step.", rich_help_panel=_TRAINING)
    ] = 1,
    warmup: Annotated[
        int, typer.Option(help="Steps of a rising rate.", rich_help_panel=_TRAINING)
    ] = 20,
    user_weight: Annotated[
        float, typer.Option(help="What the user's turns count.", rich_help_panel=_TRAINING)
    ] = 0.3,
    evaluate_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens between two measurements.",
            show_default="12 in a run",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    held_out: Annotated[
        int, typer.Option(help="Conversations measured on.", rich_help_panel=_TRAINING)
    ] = 64,
    seed: Annotated[int, typer.Option(help="Of everything.", rich_help_panel=_RUN)] = 1,
    device: Annotated[
        str | None,
        typer.Option(
            help="What to train on.", show_default="a GPU where there is one", rich_help_panel=_RUN
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of matrix products: bfloat16 or float32.",
            show_default="bfloat16",
            rich_help_panel=_RUN,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads.", show_default="the libraries' own", rich_help_panel=_RUN),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Replace a model folder or files that are there.",
            rich_help_panel=_RUN,
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
    backend: Annotated[
        str, typer.Option(help="What the target runs on.", rich_help_panel=_EVALUATION)
    ] = "auto",
    draft_backend: Annotated[
        str, typer.Option(help="What the drafter runs on.", rich_help_panel=_EVALUATION)
    ] = "auto",
    plot_format: Annotated[
        str, typer.Option(help="svg or png.", rich_help_panel=_EVALUATION)
    ] = "svg",
) -> None:
    """Make a drafter that fits a target; prints the folder, which appears when it is whole.

    The target writes text, a student learns to say what it would say, and the result is exported
    and measured. Killed at any moment and called again, it goes on where it was.
    """
    given = dict(locals())
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
    from specdec.distill.options import Options, option_names
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
