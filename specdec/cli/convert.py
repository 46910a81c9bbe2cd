"""``specdec convert``: a checkpoint in, a model folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="A GGUF file or a Hugging Face folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to make.")],
    layout: Annotated[
        str | None,
        typer.Option(
            help="How weights and activations are held.", show_default="the best for its role"
        ),
    ] = None,
    target_source: Annotated[
        Path | None, typer.Option(help="For a drafter: its target's GGUF checkpoint.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name.", show_default="the folder's")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="A Jinja file, or the name of a template that comes with specdec: llama-2.",
            show_default="the checkpoint's own",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a model folder that is there already.")
    ] = False,
) -> None:
    """Convert a checkpoint to a model folder; prints it. The folder appears when it is whole."""
    from specdec.cli.console import StageProgress
    from specdec.convert import convert as convert_checkpoint

    with StageProgress(name or output.name) as progress:
        folder = convert_checkpoint(
            source,
            output,
            layout=layout,
            name=name,
            target_source=target_source,
            chat_template=chat_template,
            replace=replace,
            progress=progress,
        )
    print(folder)
