"""The cost model's tables: errors against published speeds, and Llama-2-7B with its drafter.

    python -m bench.speed_estimates [--target FOLDER] [--draft FOLDER]

Folders are compiled ones, whose bytes are the compiler's; without them bytes are counted.
"""

from __future__ import annotations

import argparse
from statistics import quantiles

from specdec.estimate import Estimate, decoder, estimate
from specdec.snapdragon import CHIPS, PUBLISHED, held_out_errors

NAMES = {"sm8650": "8 Gen 3", "sm8750": "8 Elite", "x-elite": "X Elite"}
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)
LENGTHS = (1, 2, 4, 6, 8, 12, 16)
TRIMMED_HEAD = 8000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="llama-2-7b-chat")
    parser.add_argument("--draft", default="llama-2-chat-drafter-115m")
    arguments = parser.parse_args()
    _print_errors()
    _print_predictions(arguments.target, arguments.draft)


def _print_errors() -> None:
    print("| model (context) | chip | published, tokens/s | fitted to other models | error |")
    print("|---|---|---|---|---|")
    sizes = []
    for chip in CHIPS.values():
        for figure, error in held_out_errors(chip, PUBLISHED).items():
            sizes.append(abs(error))
            speed = figure.tokens_per_second
            print(
                f"| {figure.model} ({figure.past:,}) | {NAMES[chip.name]} | {speed:.2f} "
                f"| {speed * (1 + error):.1f} | {error:+.0%} |"
            )
    quarter, half, three_quarters = quantiles(sizes, n=4)
    print(f"\nerrors: a quarter {quarter:.1%}, half {half:.1%}, 3/4 {three_quarters:.1%}\n")
    for chip in CHIPS.values():
        print(f"{NAMES[chip.name]}: {chip.fraction:.0%}, {chip.bandwidth / 1e9:.1f} GB/s")


def _print_predictions(target: str, draft: str) -> None:
    heads = {"whole": None, f"{TRIMMED_HEAD:,} ids": TRIMMED_HEAD}
    print("\n| chip | drafter's head | plain | " + " | ".join(f"a = {a:g}" for a in ACCEPTANCES))
    print("|---|---|---|" + "---|" * len(ACCEPTANCES))
    estimates: list[Estimate] = []
    for name in CHIPS:
        for head, size in heads.items():
            made = _anchored(name, target, draft, size)
            estimates.append(made)
            cells = " | ".join(
                f"{best.tokens_per_second:.1f} ({best.ratio:.2f}x, k {best.draft_length})"
                for best in made.best
            )
            print(f"| {NAMES[name]} | {head} | {made.plain_tokens_per_second:.1f} | {cells} |")
    made = estimates[0]
    print("\nratio on 8 Gen 3 by draft length:")
    print("| a | " + " | ".join(f"k = {length}" for length in LENGTHS) + " |")
    print("|---|" + "---|" * len(LENGTHS))
    for acceptance in ACCEPTANCES:
        ratios = " | ".join(f"{made.pair.predict(acceptance, k).ratio:.2f}" for k in LENGTHS)
        print(f"| {acceptance:g} | {ratios} |")
    for made in estimates[::2]:
        print(f"\n{NAMES[made.chip.name]}: {made.chip.bandwidth / 1e9:.1f} GB/s; milliseconds:")
        for part in (made.target, made.draft):
            if part is not None:
                steps = ", ".join(
                    f"width {width}: {step.bytes / 1e6:.1f} MB, {made.chip.seconds(step) * 1e3:.2f}"
                    for width, step in part.steps.items()
                )
                print(f"  {part.name}: {steps}")


def _anchored(chip: str, target: str, draft: str, draft_head: int | None) -> Estimate:
    """With the bandwidth that the published speed of Llama-2-7B means."""
    (figure,) = (f for f in PUBLISHED if f.chip == chip and f.model == "Llama-2-7B")
    made = decoder(target, layout="w4a16")
    drafter = decoder(draft, layout="w8a16", head_size=draft_head)
    return estimate(CHIPS[chip], made, drafter, ACCEPTANCES, 16, figure.tokens_per_second)


if __name__ == "__main__":
    main()
