"""Whether a contestant's texts are what the target would write: scored by the target itself.

Peers round the weights in ways of their own, so their texts differ. A text of a broken model is one
that the target finds very unlikely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING

import numpy as np

from bench.peers.contest import PREFILL, Question, Run
from bench.peers.protocol import UNTOLD

if TYPE_CHECKING:
    from specdec import Model

_MOST_NATS_MORE = 0.5  # per token, than the reference's own texts at that temperature
_ERRORS = 3.0  # standard errors that chance is allowed
_TEXTS = 6  # scored of each contestant and temperature


@dataclass(frozen=True)
class Verdict:
    """One contestant's texts at one temperature."""

    contestant: str
    temperature: float
    nats: float
    """Mean negative log-likelihood of a token under the target at temperature 1."""
    reference_nats: float
    """The same of the reference's texts."""
    error: float
    """Standard error of the difference between the two, from the spread over the tokens."""
    agreement: float | None
    """At temperature 0: tokens from the start that are the reference's, median over the texts."""

    @property
    def is_sane(self) -> bool:
        return self.nats <= self.reference_nats + _MOST_NATS_MORE + _ERRORS * self.error

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)


def judge(
    runs: Sequence[Run], questions: Sequence[Question], reference: str, target: Model
) -> list[Verdict]:
    """Verdicts on all contestants; none where the reference wrote nothing at that temperature."""
    prompts = {(q.kind, q.index): q.tokens for q in questions}
    verdicts = []
    for temperature in dict.fromkeys(run.temperature for run in runs):
        chosen = [
            run
            for run in runs
            if run.temperature == temperature and run.kind != PREFILL and run.repeat == 0
        ]
        by_name: dict[str, list[Run]] = {}
        for run in chosen:
            by_name.setdefault(run.contestant, []).append(run)
        own = by_name.get(reference)
        if not own:
            continue
        expected = {(run.kind, run.prompt): run.tokens for run in own}
        scores = {
            name: _mean_nats(target, prompts, [run for run in mine if UNTOLD not in run.tokens])
            for name, mine in by_name.items()
        }
        for name, mine in by_name.items():
            agreed = [
                _agreement(run.tokens, expected[run.kind, run.prompt])
                for run in mine
                if (run.kind, run.prompt) in expected
            ]
            verdicts.append(
                Verdict(
                    contestant=name,
                    temperature=temperature,
                    nats=scores[name][0],
                    reference_nats=scores[reference][0],
                    error=math.hypot(scores[name][1], scores[reference][1]),
                    agreement=median(agreed) if temperature == 0 and agreed else None,
                )
            )
    return verdicts


def _mean_nats(
    target: Model, prompts: dict[tuple[str, int], tuple[int, ...]], runs: Sequence[Run]
) -> tuple[float, float]:
    """Mean over all tokens of some texts, and its standard error."""
    nats: list[float] = []
    for run in runs[:_TEXTS]:
        nats += _nats(target, prompts[run.kind, run.prompt], run.tokens)
    if len(nats) < 2:
        return math.inf, 0.0
    return fmean(nats), stdev(nats) / math.sqrt(len(nats))


def _nats(target: Model, prompt: Sequence[int], text: Sequence[int]) -> list[float]:
    """Negative log-likelihoods of the text's tokens behind the prompt."""
    tokens = [*prompt, *text][:-1]
    decoder = target.new_decoder(capacity=len(tokens), max_logit_rows=16)
    wanted: list[float] = []
    for begin in range(0, len(tokens), 16):
        part = tokens[begin : begin + 16]
        logits = np.array(decoder.forward(part, len(part)), dtype=np.float64)
        decoder.commit(len(part))
        for row in range(len(part)):
            answer = begin + row + 1 - len(prompt)
            if answer >= 0:
                peak = logits[row].max()
                total = peak + math.log(np.exp(logits[row] - peak).sum())
                wanted.append(float(total - logits[row][text[answer]]))
    return wanted


def _agreement(tokens: Sequence[int], expected: Sequence[int]) -> int:
    pairs = zip(tokens, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(expected)))
