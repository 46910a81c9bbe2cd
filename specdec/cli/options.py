"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdec.errors import InvalidInputError

DEFAULT_MODEL = "smollm2-135m"

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="The target: a known name, or a model folder.")
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        "-d",
        help="The drafter: a name, a folder, 'ngram' or 'none'.",
        show_default="the model's known drafter",
    ),
]
DraftLengthOption = Annotated[
    str, typer.Option("--draft-length", "-k", help="Draft tokens in a round, or 'auto'.")
]
NoLookupOption = Annotated[
    bool,
    typer.Option(
        "--no-lookup",
        help="With a drafter model and draft length 'auto': draft from the model alone, never what "
        "followed the last words before.",
    ),
]
AcceptanceOption = Annotated[
    str, typer.Option(help="How drafts are accepted: 'block', 'token' or 'coupled'.")
]
MaxContextOption = Annotated[
    int | None,
    typer.Option(help="Tokens that prompt and text may have together.", show_default="the model's"),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="Threads of one step.", show_default="one for each physical core"),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend", help="What it runs on: 'cpu', 'qnn' (an NPU, or its simulator) or 'auto'."
    ),
]
DraftBackendOption = Annotated[
    str, typer.Option(help="What the drafter runs on, as --backend for the target.")
]
NpuOption = Annotated[
    list[str] | None,
    typer.Option(
        "--npu-option",
        help="How an NPU runs: name=value (performance_mode=balanced...); may be repeated.",
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", "-t", help="0 is greedy.", show_default="the model's"),
]
SeedOption = Annotated[
    int | None,
    typer.Option(help="The same seed gives the same text.", show_default="drawn"),
]
SystemOption = Annotated[str | None, typer.Option(help="A system message before the prompt.")]
FolderOption = Annotated[Path, typer.Option("--output", "-o", help="The model folder to make.")]
TargetSourceOption = Annotated[
    Path | None, typer.Option(help="For a drafter: its target's GGUF checkpoint.")
]
NameOption = Annotated[
    str | None, typer.Option(help="The model's name.", show_default="the folder's")
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        help="A Jinja file, or the name of a template that comes with specdec: llama-2.",
        show_default="the checkpoint's own",
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Replace a model folder that is there already.")
]


def parse_draft_length(text: str) -> int | str:
    """``auto`` or a number; whether the number is in range is for the Generator to say."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise InvalidInputError(
            f"--draft-length is {text!r}; it must be a number or 'auto'"
        ) from None
