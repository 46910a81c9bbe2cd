"""What the memory of a process that writes text is made of, phase by phase.

    python -m bench.memory [--target NAME] [--draft NAME|none] [--prompt 300] [--text 96]

Prints two tables. Of each phase: what is resident behind it and the most within it, and what holds
it, from Linux's /proc/self/smaps. Of the whole: the peak beside weights, K/V and what Python and
the libraries take before a model is loaded. MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported phase by phase
    from specdec import Model

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")
_PROC = Path("/proc/self")
PARTS = ("libraries", "weights", "other")


@dataclass(frozen=True)
class Phase:
    """Bytes behind a phase of the process, and the most within it."""

    name: str
    resident: int
    peak: int
    parts: dict[str, int]  # by PARTS


def parts_of(smaps: Iterable[str]) -> dict[str, int]:
    """Resident bytes by what holds them, of the lines of a ``smaps``.

    Weights are pages of a model's data file, and the huge pages that they are copied to. Libraries
    are pages of other files, as they are or changed. What is left are the heap, Python's objects,
    stacks, K/V and buffers.
    """
    parts = Counter(dict.fromkeys(PARTS, 0))
    name, resident = "", 0
    for line in smaps:
        if mapping := _MAPPING.fullmatch(line.rstrip("\n")):
            name = mapping[1]
            continue
        key, _, value = line.partition(":")
        if key == "Rss":
            resident = 1024 * int(value.split()[0])
        elif key == "AnonHugePages":  # behind Rss
            if name.endswith(".data") or int(value.split()[0]) > 0:
                parts["weights"] += resident
            else:
                parts["libraries" if name.startswith("/") else "other"] += resident
    return dict(parts)


def measure(name: str) -> Phase:
    """What is resident now; the next phase's peak counts from here."""
    status = (_PROC / "status").read_text(encoding="ascii", errors="replace")
    sizes = {key: 1024 * int(kb) for key, kb in re.findall(r"(VmHWM|VmRSS):\s+(\d+) kB", status)}
    with (_PROC / "smaps").open(encoding="utf-8", errors="replace") as lines:
        parts = parts_of(lines)
    (_PROC / "clear_refs").write_text("5", encoding="ascii")
    return Phase(name, sizes["VmRSS"], sizes["VmHWM"], parts)


def kv_bytes(target: Model, tokens: int) -> int:
    """Of the keys and values of a text of so many tokens."""
    config = target.config
    columns = 2 * config.layers * config.kv_heads * config.head_dim
    return tokens * columns * (2 if target.half_kv else 4)


def run(options: argparse.Namespace) -> tuple[list[Phase], list[tuple[str, int]]]:
    """The phases, and what the peak is made of."""
    phases = [measure("Python")]
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401

    phases.append(measure("numpy and ONNX Runtime"))
    from specdec import Generator, Model

    phases.append(measure("specdec and its tokenizer's library"))
    before = phases[-1].resident
    target = Model.load(options.target)
    phases.append(measure("target loaded"))
    models, draft = [target], None
    if options.draft != "none":
        draft = Model.load(options.draft)
        models.append(draft)
        phases.append(measure("drafter loaded"))
    generator = Generator(target, draft)
    phases.append(measure("Generator made"))
    # Tokens from all over the vocabulary: the most that looking them up can touch.
    prompt = [7919 * i % target.config.vocab for i in range(options.prompt)]
    for temperature in (0.0, 1.0):
        text = {"max_tokens": options.text, "ignore_eos": True, "temperature": temperature}
        generator.generate(prompt, seed=1, **text)
        phases.append(measure(f"{options.prompt} + {options.text} tokens, {temperature:g}"))
    # Not all of the files is read: an attached drafter has the target's embedding in its own too.
    stored = sum(
        path.stat().st_size for model in models for path in model.folder.path.glob("*.data")
    )
    weights = min(stored, phases[-1].parts["weights"])
    kv = kv_bytes(target, options.prompt + options.text)
    peak = max(phase.peak for phase in phases)
    return phases, [
        ("peak", peak),
        ("weights", weights),
        ("K/V of the text", kv),
        ("Python, numpy, ONNX Runtime, specdec before a model", before),
        ("what is left", peak - before - weights - kv),
        ("15 % of weights and K/V", round(0.15 * (weights + kv))),
    ]


def as_markdown(phases: Sequence[Phase], total: Sequence[tuple[str, int]]) -> str:
    """Both tables, in MB."""
    lines = [
        f"| MB behind | resident | peak within | {' | '.join(PARTS)} |",
        "| --- | --- | --- |" + " --- |" * len(PARTS),
    ]
    for phase in phases:
        sizes = [phase.resident, phase.peak, *(phase.parts[part] for part in PARTS)]
        cells = [phase.name, *(f"{size / 1e6:.1f}" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| | MB |", "| --- | --- |"]
    lines += [f"| {name} | {size / 1e6:.1f} |" for name, size in total]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure this process, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default="smollm2-135m-drafter", help="a drafter, or none")
    parser.add_argument("--prompt", type=int, default=300, help="tokens")
    parser.add_argument("--text", type=int, default=96, help="tokens")
    print(as_markdown(*run(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
