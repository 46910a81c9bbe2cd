"""``specdec quantize``: a checkpoint in, a model folder of fixed-shape NPU graphs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec.cli.options import (
    ChatTemplateOption,
    FolderOption,
    NameOption,
    ReplaceOption,
    TargetSourceOption,
)

if TYPE_CHECKING:
    from specdec.cli.console import StageProgress


def quantize(
    source: Annotated[
        str,
        typer.Argument(help="A GGUF file, a Hugging Face folder, or a name that pull knows."),
    ],
    output: FolderOption,
    layout: Annotated[
        str, typer.Option(help="How weights are held: w8a16, w4a16-b32, fp16...")
    ] = "w8a16",
    method: Annotated[str, typer.Option(help="How weights are rounded: rtn, mse, gptq.")] = "gptq",
    mixed: Annotated[
        float | None,
        typer.Option(help="Megabytes that may go into 8 bits for what suffers most in 4."),
    ] = None,
    widths: Annotated[str, typer.Option(help="Tokens that a step may have.")] = "8,32",
    context: Annotated[int, typer.Option(help="Tokens that a text may have.")] = 1024,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="A text file to calibrate with.",
            show_default="specdec's text, and what the model writes",
        ),
    ] = None,
    written_tokens: Annotated[
        int, typer.Option(help="Tokens that the model writes to calibrate with.")
    ] = 4096,
    seed: Annotated[int, typer.Option(help="Of what the model writes.")] = 0,
    target_source: TargetSourceOption = None,
    name: NameOption = None,
    chat_template: ChatTemplateOption = None,
    replace: ReplaceOption = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Measure the result, and write REPORT.md, .json and .svg."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="A text file to measure on.",
            show_default="specdec's text, and what the model writes",
        ),
    ] = None,
) -> None:
    """Quantise a checkpoint for the NPU; prints the folder, which appears when it is whole."""
    from specdec import quantize as quantising
    from specdec.cli.console import StageProgress

    settings = quantising.Settings(
        layout=layout,
        method=method,
        mixed=mixed,
        widths=_parse_widths(widths),
        context=context,
        calibration=calibration,
        written_tokens=written_tokens,
        seed=seed,
    )
    with (
        StageProgress(name or output.name) as progress,
        _checkpoint(source, target_source, progress) as (path, target, recommended),
    ):
        folder = quantising.quantize(
            path,
            output,
            settings,
            target_source=target,
            name=name,
            sampling=recommended,
            chat_template=chat_template,
            replace=replace,
            progress=progress,
        )
        if report is not None:
            _report(report, path, folder, target, held_out, settings, progress)
    print(folder)


@contextmanager
def _checkpoint(
    source: str, target_source: Path | None, progress: StageProgress
) -> Iterator[tuple[Path, Path | None, dict[str, Any] | None]]:
    """The checkpoint, its target's, and the sampling that its recipe recommends."""
    from contextlib import ExitStack

    from specdec.checkpoint_source import checkpoint
    from specdec.hub import known_models, models_home
    from specdec.recipe import load_recipe

    if source not in known_models() or Path(source).exists():
        yield Path(source), target_source, None
        return
    recipe = load_recipe(source)
    downloads = models_home() / "downloads"
    with ExitStack() as stack:
        path = stack.enter_context(checkpoint(recipe, downloads, progress))
        if target_source is None and recipe.target is not None:
            target = load_recipe(recipe.target)
            target_source = stack.enter_context(checkpoint(target, downloads, progress))
        yield path, target_source, dict(recipe.sampling)


def _report(
    file: Path,
    source: Path,
    folder: Path,
    target_source: Path | None,
    held_out: Path | None,
    settings: Any,
    progress: StageProgress,
) -> None:
    from dataclasses import asdict

    from specdec.cli.console import tell
    from specdec.errors import InvalidInputError
    from specdec.quantize import measure, report

    choice = f"{settings.layout}, {settings.method}"
    qualities = measure(
        source,
        {choice: folder},
        target_source=target_source,
        held_out=held_out,
        progress=progress,
    )
    about = {key: str(value) for key, value in asdict(settings).items()}
    try:
        written = report.write(file, qualities, about)
    except OSError as error:
        raise InvalidInputError(f"{file}: cannot be written ({error.strerror})") from error
    tell(report.table(qualities))
    tell(f"written: {', '.join(map(str, written))}")


def _parse_widths(text: str) -> tuple[int, ...]:
    from specdec.errors import InvalidInputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInputError(
            f"widths are '{text}': give whole numbers divided by commas, such as 8,32"
        ) from error
