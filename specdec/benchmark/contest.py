"""Runs contestants on the same prompts in turns, so that the machine's drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from specdec.benchmark.prompts import PromptSet
from specdec.errors import ContextFullError
from specdec.generator import Generator, Ngram
from specdec.model import Model
from specdec.sampling import SamplingParams
from specdec.stats import Stats

BASELINE = "target alone"
_WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Contestant:
    """One way to run the target."""

    name: str
    draft: Model | Ngram | None
    draft_length: int | str = "auto"


@dataclass(frozen=True)
class Run:
    """One contestant's text for one prompt."""

    contestant: str
    kind: str
    prompt: int
    """Index of the prompt in its kind."""
    repeat: int
    tokens: tuple[int, ...]
    first_token_seconds: float
    """From the call until the first text was there, with nothing of the prompt in the caches."""
    decode_seconds: float
    """Wall time without the prefill and without turning the prompt into tokens."""
    stats: Stats


def contestants(draft: Model | Ngram | None, draft_lengths: Sequence[int]) -> list[Contestant]:
    """The target alone, each draft length, ``auto``, and drafts from the text so far."""
    result = [Contestant(BASELINE, None)]
    if draft is not None:
        result += [Contestant(f"k = {k}", draft, k) for k in draft_lengths]
        result.append(Contestant("auto", draft))
    if not isinstance(draft, Ngram):
        result.append(Contestant("n-gram", Ngram()))
    return result


def contest(
    target: Model,
    entrants: Sequence[Contestant],
    prompts: Sequence[PromptSet],
    params: SamplingParams,
    *,
    repeats: int,
    acceptance: str = "block",
    max_context: int | None = None,
    lookup: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Run]:
    """Yield the runs as they finish: ``repeats`` x prompts x entrants of them, after a warm-up.

    Each prompt is given to all entrants before the next one is, and each time another entrant
    begins. In a repeat a prompt has the same seed for everyone.

    Args:
        target: The model whose text is wanted.
        entrants: Names must be unique.
        prompts: What to answer, by kind.
        params: Sampling parameters; the seed is replaced.
        repeats: Times that everything is run.
        acceptance: As for Generator.
        max_context: As for Generator; None takes what the longest prompt needs.
        lookup: As for Generator.
        clock: Seconds, for tests.
    """
    context = max_context or _context_for(target, prompts, params)
    generators = {
        entrant.name: Generator(
            target,
            entrant.draft,
            draft_length=entrant.draft_length,
            acceptance=acceptance,
            max_context=context,
            lookup=lookup,
        )
        for entrant in entrants
    }
    questions = [
        (kind.name, index, prompt) for kind in prompts for index, prompt in enumerate(kind.prompts)
    ]
    for generator in generators.values():  # makes the bindings, and lets "auto" see some rounds
        warm_up = replace(params, seed=0, max_tokens=min(_WARM_UP_TOKENS, params.max_tokens or 1))
        generator.generate(questions[0][2], warm_up)
    turn = 0
    for repeat in range(repeats):
        for number, (kind, index, prompt) in enumerate(questions):
            seeded = replace(params, seed=repeat * len(questions) + number)
            for place in range(len(entrants)):
                name = entrants[(turn + place) % len(entrants)].name
                _forget(generators[name])
                tokens, times, stats = _timed(generators[name], prompt, seeded, clock)
                first, decode = times
                yield Run(name, kind, index, repeat, tokens, first, decode, stats)
            turn += 1


def _timed(
    generator: Generator, prompt: str, params: SamplingParams, clock: Callable[[], float]
) -> tuple[tuple[int, ...], tuple[float, float], Stats]:
    tokens: list[int] = []
    first: float | None = None
    called = clock()
    stream = generator.stream(prompt, params)
    begun = clock()
    for chunk in stream:
        if first is None:
            first = clock()
        tokens += chunk.tokens
    end = clock()
    stats = generator.stats
    decode = end - begun - stats.seconds["prefill"]
    return tuple(tokens), ((first or end) - called, decode), stats


def _forget(generator: Generator) -> None:
    """Empty the caches, so that every run pays for its whole prompt."""
    first = generator.encode("a")[0]
    generator.generate([(first + 1) % generator.target.config.vocab], max_tokens=1, temperature=0)


def _context_for(target: Model, prompts: Sequence[PromptSet], params: SamplingParams) -> int:
    """Just enough: with a dozen caches side by side, whole contexts would be gigabytes."""
    most = target.config.context
    if params.max_tokens is None:
        return most
    encode = Generator(target, max_context=2).encode
    longest = max(len(encode(prompt)) for kind in prompts for prompt in kind.prompts)
    if longest >= most:
        raise ContextFullError(
            f"the longest prompt has {longest} tokens and the context {most}; shorten it"
        )
    return min(most, longest + params.max_tokens)
