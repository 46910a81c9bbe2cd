"""``specdec estimate``: how fast a pair would write on a Snapdragon, without one at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from specdec.estimate import Decoder, Estimate

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)


def estimate(
    target: Annotated[
        str, typer.Argument(help="A model folder, best a compiled one, or a known model.")
    ],
    draft: Annotated[
        str | None, typer.Option("--draft", "-d", help="The drafter, likewise.")
    ] = None,
    soc: Annotated[
        list[str] | None,
        typer.Option(help="sm8650, sm8750 or x-elite; may be repeated.", show_default="all three"),
    ] = None,
    acceptance: Annotated[
        list[float] | None,
        typer.Option(help="Of a drafted token; may be repeated.", show_default="0.5 to 0.9"),
    ] = None,
    draft_length: Annotated[int, typer.Option("--draft-length", "-k", help="At most.")] = 16,
    layout: Annotated[str, typer.Option(help="Of a target that is not compiled.")] = "w4a16",
    draft_layout: Annotated[str, typer.Option(help="Of such a drafter.")] = "w8a16",
    context: Annotated[int, typer.Option(help="Of models that are not compiled.")] = 1024,
    draft_head: Annotated[
        int | None, typer.Option(help="Rows of the drafter's head.", show_default="all")
    ] = None,
    plain: Annotated[
        float | None,
        typer.Option(
            help="Tokens per second of the target alone, measured: the chip's bandwidth is taken "
            "from it.",
            show_default="published speeds of other models",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Predict tokens per second on a Snapdragon's NPU, with and without a drafter.

    An estimate from memory traffic, fitted to published speeds: half of those are met within 8 %.
    """
    import json

    from specdec.errors import InvalidInputError
    from specdec.estimate import decoder
    from specdec.estimate import estimate as make_estimate
    from specdec.snapdragon import CHIPS

    names = soc or list(CHIPS)
    if unknown := [name for name in names if name not in CHIPS]:
        raise InvalidInputError(
            f"no published speeds for '{unknown[0]}': choose one of {', '.join(CHIPS)}"
        )
    target_decoder = decoder(target, layout=layout, past=context)
    draft_decoder = None
    if draft is not None:
        draft_decoder = decoder(draft, layout=draft_layout, past=context, head_size=draft_head)
    estimates = [
        make_estimate(
            CHIPS[name],
            target_decoder,
            draft_decoder,
            acceptance or ACCEPTANCES,
            draft_length,
            plain,
        )
        for name in names
    ]
    if as_json:
        print(json.dumps([entry.as_json() for entry in estimates], indent=2))
    else:
        _print(estimates)


def _print(estimates: list[Estimate]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    for entry in estimates:
        chip = entry.chip
        console.print(
            f"{chip.name}: {chip.bandwidth / 1e9:.1f} GB/s ({chip.fraction:.0%} of its memory's "
            f"{chip.peak_bandwidth / 1e9:.1f}), plain {entry.plain_tokens_per_second:.1f} tokens/s",
            style="bold",
        )
        for what, decoder in (("target", entry.target), ("drafter", entry.draft)):
            if decoder is not None:
                console.print(f"  {what} {_steps(decoder, entry)}")
        if not entry.best:
            continue
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("acceptance", "draft length", "tokens/round", "tokens/s", "x target"):
            table.add_column(heading, justify="right")
        for best in entry.best:
            table.add_row(
                f"{best.acceptance:g}",
                str(best.draft_length),
                f"{best.round_tokens:.2f}",
                f"{best.tokens_per_second:.1f}",
                f"{best.ratio:.2f}",
            )
        console.print(table)
    console.print(
        "An estimate, not a measurement: memory traffic at the bandwidth that published speeds "
        "mean, each drafted token accepted independently."
    )


def _steps(decoder: Decoder, entry: Estimate) -> str:
    source = "by the compiler" if decoder.compiled else "counted"
    steps = ", ".join(
        f"{width} tokens {step.bytes / 1e6:.0f} MB {entry.chip.seconds(step) * 1e3:.1f} ms"
        for width, step in decoder.steps.items()
    )
    return f"{decoder.name} ({decoder.layout}, context {decoder.past}), {source}: {steps}"
