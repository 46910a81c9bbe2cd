"""Lets a pair write to every prompt with every draft length and temperature; nothing prints here.

Other than ``specdec bench`` this measures acceptance: a prompt's keys and values are computed once
and kept for all of its texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from specdec.benchmark.prompts import PromptSet
from specdec.errors import ContextFullError
from specdec.generator import Generator, Ngram
from specdec.model import Model
from specdec.sampling import SamplingParams
from specdec.stats import Stats

TARGET_ALONE = 0
_WARM_UP_TOKENS = 16
_SEEDS = 2**64


@dataclass(frozen=True)
class Run:
    """One text."""

    kind: str
    prompt: int
    """Index of the prompt in its kind."""
    gamma: int
    """Drafts in a round; ``TARGET_ALONE`` without a drafter."""
    temperature: float
    tokens: tuple[int, ...]
    finish_reason: str
    stats: Stats


@dataclass(frozen=True)
class Difference:
    """A greedy text that is not the target's own, though it should be, token for token."""

    kind: str
    prompt: int
    gamma: int
    position: int
    """Index of the first token that differs."""


@dataclass(frozen=True)
class Plan:
    """What is to be written, by a target and its drafter."""

    gammas: tuple[int, ...]
    temperatures: tuple[float, ...]
    max_tokens: int
    seed: int
    acceptance: str = "block"
    width: int = 1
    """Candidates for each position of a round."""

    @property
    def checks_texts(self) -> bool:
        """Whether the target also writes alone, and all texts must be its own."""
        return 0 in self.temperatures

    def texts(self, prompts: int) -> int:
        """How many texts that is."""
        return prompts * (len(self.gammas) * len(self.temperatures) + self.checks_texts)


def contest(
    target: Model, draft: Model | Ngram, kinds: Sequence[PromptSet], plan: Plan
) -> Iterator[Run]:
    """Yield the runs as they finish, prompt by prompt.

    Sampling is untruncated: top-k, top-p, min-p and penalties are off. A prompt has the same seed
    at every draft length.

    Raises:
        InvalidInputError: A draft length or width, temperature, seed or rule that the runtime does
            not take.
        ContextFullError: A prompt and its text do not fit into the target's context.
        VocabularyMismatchError: The drafter was not made for the target.
    """
    pair = Generator(target, draft, draft_width=plan.width, acceptance=plan.acceptance)
    alone = Generator(target) if plan.checks_texts else None
    settings = [_params(plan, temperature, plan.seed) for temperature in plan.temperatures]
    _check_fit(pair, kinds, plan.max_tokens)
    for gamma in plan.gammas:  # refuses what cannot be, and makes the bindings
        pair.draft_length = gamma
        pair.generate(kinds[0].prompts[0], settings[0], max_tokens=_WARM_UP_TOKENS)
    if alone is not None:
        alone.generate(kinds[0].prompts[0], settings[0], max_tokens=_WARM_UP_TOKENS)
    number = 0
    for kind in kinds:
        for index, prompt in enumerate(kind.prompts):
            for temperature in plan.temperatures:
                params = _params(plan, temperature, (plan.seed + number) % _SEEDS)
                if alone is not None and temperature == 0:
                    yield _run(alone, kind.name, index, TARGET_ALONE, prompt, params)
                for gamma in plan.gammas:
                    pair.draft_length = gamma
                    yield _run(pair, kind.name, index, gamma, prompt, params)
            number += 1


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Greedy texts that are not the target's own, which must be among ``runs``."""
    own = {(run.kind, run.prompt): run.tokens for run in runs if run.gamma == TARGET_ALONE}
    return [
        Difference(run.kind, run.prompt, run.gamma, _first_difference(expected, run.tokens))
        for run in runs
        if run.temperature == 0
        and (expected := own.get((run.kind, run.prompt), run.tokens)) != run.tokens
    ]


def _run(
    generator: Generator, kind: str, index: int, gamma: int, prompt: str, params: SamplingParams
) -> Run:
    result = generator.generate(prompt, params)
    temperature = params.temperature or 0.0
    return Run(kind, index, gamma, temperature, result.tokens, result.finish_reason, result.stats)


def _params(plan: Plan, temperature: float, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=plan.max_tokens,
        temperature=temperature,
        seed=seed,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )


def _check_fit(generator: Generator, kinds: Sequence[PromptSet], max_tokens: int) -> None:
    """Before minutes of measuring rather than after."""
    context = generator.max_context
    if isinstance(generator.draft, Model):
        context = min(context, generator.draft.config.context)
    for kind in kinds:
        for index, prompt in enumerate(kind.prompts):
            length = len(generator.encode(prompt))
            if length + max_tokens > context:
                raise ContextFullError(
                    f"prompt {index} of kind {kind.name!r} has {length} tokens, which with "
                    f"{max_tokens} more do not fit into the context of {context}; shorten it, or "
                    "ask for fewer tokens"
                )


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    unequal = (position for position, (a, b) in pairs if a != b)
    return next(chain(unequal, [min(len(left), len(right))]))
