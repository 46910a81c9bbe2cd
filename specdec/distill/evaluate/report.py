"""What an evaluation found, and its form on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specdec.benchmark.machine import describe_machine
from specdec.benchmark.prompts import PromptSet
from specdec.distill.evaluate.contest import (
    TARGET_ALONE,
    Difference,
    Plan,
    Run,
    contest,
    differences,
)
from specdec.distill.evaluate.figures import (
    CONFIDENCE,
    RESAMPLES,
    Cell,
    CostRatio,
    cost_ratio,
    summarise,
)
from specdec.errors import InvalidInputError
from specdec.generator import Ngram
from specdec.model import Model

FORMAT = 1
GAMMAS = (3, 5, 8)
TEMPERATURES = (0.0, 0.6, 1.0)
MAX_TOKENS = 128

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Published:
    """Figures that others published, of another pair of models on other prompts."""

    source: str
    pair: str
    gamma: int
    block_efficiency: float
    speed_up: float
    cost_ratio: float
    """The drafter's parameters over the target's."""
    note: str


PUBLISHED = Published(
    source="Goel et al. 2403.00858",
    pair="Llama 2 Chat 7B, Llama 2 Chat Drafter 115M",
    gamma=3,
    block_efficiency=2.3,
    speed_up=2.4,
    cost_ratio=0.0164,
    note="the most over the paper's tasks; another pair of models, other prompts",
)


@dataclass(frozen=True)
class Texts:
    """Whether the greedy texts were the target's own, token for token."""

    compared: int
    differing: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        return not self.differing


@dataclass(frozen=True)
class PairReport:
    """All figures of an evaluation, and the counts that they were made of."""

    machine: dict[str, Any]
    """Processor, versions, models and threads."""
    plan: Plan
    prompts: dict[str, int]
    """How many prompts each kind had."""
    cost_ratio: CostRatio
    cells: tuple[Cell, ...]
    """By temperature, kind and draft length."""
    texts: Texts | None
    """None where no greedy text was asked for."""
    published: Published
    runs: tuple[Run, ...]

    def cell(self, kind: str, gamma: int, temperature: float) -> Cell:
        """The figures of one setting; KeyError where it was not measured."""
        for cell in self.cells:
            if (cell.kind, cell.gamma, cell.temperature) == (kind, gamma, temperature):
                return cell
        raise KeyError((kind, gamma, temperature))

    def to_json(self, *, runs: bool = True) -> str:
        """The report as a JSON document, with or without the counts of each single text."""
        document = {
            "format": FORMAT,
            "machine": self.machine,
            "settings": {
                **asdict(self.plan),
                "prompts": self.prompts,
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
            },
            "cost_ratio": asdict(self.cost_ratio),
            "texts_identical": None if self.texts is None else self.texts.identical,
            "texts_compared": 0 if self.texts is None else self.texts.compared,
            "differences": [] if self.texts is None else list(map(asdict, self.texts.differing)),
            "published": asdict(self.published),
            "figures": [asdict(cell) for cell in self.cells],
        }
        if runs:
            document["runs"] = [_plain(run) for run in self.runs]
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def evaluate_pair(
    target: Model,
    draft: Model | Ngram,
    kinds: Sequence[PromptSet],
    *,
    gammas: Sequence[int] = GAMMAS,
    temperatures: Sequence[float] = TEMPERATURES,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    acceptance: str = "block",
    width: int = 1,
    progress: Progress | None = None,
) -> PairReport:
    """Measure how much of what ``draft`` proposes ``target`` accepts, in the runtime itself.

    At temperature 0 the target also writes alone, all texts are compared with its own, and a draft
    is also timed against its plain step.

    Args:
        target: The model whose text is written.
        draft: What drafts for it.
        kinds: Prompts by kind (``load_kinds``, or ``specdec.benchmark.load_prompts``).
        gammas: Draft lengths.
        temperatures: 0 is greedy; the others sample without truncation.
        max_tokens: Most tokens of one text. The last rounds of a text draft no further than that.
        seed: Of the samples and of the bootstrap; the same seed gives the same counts.
        acceptance: The rule, as for Generator.
        width: Candidates for each position, as Generator's draft_width.
        progress: Called with a stage and the fraction of it that is done.

    Raises:
        InvalidInputError: A bad argument, or prompts that do not fit (ContextFullError).
        VocabularyMismatchError: The drafter was not made for the target.
        ModelRunError: A model failed.
    """
    plan = Plan(
        gammas=_ascending("draft lengths", gammas),
        temperatures=tuple(map(float, _ascending("temperatures", temperatures))),
        max_tokens=max_tokens,
        seed=seed,
        acceptance=acceptance,
        width=width,
    )
    if not kinds or not all(kind.prompts for kind in kinds):
        raise InvalidInputError("there are no prompts to evaluate with")
    report = progress or (lambda stage, fraction: None)
    texts = plan.texts(sum(len(kind.prompts) for kind in kinds))
    stage = f"writing {texts} texts"
    report(stage, 0.0)
    runs: list[Run] = []
    for run in contest(target, draft, kinds, plan):
        runs.append(run)
        report(stage, len(runs) / texts)
    costs = cost_ratio(target, draft)
    greedy = sum(run.temperature == 0 and run.gamma != TARGET_ALONE for run in runs)
    return PairReport(
        machine=describe_machine(target, draft),
        plan=plan,
        prompts={kind.name: len(kind.prompts) for kind in kinds},
        cost_ratio=costs,
        cells=tuple(summarise(runs, costs, seed=seed)),
        texts=Texts(greedy, tuple(differences(runs))) if plan.checks_texts else None,
        published=PUBLISHED,
        runs=tuple(runs),
    )


def _ascending(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if not values:
        raise InvalidInputError(f"no {name} are given")
    return tuple(sorted(set(values)))


def _plain(run: Run) -> dict[str, Any]:
    stats = run.stats
    return {
        "kind": run.kind,
        "prompt": run.prompt,
        "gamma": run.gamma,
        "temperature": run.temperature,
        "finish_reason": run.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "rounds": stats.rounds,
        "tokens": stats.tokens,
        "drafted_by_position": stats.drafted_by_position,
        "accepted_by_position": stats.accepted_by_position,
        "draft_seconds": stats.seconds["draft"],
        "verify_seconds": stats.seconds["verify"],
    }
