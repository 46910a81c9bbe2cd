"""Gives all contestants the same prompts in turns, so that the machine's drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.peers.install import PeerUnavailableError
from bench.peers.protocol import Request

PREFILL = "prefill"
"""The kind of the runs that only read a long prompt."""

_WARM_UP_TOKENS = 16
_SETTLE_SECONDS = 0.03  # threads of the contestant before go to sleep


class Contestant(Protocol):
    """What a worker is to a contest."""

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far."""

    def generate(self, request: Request) -> dict[str, Any]:
        """A reply as in ``bench.peers.protocol``."""


@dataclass(frozen=True)
class Question:
    """One prompt."""

    kind: str
    index: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One contestant's text for one prompt."""

    contestant: str
    kind: str
    prompt: int
    repeat: int
    temperature: float
    tokens: tuple[int, ...]
    first: int
    """How many tokens came at once as the first ones."""
    first_seconds: float
    seconds: float
    """Until the last token."""
    others: float
    """Processor time of all other contestants over this run's wall time: nearly 0 if they sleep."""
    figures: dict[str, float] = field(default_factory=dict)
    """What the contestant says of itself."""


def contest(
    contestants: Mapping[str, Contestant],
    questions: Sequence[Question],
    *,
    temperatures: Sequence[float],
    max_tokens: int,
    repeats: int,
    on_failure: Callable[[str, str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Run]:
    """Yield the runs as they finish, after a warm-up that is not among them.

    Each question goes to all contestants before the next one does, and each time another of them
    begins. In a repeat a question has the same seed for everyone. A contestant that fails is told
    to ``on_failure`` with its reason, and takes no further part.

    Args:
        contestants: By name.
        questions: Those of kind ``PREFILL`` are answered with one token, greedily.
        temperatures: Everything else is answered once at each of them.
        max_tokens: Of an answer.
        repeats: Times that everything is run.
        on_failure: Called with a name and a reason.
        clock: Seconds, for tests.
    """
    playing = dict(contestants)

    def ask(name: str, request: Request) -> tuple[dict[str, Any], float] | None:
        others = [other for other in contestants.values() if other is not contestants[name]]
        time.sleep(_SETTLE_SECONDS)
        start, idle = clock(), sum(other.cpu_seconds for other in others)
        try:
            answer = playing[name].generate(request)
        except PeerUnavailableError as error:
            on_failure(name, str(error))
            del playing[name]
            return None
        wall = clock() - start
        return answer, (sum(other.cpu_seconds for other in others) - idle) / wall

    for name in list(playing):
        for question in _one_of_each(questions):
            if name in playing:
                ask(name, Request(list(question.tokens), _WARM_UP_TOKENS, 0.0, 0))
    names = list(contestants)
    turn = 0
    for repeat in range(repeats):
        for number, question in enumerate(questions):
            is_prefill = question.kind == PREFILL
            for temperature in [0.0] if is_prefill else temperatures:
                request = Request(
                    list(question.tokens),
                    1 if is_prefill else max_tokens,
                    temperature,
                    1 + repeat * len(questions) + number,
                )
                for place in range(len(names)):
                    name = names[(turn + place) % len(names)]
                    if name not in playing or (result := ask(name, request)) is None:
                        continue
                    answer, others = result
                    yield Run(
                        contestant=name,
                        kind=question.kind,
                        prompt=question.index,
                        repeat=repeat,
                        temperature=temperature,
                        tokens=tuple(answer["tokens"]),
                        first=answer["first"],
                        first_seconds=answer["first_seconds"],
                        seconds=answer["seconds"],
                        others=others,
                        figures=answer["figures"],
                    )
                turn += 1


def _one_of_each(questions: Sequence[Question]) -> list[Question]:
    first = {question.kind == PREFILL: question for question in reversed(questions)}
    return list(first.values())
