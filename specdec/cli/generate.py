"""``specdec generate``: a prompt in, the model's text out as it comes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from specdec.cli.options import (
    DEFAULT_MODEL,
    AcceptanceOption,
    BackendOption,
    DraftBackendOption,
    DraftLengthOption,
    DraftOption,
    MaxContextOption,
    ModelOption,
    NoLookupOption,
    NpuOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    ThreadsOption,
    parse_draft_length,
)
from specdec.errors import InvalidInputError


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads it from standard input.")],
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", help="Most tokens to write.")
    ] = 512,
    temperature: TemperatureOption = None,
    top_k: Annotated[
        int | None, typer.Option(help="0 keeps all tokens.", show_default="the model's")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="1 keeps all tokens.", show_default="the model's")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="0 keeps all tokens.", show_default="the model's")
    ] = None,
    seed: SeedOption = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")
    ] = None,
    draft_length: DraftLengthOption = "auto",
    no_lookup: NoLookupOption = False,
    acceptance: AcceptanceOption = "block",
    max_context: MaxContextOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = "auto",
    draft_backend: DraftBackendOption = "auto",
    npu_option: NpuOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")
    ] = False,
    system: SystemOption = None,
    no_stats: Annotated[bool, typer.Option("--no-stats", help="No figures at the end.")] = False,
    show_drafted: Annotated[
        bool, typer.Option("--show-drafted", help="Colour what the drafter guessed right.")
    ] = False,
) -> None:
    """Write text: the model's text on standard output, figures on standard error.

    Ctrl-C stops within a round. Models that are not here yet are pulled first.
    """
    if raw and system is not None:
        raise InvalidInputError("--system needs the chat template that --raw leaves out")
    length = parse_draft_length(draft_length)

    from specdec.cli.models import load_pair
    from specdec.cli.writing import tell_stats, write_stream
    from specdec.generator import Generator
    from specdec.sampling import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop or (),
    )
    text = _read_prompt(prompt, raw)
    pair = load_pair(
        model, draft, threads, backend=backend, draft_backend=draft_backend, npu_options=npu_option
    )
    generator = Generator(
        pair.target,
        pair.draft,
        draft_length=length,
        acceptance=acceptance,
        max_context=max_context,
        lookup=not no_lookup,
    )
    conversation = text if system is None else _messages(system, text)
    _, finish = write_stream(
        generator,
        lambda: generator.stream(conversation, params, raw=raw),
        show_drafted=show_drafted,
    )
    if not no_stats:
        tell_stats(generator, finish, str(pair))
    if finish == "cancelled":
        raise typer.Exit(130)


def _messages(system: str, text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def _read_prompt(prompt: str, raw: bool) -> str:
    """The prompt, from standard input for ``-``; empty is refused before anything is loaded."""
    text = prompt
    if prompt == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"standard input is not UTF-8 text (byte {error.start})"
            ) from None
        if not raw:  # the end of the last line is the shell's, not the message's
            text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise InvalidInputError("the prompt is empty")
    return text
