"""Compares speculative text with the target's own, token for token, over many settings.

    python bench/exactness.py --prompts 100 --tokens 128 --json exactness.json

Greedy text is compared for every drafter, acceptance rule and draft length, sampled text at one
seed with the ``coupled`` rule for every drafter and draft length. The full cross product would take
days; instead each combination sees a few prompts, and each prompt a few combinations, both in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from specdec import Generator, Model, Ngram, SamplingParams
from specdec.convert import convert
from specdec.verification import RULES

sys.path.append(str(Path(__file__).parent.parent))

from bench.sources import gguf
from tests.tiny_gguf import write_tiny_drafter

DRAFT_LENGTHS = tuple(range(1, 17))
SEED = 20_26
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 1.0, "seed": SEED}

_PROMPTS = Path(__file__).with_name("exactness_prompts.json")

Drafters = Mapping[str, Model | Ngram]


@dataclass(frozen=True)
class Setting:
    """How one text is made. ``draft_length`` may be "auto"."""

    drafter: str
    acceptance: str
    draft_length: int | str
    sampled: bool

    def __str__(self) -> str:
        kind = "sampled" if self.sampled else "greedy"
        return f"{kind}, {self.drafter}, {self.acceptance}, k={self.draft_length}"


@dataclass(frozen=True)
class Mismatch:
    """A text that is not the target's."""

    prompt: int
    setting: Setting
    position: int
    """Index of the first token that differs."""
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass
class Report:
    """What was compared."""

    comparisons: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    settings: set[Setting] = field(default_factory=set)
    mismatches: list[Mismatch] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.comparisons} texts in {len(self.settings)} settings, {self.tokens} tokens "
            f"compared ({self.drafted} drafts, {self.accepted} accepted): "
            f"{len(self.mismatches)} mismatches"
        ]
        lines += [
            f"  prompt {m.prompt}, {m.setting}: token {m.position} is "
            f"{m.found[m.position : m.position + 3]} instead of "
            f"{m.expected[m.position : m.position + 3]}"
            for m in self.mismatches
        ]
        return "\n".join(lines)


