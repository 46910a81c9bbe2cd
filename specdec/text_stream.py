"""Tokens to printable text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from specdec.errors import InvalidInputError


class _TokenBytes(Protocol):
    def token_bytes(self, token: int, /) -> bytes: ...


class TextStream:
    """Text of one stream of tokens.

    What could still become part of a stop string, or of a character, is held back until it is
    decided. The stop string that is complete first counts (the longest of those); the text ends
    before it. However the tokens are split over calls, the text and the stop are the same.
    """

    def __init__(
        self, tokenizer: _TokenBytes, stop: Sequence[str] = (), *, drop_space: bool = False
    ) -> None:
        """``tokenizer`` is anything with ``token_bytes``; InvalidInputError for an empty stop.

        ``drop_space``: a space that the text begins with is not part of it, because the tokenizer
        puts one in front of every text.
        """
        if isinstance(stop, str):
            stop = (stop,)
        if not all(stop):
            raise InvalidInputError("a stop string is empty")
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matchers = [_Matcher(text) for text in stop]
        self._held = ""
        self._stopped = False
        self._tokens_used = 0
        self._drop_space = drop_space

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; later tokens are ignored."""
        return self._stopped

    @property
    def tokens_used(self) -> int:
        """Tokens pushed so far, up to and including the one that completed a stop string."""
        return self._tokens_used

    def push(self, token_ids: Sequence[int]) -> str:
        """Take tokens and return the text that is now certain (may be "")."""
        if not (self._matchers or self._drop_space):  # most streams, all the time
            self._tokens_used += len(token_ids)
            return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, token_ids)))
        printable = []
        for token in token_ids:
            if self._stopped:
                break
            self._tokens_used += 1
            raw = self._tokenizer.token_bytes(token)
            if self._drop_space and raw:
                raw = raw.removeprefix(b" ")
                self._drop_space = False
            text = self._decoder.decode(raw)
            if text:
                printable.append(self._advance(text))
        return "".join(printable)

    def finish(self) -> str:
        """End the stream and return what was held back; half a character becomes U+FFFD."""
        if self._stopped:
            return ""
        text = self._advance(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        self._matchers = []
        return text if self._stopped else text + rest

    def _advance(self, text: str) -> str:
        """Text that is certain once ``text`` follows what is held back."""
        if not self._matchers:
            return text
        for position, character in enumerate(text):
            met = [len(m.text) for m in self._matchers if m.advance(character)]
            if met:
                self._stopped = True
                whole = self._held + text[: position + 1]
                self._held = ""
                return whole[: len(whole) - max(met)]
        whole = self._held + text
        certain = len(whole) - max(matcher.matched for matcher in self._matchers)
        self._held = whole[certain:]
        return whole[:certain]


class _Matcher:
    """Knuth-Morris-Pratt search, one character at a time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        """Length of the longest proper prefix of ``text`` that the characters so far end with."""
        self._fallback = _fallbacks(text)

    def advance(self, character: str) -> bool:
        """Take one character; True when ``text`` is complete (and the search is over)."""
        matched = self.matched
        while matched and self.text[matched] != character:
            matched = self._fallback[matched - 1]
        if self.text[matched] == character:
            matched += 1
        self.matched = matched
        return matched == len(self.text)


def _fallbacks(text: str) -> list[int]:
    """For each prefix of ``text``: the length of its longest proper prefix that also ends it."""
    table = [0] * len(text)
    length = 0
    for position in range(1, len(text)):
        while length and text[position] != text[length]:
            length = table[length - 1]
        if text[position] == text[length]:
            length += 1
        table[position] = length
    return table
