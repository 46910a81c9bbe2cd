"""What orchestrator and workers say to each other: one JSON object a line, over stdin and stdout.

A worker runs in its peer's environment: nothing here takes more than the standard library. Between
requests it blocks in ``readline``. What libraries print to stdout ends up on stderr.

    -> {...the configuration...}                        <- {"ready": true, "pid": 1, "versions": {}}
    -> {"tokens": [], "max_tokens": 1, "temperature": 0, "seed": 0}
    <- {"tokens": [], "first": 1, "first_seconds": 0.1, "seconds": 0.2, "figures": {}}

An error is ``{"error": "what happened"}``, after which the worker takes the next request.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

UNTOLD = -1
"""Stands for a token that was written, but whose number the peer does not tell."""


@dataclass(frozen=True)
class Request:
    """One text to be written."""

    tokens: list[int]
    """The prompt's."""
    max_tokens: int
    temperature: float
    """0 is greedy; otherwise the whole vocabulary is drawn from."""
    seed: int


Emit = Callable[[Sequence[int]], None]
"""Takes new tokens as soon as they are there; the end-of-text token may be among them."""


class Engine(Protocol):
    """A peer in one mode, loaded."""

    pid: int
    """Of the process whose memory counts."""
    versions: dict[str, str]

    def generate(self, request: Request, emit: Emit) -> dict[str, float]:
        """Write a text with nothing of its prompt kept from before; returns figures of its own."""


class Clocked:
    """Collects tokens and notes when the first ones came."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self.tokens: list[int] = []
        self.first = 0
        """How many tokens came at once as the first ones."""
        self.first_seconds = 0.0
        self.seconds = 0.0
        """Until the last tokens."""

    def __call__(self, tokens: Sequence[int]) -> None:
        if not tokens:
            return
        self.seconds = self._clock() - self._start
        if not self.tokens:
            self.first, self.first_seconds = len(tokens), self.seconds
        self.tokens += [int(token) for token in tokens]

    def answer(self, figures: dict[str, float]) -> dict[str, Any]:
        """The reply to a request."""
        return {
            "tokens": self.tokens,
            "first": self.first,
            "first_seconds": self.first_seconds,
            "seconds": self.seconds,
            "figures": figures,
        }


def serve(open_engine: Callable[[dict[str, Any]], Engine]) -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the peers' libraries print

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        engine = open_engine(json.loads(sys.stdin.readline()))
    except Exception as error:  # whatever a peer raises is the answer
        traceback.print_exc()
        say({"error": _said(error)})
        return
    say({"ready": True, "pid": engine.pid, "versions": engine.versions})
    for line in sys.stdin:
        clocked = Clocked()
        try:
            figures = engine.generate(Request(**json.loads(line)), clocked)
        except Exception as error:
            traceback.print_exc()
            say({"error": _said(error)})
        else:
            say(clocked.answer(figures))


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}"
