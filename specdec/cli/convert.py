"""``specdec convert``: a checkpoint in, a model folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdec.cli.options import (
    ChatTemplateOption,
    FolderOption,
    NameOption,
    ReplaceOption,
    TargetSourceOption,
)


def convert(
    source: Annotated[Path, typer.Argument(help="A GGUF file or a Hugging Face folder.")],
    output: FolderOption,
    layout: Annotated[
        str | None,
        typer.Option(
            help="How weights and activations are held.", show_default="the best for its role"
        ),
    ] = None,
    target_source: TargetSourceOption = None,
    name: NameOption = None,
    chat_template: ChatTemplateOption = None,
    replace: ReplaceOption = False,
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
