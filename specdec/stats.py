"""What a stream cost and what drafting brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from specdec import _core

PHASES = ("prefill", "draft", "verify", "accept", "text")


@dataclass(frozen=True)
class Stats:
    """One stream's figures, so far."""

    rounds: int = 0
    """Target steps after the prefill."""
    tokens: int = 0
    """Tokens committed, the end-of-text token included."""
    drafted: int = 0
    """Draft tokens that follow each other: positions at which a draft could be accepted."""
    checked: int = 0
    """Draft tokens that the target checked: all candidates for those positions."""
    accepted: int = 0
    """Draft tokens that it accepted, at most one for a position."""
    looked_up: int = 0
    """Of ``drafted``, those that were looked up in the text so far; the others are a model's."""
    looked_up_accepted: int = 0
    """Of ``accepted``, those that were looked up."""
    drafted_by_position: tuple[int, ...] = ()
    """Entry i: rounds with drafts for more than i positions."""
    accepted_by_position: tuple[int, ...] = ()
    """Entry i: of those, rounds that accepted more than i."""
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    """Prompt tokens that were computed; the others were in the caches from the stream before."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """By phase: prefill, draft, verify (target steps), accept, text. No time of the caller's."""
    model_seconds: float = 0.0
    """Inside the two models' run calls, prefill included."""

    @property
    def acceptance_rate(self) -> float:
        """Accepted drafts over positions that were drafted for; 0 without drafts."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Entry i: of the rounds that drafted more than i positions, the share that accepted more
        than i."""
        counts = zip(self.accepted_by_position, self.drafted_by_position, strict=True)
        return tuple(accepted / drafted if drafted else 0.0 for accepted, drafted in counts)

    @property
    def block_efficiency(self) -> float:
        """Tokens committed per target step (Leviathan et al. 2211.17192); plain decoding: 1."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens committed per second after the prefill."""
        seconds = sum(self.seconds.values()) - self.seconds.get("prefill", 0.0)
        return self.tokens / seconds if seconds > 0 else 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed per second, by target and drafter together."""
        seconds = self.seconds.get("prefill", 0.0)
        return self.prefilled_tokens / seconds if seconds > 0 else 0.0

    @property
    def lookup_acceptance_rate(self) -> float:
        """``acceptance_rate`` of the drafts that were looked up; 0 without any."""
        return self.looked_up_accepted / self.looked_up if self.looked_up else 0.0

    @property
    def model_acceptance_rate(self) -> float:
        """``acceptance_rate`` of a model's drafts; 0 without any."""
        drafted = self.drafted - self.looked_up
        return (self.accepted - self.looked_up_accepted) / drafted if drafted else 0.0

    def _sources(self) -> str:
        """Where drafts came from both."""
        if not 0 < self.looked_up < self.drafted:
            return ""
        return (
            f" (model {self.model_acceptance_rate:.0%} of {self.drafted - self.looked_up}, "
            f"looked up {self.lookup_acceptance_rate:.0%} of {self.looked_up})"
        )

    @classmethod
    def from_totals(cls, totals: _core.Totals, text_seconds: float) -> Stats:
        """Stats from the core's sums and the seconds spent turning tokens into text."""
        return cls(
            rounds=totals.rounds,
            tokens=totals.tokens,
            drafted=sum(totals.drafted_at),
            checked=totals.checked,
            accepted=sum(totals.accepted_at),
            looked_up=totals.looked_up,
            looked_up_accepted=totals.looked_up_accepted,
            drafted_by_position=tuple(totals.drafted_at),
            accepted_by_position=tuple(totals.accepted_at),
            prompt_tokens=totals.prompt_tokens,
            prefilled_tokens=totals.prefilled_tokens,
            seconds={
                "prefill": totals.prefill_seconds,
                "draft": totals.draft_seconds,
                "verify": totals.verify_seconds,
                "accept": totals.accept_seconds,
                "text": text_seconds,
            },
            model_seconds=totals.model_seconds,
        )

    def __add__(self, other: Stats) -> Stats:
        """The figures of two streams taken together."""
        phases = [*self.seconds, *(name for name in other.seconds if name not in self.seconds)]
        return Stats(
            rounds=self.rounds + other.rounds,
            tokens=self.tokens + other.tokens,
            drafted=self.drafted + other.drafted,
            checked=self.checked + other.checked,
            accepted=self.accepted + other.accepted,
            looked_up=self.looked_up + other.looked_up,
            looked_up_accepted=self.looked_up_accepted + other.looked_up_accepted,
            drafted_by_position=_sums(self.drafted_by_position, other.drafted_by_position),
            accepted_by_position=_sums(self.accepted_by_position, other.accepted_by_position),
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            prefilled_tokens=self.prefilled_tokens + other.prefilled_tokens,
            seconds={
                name: self.seconds.get(name, 0.0) + other.seconds.get(name, 0.0) for name in phases
            },
            model_seconds=self.model_seconds + other.model_seconds,
        )

    def __str__(self) -> str:
        parts = [f"{self.tokens} tokens", f"{self.tokens_per_second:.1f} tokens/s"]
        if self.drafted:
            parts.append(f"acceptance {self.acceptance_rate:.0%}{self._sources()}")
            parts.append(f"block efficiency {self.block_efficiency:.2f}")
        parts.append(
            f"prefill {self.prefilled_tokens} tokens at {self.prefill_tokens_per_second:.0f}/s"
        )
        shares = sum(self.seconds.values()) or 1.0
        spent = ", ".join(f"{name} {value / shares:.0%}" for name, value in self.seconds.items())
        return f"{' · '.join(parts)} · time: {spent}"


def percents(shares: Iterable[float | None], separator: str = " ") -> str:
    """Shares in whole percent without the sign, for a table; ``-`` where there is none."""
    return separator.join("-" if share is None else f"{share * 100:.0f}" for share in shares)


def _sums(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(left, right, fillvalue=0))
