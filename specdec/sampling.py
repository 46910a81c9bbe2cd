"""How the next token is chosen from the model's distribution."""

from __future__ import annotations

import difflib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from specdec import _core
from specdec.errors import InvalidInputError


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
    stop: str | Sequence[str] = ()
    """Strings that end the text; they are not part of it."""
    seed: int | None = None
    """The same seed, prompt and settings give the same text; None draws one."""
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
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInputError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        _check_range("temperature", self.temperature, 0, math.inf)
        _check_range("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise InvalidInputError("top_p is 0; use temperature=0 for the most probable token")
        _check_range("min_p", self.min_p, 0, 1)
        if self.top_k is not None and not 0 <= self.top_k < 2**31:
            raise InvalidInputError(f"top_k is {self.top_k}; it must be 0 (all) or a rank")
        _check_range("repetition_penalty", self.repetition_penalty, 0, math.inf)
        if self.repetition_penalty == 0:
            raise InvalidInputError("repetition_penalty is 0; 1 is neutral")
        _check_range("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        _check_range("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InvalidInputError(f"seed is {self.seed}; it must be in 0..2**64-1")
        if any(not text for text in self.stop_strings):
            raise InvalidInputError("a stop string is empty; leave it out")
        for token, bias in self.logit_bias.items():
            if math.isnan(bias) or bias == math.inf:
                raise InvalidInputError(f"logit_bias of token {token} is {bias}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def override(self, overrides: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some replaced; an unknown name is an error, never ignored."""
        known = {entry.name for entry in fields(self)}
        for name in overrides:
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


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        bounds = f"in {low:g}..{high:g}" if math.isfinite(high) else f"at least {low:g}"
        wanted = "a finite number" if math.isinf(low) else bounds
        raise InvalidInputError(f"{name} is {value}; it must be {wanted}")
