"""Makes every figure and table of docs/performance.md anew.

    python -m bench.performance [--quick] [--only peers growth layouts]

``--quick`` is made for 12 minutes on two cores, once the peers are installed (``python -m
bench.peers --install``, which it does not do: a peer that is not there is left out, and said so).
Pictures and raw figures go to docs/performance/, tables between the marks in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from bench.peers.install import ROOT
from specdec.benchmark.machine import cpu_model

PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"


@dataclass(frozen=True)
class Section:
    """A part of the page that one program fills."""

    module: str
    quick: tuple[str, ...]
    whole: tuple[str, ...]
    table: Callable[[Path], str]
    """From the folder that the program wrote into to what goes between the marks."""
    pictures: tuple[tuple[str, str], ...] = ()
    """Files in that folder, and what they show."""

    def command(self, quick: bool) -> str:
        """What a reader types to make this section's figures."""
        return shlex.join(["python", "-m", self.module, *(self.quick if quick else self.whole)])


def _markdown(name: str) -> Callable[[Path], str]:
    return lambda folder: (folder / name).read_text(encoding="utf-8").strip()


def _steps(folder: Path) -> str:
    """Milliseconds of a step by layout and width, and the widest over the narrowest."""
    table: dict[str, dict[str, float]] = json.loads((folder / "layouts.json").read_text("utf-8"))
    widths = list(next(iter(table.values())))
    lines = [
        f"| layout | {' | '.join(widths)} | 8 over 1 |",
        f"| --- |{' --- |' * (len(widths) + 1)}",
    ]
    for layout, row in table.items():
        cells = " | ".join(f"{row[width]:.2f}" for width in widths)
        ratio = f"{row['8'] / row['1']:.2f} x" if "8" in row and "1" in row else ""
        lines.append(f"| `{layout}` | {cells} | {ratio} |")
    return "\n".join(lines)


SECTIONS = {
    "peers": Section(
        "bench.peers",
        (
            *("--prompts", "2", "--max-tokens", "48", "--repeat", "2", "--installed-only"),
            *("--modes", "plain", "k=1", "k=2", "k=4", "auto", "auto, tree", "n-gram"),
            *("draft k=2", "assisted", "prompt lookup"),
        ),
        ("--prompts", "4", "--max-tokens", "128", "--repeat", "5"),
        _markdown("peers.md"),
        (("peers.svg", "Tokens per second of specdec and its peers"),),
    ),
    "growth": Section(
        "bench.growth",
        ("--quick",),
        (),
        _markdown("growth.md"),
        (
            ("context.svg", "Tokens per second and peak memory by context"),
            ("lengths.svg", "Tokens per second by draft length, measured and predicted"),
            ("threads.svg", "Tokens per second by threads"),
        ),
    ),
    "layouts": Section(
        "bench.layout_speed",
        ("smollm2-135m", "--turns", "5", "--widths", "1", "2", "4", "8", "16", "128"),
        ("smollm2-135m", "--turns", "20"),
        _steps,
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the programs and put what they found into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--target", default=None, help="specdec's target, where not by name")
    parser.add_argument("--draft", default=None, help="specdec's drafter, where not by name")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    failed = []
    for name in options.only:
        section = SECTIONS[name]
        told = list(section.quick if options.quick else section.whole)
        if name == "layouts":
            (FOLDER / name).mkdir(parents=True, exist_ok=True)
            told += ["--json", str(FOLDER / name / "layouts.json")]
        else:
            told += ["--output", str(FOLDER / name)]
            for option in ("target", "draft"):
                if value := getattr(options, option):
                    told += [f"--{option}", value]
        print(f"{time.monotonic() - begun:5.0f} s  {section.command(options.quick)}", flush=True)
        if subprocess.run([sys.executable, "-m", section.module, *told], cwd=ROOT).returncode:
            failed.append(name)
            continue
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(filled(page, name, section, options.quick), encoding="utf-8")
    print(f"{time.monotonic() - begun:5.0f} s  {PAGE}", flush=True)
    if failed:
        sys.exit(f"failed, their figures are as they were: {', '.join(failed)}")


def filled(page: str, name: str, section: Section, quick: bool) -> str:
    """The page with the section's figures between its marks.

    ValueError where the page has no such marks.
    """
    pictures = [f"![{shows}](performance/{name}/{file})" for file, shows in section.pictures]
    made = (
        f"`{section.command(quick)}`, {date.today().isoformat()}, on {cpu_model()}"
        f"{', few repeats' if quick else ''}."
    )
    content = "\n\n".join([section.table(FOLDER / name), *pictures, made])
    marks = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end of figures -->)", re.S)
    page, count = marks.subn(lambda match: f"{match[1]}{content}\n{match[2]}", page)
    if count != 1:
        raise ValueError(f"{PAGE} has {count} places for the figures of {name}; it must have one")
    return page


if __name__ == "__main__":
    main()