def prompts(count: int) -> list[str]:
    """The first ``count`` prompts; all differ up to 260."""
    document = json.loads(_PROMPTS.read_text(encoding="utf-8"))
    templates, topics = document["templates"], document["topics"]
    return [
        templates[i % len(templates)].format(topic=topics[(i + i // len(templates)) % len(topics)])
        for i in range(count)
    ]


def random_drafter(target: str, folder: Path) -> Path:
    """A drafter of one random layer with a trimmed head, which knows nothing, for a known model."""
    with gguf(target) as source:
        config = Model.load(target).config
        drafter = write_tiny_drafter(
            folder / "random.gguf",
            target=target,
            head_ids=range(0, config.vocab, 12),
            layers=1,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            ffn=256,
            vocab=config.vocab,
            context=config.context,
        )
        return convert(drafter, folder / "random-drafter", target_source=source)


def plan(
    drafters: Sequence[str],
    acceptances: Sequence[str],
    draft_lengths: Sequence[int],
    *,
    sampled: bool,
    prompt_count: int,
    prompts_each: int,
    everywhere: Sequence[Setting] = (),
) -> Iterator[tuple[int, Setting]]:
    """Pairs of a prompt's index and a setting, prompt by prompt.

    Every combination meets ``prompts_each`` prompts, dealt out in turn; ``everywhere`` lists
    settings that meet all prompts.
    """
    dealt: list[list[Setting]] = [list(everywhere) for _ in range(prompt_count)]
    combinations = list(product(drafters, acceptances, draft_lengths))
    for turn in range(prompts_each):
        for i, (drafter, acceptance, k) in enumerate(combinations):
            # Each round of dealing starts elsewhere, so that the combinations change partners.
            index = (i + turn * (len(combinations) + 17)) % prompt_count
            dealt[index].append(Setting(drafter, acceptance, k, sampled))
    for index, settings in enumerate(dealt):
        for setting in settings:
            yield index, setting


class Comparison:
    """Makes texts with and without drafts from shared models, and compares them."""

    def __init__(
        self,
        target: Model,
        drafters: Drafters,
        texts: Sequence[str],
        *,
        tokens: int,
        overrides: Mapping[str, Any] | None = None,
        max_context: int | None = None,
    ):
        self._target = target
        self._drafters = drafters
        self._texts = texts
        self._params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        self._overrides = dict(overrides or {})
        self._max_context = max_context
        self._plain = Generator(target, max_context=max_context)
        self._generators: dict[tuple[str, str], Generator] = {}
        self._expected: dict[tuple[int, bool], tuple[int, ...]] = {}

    def expected(self, index: int, sampled: bool) -> tuple[int, ...]:
        """The target's own text, without drafts. Sampled text runs the rule without a drafter."""
        if (index, sampled) not in self._expected:
            generator = self._generator("", "coupled") if sampled else self._plain
            self._expected[index, sampled] = self._run(generator, index, sampled)
        return self._expected[index, sampled]

    def compare(self, index: int, setting: Setting, report: Report) -> None:
        """Make one text and note in the report whether it is the target's."""
        expected = self.expected(index, setting.sampled)
        generator = self._generator(setting.drafter, setting.acceptance)
        generator.draft_length = setting.draft_length
        found = self._run(generator, index, setting.sampled)
        report.comparisons += 1
        report.tokens += len(expected)
        report.drafted += generator.stats.drafted
        report.accepted += generator.stats.accepted
        report.settings.add(setting)
        if found != expected:
            pairs = zip(found, expected, strict=False)
            position = next(
                (i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected))
            )
            report.mismatches.append(Mismatch(index, setting, position, expected, found))

    def _generator(self, drafter: str, acceptance: str) -> Generator:
        key = drafter, acceptance
        if key not in self._generators:
            self._generators[key] = Generator(
                self._target,
                self._drafters[drafter] if drafter else None,
                acceptance=acceptance,
                max_context=self._max_context,
            )
        return self._generators[key]

    def _run(self, generator: Generator, index: int, sampled: bool) -> tuple[int, ...]:
        overrides = {**(SAMPLED if sampled else GREEDY), **self._overrides}
        return generator.generate(self._texts[index], self._params, **overrides).tokens


def compare_all(
    comparison: Comparison,
    pairs: Sequence[tuple[int, Setting]],
    *,
    progress: Callable[[int, int, Report], None] = lambda done, total, report: None,
) -> Report:
    """Run a plan."""
    report = Report()
    for done, (index, setting) in enumerate(pairs):
        comparison.compare(index, setting, report)
        progress(done + 1, len(pairs), report)
    return report


def real_comparison(
    scratch: Path, *, prompt_count: int, tokens: int
) -> tuple[Comparison, list[str]]:
    """SmolLM2-135M with its drafter, n-gram lookup and a random drafter; and their names."""
    drafters: dict[str, Model | Ngram] = {
        "drafter": Model.load("smollm2-135m-drafter"),
        "ngram": Ngram(),
        "random": Model.load(random_drafter("smollm2-135m", scratch)),
    }
    target = Model.load("smollm2-135m")
    texts = prompts(prompt_count)
    return Comparison(target, drafters, texts, tokens=tokens, max_context=1024), list(drafters)


def real_plans(
    drafters: Sequence[str], *, prompt_count: int, prompts_each: int
) -> dict[str, list[tuple[int, Setting]]]:
    """What is compared on the real model: greedy in every rule, and sampled with ``coupled``."""

    def make(acceptances: Sequence[str], default: str, sampled: bool) -> list[tuple[int, Setting]]:
        return list(
            plan(
                drafters,
                acceptances,
                DRAFT_LENGTHS,
                sampled=sampled,
                prompt_count=prompt_count,
                prompts_each=prompts_each,
                everywhere=[Setting("drafter", default, "auto", sampled)],
            )
        )

    return {
        "greedy": make(RULES, "block", sampled=False),
        "coupled": make(["coupled"], "coupled", sampled=True),
    }


def main() -> int:
    """Compare on the real model; exit code 1 when a token differs."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=128, help="of each text")
    parser.add_argument(
        "--prompts-each", type=int, default=3, help="prompts that each combination meets"
    )
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()

    start = time.monotonic()

    def progress(done: int, total: int, report: Report) -> None:
        if done % 20 == 0 or done == total:
            seconds = time.monotonic() - start
            bad = len(report.mismatches)
            print(f"{seconds:6.0f} s  {done}/{total}, {bad} mismatches", file=sys.stderr)

    figures: dict[str, Any] = {}
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        comparison, drafters = real_comparison(
            Path(scratch), prompt_count=args.prompts, tokens=args.tokens
        )
        plans = real_plans(drafters, prompt_count=args.prompts, prompts_each=args.prompts_each)
        for name, pairs in plans.items():
            report = compare_all(comparison, pairs, progress=progress)
            print(f"{name}: {report}", flush=True)
            failed |= bool(report.mismatches)
            figures[name] = {
                "texts": report.comparisons,
                "settings": len(report.settings),
                "tokens": report.tokens,
                "drafted": report.drafted,
                "accepted": report.accepted,
                "mismatches": [asdict(mismatch) for mismatch in report.mismatches],
            }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
