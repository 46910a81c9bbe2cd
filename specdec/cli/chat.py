"""``specdec chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from specdec.cli.options import (
    DEFAULT_MODEL,
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


def chat(
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Most tokens of one answer.")
    ] = 512,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    draft_length: DraftLengthOption = "auto",
    no_lookup: NoLookupOption = False,
    max_context: MaxContextOption = None,
    threads: ThreadsOption = None,
    backend: BackendOption = "auto",
    draft_backend: DraftBackendOption = "auto",
    npu_option: NpuOption = None,
    system: SystemOption = None,
    no_stats: Annotated[bool, typer.Option("--no-stats", help="No figures.")] = False,
) -> None:
    """Talk with a model, a line at a time.

    Ctrl-C stops an answer; an empty line is ignored; Ctrl-D, or Ctrl-C at the prompt, ends it.
    """
    length = parse_draft_length(draft_length)

    from specdec.cli.models import load_pair
    from specdec.cli.writing import tell_stats, write_stream
    from specdec.generator import Generator
    from specdec.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    pair = load_pair(
        model, draft, threads, backend=backend, draft_backend=draft_backend, npu_options=npu_option
    )
    generator = Generator(
        pair.target,
        pair.draft,
        draft_length=length,
        max_context=max_context,
        lookup=not no_lookup,
    )
    messages = [] if system is None else [{"role": "system", "content": system}]
    while (line := _read_line()) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        answer, finish = write_stream(
            generator, lambda: generator.stream(messages, params), newline=True
        )
        messages.append({"role": "assistant", "content": answer})
        if not no_stats:
            tell_stats(generator, finish, str(pair))


def _read_line() -> str | None:
    """The user's next line; None at the end of the conversation."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input("> ")
    except EOFError:
        print()
        return None
