"""How the next token is chosen from the model's distribution."""

from __future__ import annotations

import difflib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from specdec import _core
from specdec.checks import check_number, check_whole, is_whole, shown
from specdec.errors import InvalidInputError

_ANY = 2**63 - 1
_EXTREME = 1e6  # far beyond any logit, and far from where single precision ends
_SET_ON_GENERATOR = ("draft_length", "draft_width")


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one stream. ``None`` means: as the model recommends, else the neutral value.

    Logits are changed in this order: logit bias, repetition penalty, presence and frequency
    penalty, temperature, top-k, top-p, min-p. Target and drafter go through the same steps, and
    acceptance works on the distributions that come out, so the text follows the target's.
    """

    max_tokens: int | None = 512
    """Most tokens to write; None: as many as fit into the context."""
    temperature: float | None = None
    """Divides the logits; 0 always takes the most probable token (greedy)."""
    top_k: int | None = None
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the smallest set of tokens with at least this mass, in (0, 1]."""
    min_p: float | None = None
    """Keep tokens at least this fraction as probable as the most probable one, in [0, 1]."""
    stop: str | Sequence[str] | None = ()
    """Strings that end the text; they are not part of it."""
    seed: int | None = None
    """The same seed, prompt and settings give the same text; None draws one.

    Draft lengths are settings too, and with ``"auto"`` they follow measured times: then only
    ``acceptance="coupled"`` (whose text no draft length changes) and greedy text can be repeated.
    """
    repetition_penalty: float | None = None
    """Divides positive and multiplies negative logits of tokens in prompt or text; 1 is neutral."""
    presence_penalty: float | None = None
    """Subtracted from the logits of tokens that the text has already."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit once for each time that the text has it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids; ``-inf`` bans a token."""
    ignore_eos: bool = False
    """Go on after the model's end-of-text tokens, up to ``max_tokens``."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens, 1, _ANY, "a whole number, at least 1")
        for name, low, high in (
            ("temperature", 0, math.inf),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("repetition_penalty", 0, _EXTREME),
            ("presence_penalty", -_EXTREME, _EXTREME),
            ("frequency_penalty", -_EXTREME, _EXTREME),
        ):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), low, high)
        if self.top_p == 0:
            raise InvalidInputError("top_p is 0; use temperature=0 for the most probable token")
        if self.repetition_penalty is not None and self.repetition_penalty < 1 / _EXTREME:
            raise InvalidInputError(
                f"repetition_penalty is {self.repetition_penalty}; 1 is neutral"
            )
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 0, 2**31 - 1, "0 (all) or a rank")
        if self.seed is not None:
            check_whole("seed", self.seed, 0, 2**64 - 1, "a whole number in 0..2**64-1")
        if not isinstance(self.ignore_eos, bool):
            raise InvalidInputError(f"ignore_eos is {shown(self.ignore_eos)}; it must be a bool")
        self._check_stop()
        self._check_logit_bias()

    def _check_stop(self) -> None:
        if self.stop is None:
            return
        if not isinstance(self.stop, Iterable) or not all(
            isinstance(text, str) for text in self.stop
        ):
            raise InvalidInputError(f"stop is {shown(self.stop)}; it must be a str or several")
        if not all(self.stop_strings):
            raise InvalidInputError("a stop string is empty; leave it out")

    def _check_logit_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidInputError(
                f"logit_bias is {shown(self.logit_bias)}; it must map token ids to numbers"
            )
        for token, bias in self.logit_bias.items():
            if not is_whole(token):
                raise InvalidInputError(f"logit_bias names {shown(token)}, which is no token id")
            if bias != -math.inf:
                check_number(f"logit_bias of token {token}", bias, -_EXTREME, _EXTREME)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def override(self, overrides: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some replaced; an unknown name is an error, never ignored."""
        known = {entry.name for entry in fields(self)}
        for name in overrides:
            if name in _SET_ON_GENERATOR:
                raise InvalidInputError(
                    f"{name} is no sampling parameter; set it on the Generator, which obeys from "
                    f"the next round on: generator.{name} = {shown(overrides[name])}"
                )
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {sorted(known)}"
                raise InvalidInputError(f"unknown sampling parameter {name!r}; {hint}")
        return replace(self, **overrides)

    def resolve(self, recommended: Mapping[str, Any]) -> SamplingParams:
        """Every ``None`` but ``max_tokens`` filled in, by the model's recommendation first."""
        neutral: dict[str, Any] = {
            "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        }  # fmt: skip
        values = {
            name: recommended.get(name, value)
            for name, value in neutral.items()
            if getattr(self, name) is None
        }
        if self.seed is None:
            values["seed"] = secrets.randbits(64)
        return replace(self, **values)

    def core_options(self, vocabulary: int) -> _core.SamplingOptions:
        """The core's options; call on resolved parameters."""
        for token in self.logit_bias:
            if not 0 <= token < vocabulary:
                raise InvalidInputError(
                    f"logit_bias names token {token}, outside the vocabulary of {vocabulary}"
                )
        options = _core.SamplingOptions()
        for name in (
            "temperature", "top_k", "top_p", "min_p", "seed",
            "repetition_penalty", "presence_penalty", "frequency_penalty",
        ):  # fmt: skip
            setattr(options, name, getattr(self, name))
        options.logit_bias = sorted(self.logit_bias.items())
        return options
