"""One conversation while it is written: what the target reads next, and who chose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdec.distill.write.loops import looping
from specdec.distill.write.openings import FREE, KINDS
from specdec.distill.write.options import WriteOptions
from specdec.distill.write.turns import ChatTurns, Message, common_prefix

TEMPLATE, USER, ANSWER = 0, 1, 2
"""Who chose a token: the template (or an opening, or a prompt from a file), or the target."""

_USER_TEMPERATURES = (0.8, 1.0)
_USER_TOP_P = 0.95
_LOOP_CHECK = 16  # tokens between two looks for a loop


@dataclass(frozen=True)
class Prompt:
    """A user's turn from the user's own file."""

    kind: str
    text: str


class Conversation:
    """The state of one conversation; ``tokens[:fed]`` are in the target's cache.

    Its random numbers are its own, so that it does not matter which others are written with it.
    """

    def __init__(
        self,
        turns: ChatTurns,
        options: WriteOptions,
        random: np.random.Generator,
        prompt: Prompt | None = None,
    ) -> None:
        self._turns = turns
        self._options = options
        self._random = random
        self.problem: str | None = None
        self.finished = False
        self.fed = 0
        self._messages: list[Message] = []
        shares = np.array([answer.share for answer in options.answers])
        self._answer = options.answers[int(random.choice(len(shares), p=shares / shares.sum()))]
        self._user_temperature = float(random.choice(_USER_TEMPERATURES))
        self._turns_left = 1 + int(random.random() < options.second_turn)
        self._role, self._turn_start = USER, len(turns.prefix)
        self._user_limit = options.user_tokens
        if prompt is None:
            self.kind = self._draw_kind()
            opening = ""
            if self.kind != FREE:
                opening = str(random.choice(KINDS[self.kind].openings))
                self._user_limit = KINDS[self.kind].longest
            self.tokens = [*turns.opened(opening), *self._draw_topic(opening)]
        else:
            self.kind = prompt.kind
            self._messages = [{"role": "user", "content": prompt.text}]
            self.tokens = turns.answer_start(self._messages)
            self._role, self._turn_start = ANSWER, len(self.tokens)
        self._user_limit = min(self._user_limit, options.length // 2)
        self.roles = [TEMPLATE] * len(self.tokens)
        self._check_length()

    @property
    def temperature(self) -> float:
        """Temperature of the answers; 0: greedy."""
        return self._answer.temperature

    @property
    def is_sampled(self) -> bool:
        """Whether the token after the next step is the target's to choose."""
        return self.fed + 1 == len(self.tokens)

    def sampling(self) -> tuple[float, float, float]:
        """Temperature, top-p and a uniform random number for the next token."""
        number = float(self._random.random())
        if self._role == ANSWER:
            return self._answer.temperature, self._answer.top_p, number
        return self._user_temperature, _USER_TOP_P, number

    def take(self, token: int) -> None:
        """Go on with a token that the target chose."""
        if self._role == USER:
            self._take_user(token)
        else:
            self._take_answer(token)
        if not self.finished:
            self._check_length()

    def turns(self) -> list[tuple[int, list[int]]]:
        """The runs of tokens that the target chose, each with its role."""
        return spans(self.tokens, self.roles)

    def _draw_kind(self) -> str:
        if self._random.random() >= self._options.openings:
            return FREE
        shares = np.array([kind.share for kind in KINDS.values()])
        return str(self._random.choice(list(KINDS), p=shares / shares.sum()))

    def _draw_topic(self, opening: str) -> list[int]:
        """The word that an opening is about, where it can go on with one."""
        words = self._turns.words
        if not opening[-1:].isalpha() or not len(words):
            return []
        if self._random.random() >= self._options.topics:
            return []
        return [int(self._random.choice(words))]

    def _take_user(self, token: int) -> None:
        if self._turns.is_control(token):
            self._end_user(self._text(), ended_by=token)
            return
        self._append(token)
        text, closing = self._text(), self._turns.closing_text
        if closing and closing in text:
            self._end_user(text.partition(closing)[0])
        elif len(self.tokens) - self._turn_start >= self._user_limit:
            self._end_user(text)

    def _end_user(self, text: str, ended_by: int | None = None) -> None:
        if not text.strip() or "\ufffd" in text:
            self._drop("empty user's turn" if not text.strip() else "broken characters")
            return
        self._messages.append({"role": "user", "content": text})
        whole = len(self.tokens)
        kept = self._become(self._turns.answer_start(self._messages))
        if kept == whole < len(self.tokens) and self.tokens[whole] == ended_by:
            self.roles[whole] = USER  # the target ended the turn as the template does
        self._role, self._turn_start = ANSWER, len(self.tokens)

    def _take_answer(self, token: int) -> None:
        if token not in self._turns.tokenizer.stop_ids:
            self._append(token)
            written = len(self.tokens) - self._turn_start
            if self._turns.is_control(token):
                self._drop("control token in the answer")
            elif written % _LOOP_CHECK == 0 and looping(self.tokens[self._turn_start :]):
                self._drop("endless loop")
            return
        text = self._text()
        self._append(token)
        if not text.strip():
            self._drop("empty answer")
            return
        self._turns_left -= 1
        if not self._turns_left:
            self.finished = True
            return
        self._messages.append({"role": "assistant", "content": text})
        self._become(self._turns.user_start(self._messages))
        self._role, self._turn_start = USER, len(self.tokens)
        self._user_limit = min(self._options.user_tokens, self._options.length // 2)

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self.roles.append(self._role)

    def _become(self, tokens: list[int]) -> int:
        """Go on from ``tokens``; returns how many are as they were, the others are read anew."""
        kept = common_prefix(self.tokens, tokens)
        self.tokens = tokens
        self.roles = self.roles[:kept] + [TEMPLATE] * (len(tokens) - kept)
        self.fed = min(self.fed, kept, len(tokens) - 1)
        return kept

    def _text(self) -> str:
        return self._turns.tokenizer.decode(self.tokens[self._first_of_turn() :])

    def _first_of_turn(self) -> int:
        # An opening belongs to the user's text, but was not chosen by the target.
        if self._role == USER and not self._messages:
            return len(self._turns.prefix)
        return self._turn_start

    def _check_length(self) -> None:
        if len(self.tokens) < self._options.length:
            return
        self.tokens = self.tokens[: self._options.length]
        self.roles = self.roles[: self._options.length]
        self.finished = True
        if ANSWER not in self.roles:
            self._drop("no room for an answer")

    def _drop(self, why: str) -> None:
        self.problem, self.finished = why, True


def spans(tokens: Sequence[int], roles: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The runs of tokens that the target chose, each with its role (user's turn or answer)."""
    runs: list[tuple[int, list[int]]] = []
    previous = -1
    for token, role in zip(tokens, roles, strict=True):
        if role in (USER, ANSWER):
            if role != previous:
                runs.append((role, []))
            runs[-1][1].append(token)
        previous = role
    return runs
