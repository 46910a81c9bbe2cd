"""Where the turns of a chat template begin and end, in the tokens that the runtime would see.

No template is known by name. A user's turn begins where the encodings of the same conversation
with different first characters part; and once a turn is whole, the conversation is encoded anew as
the runtime encodes it, so that what stands between turns comes from the template alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from specdec.chat import encode_chat, render_chat
from specdec.errors import InvalidInputError
from specdec.tokenizer import Tokenizer

Message = dict[str, str]

# Written after an opening to see which of its tokens stay whatever follows: after a blank the
# next word may begin at once, elsewhere it brings its own space.
_GOES_ON = (" a", " 7", " (")
_BEGINS = ("A", "7", "(")
_WORD = re.compile(rb" [A-Za-z][a-z]{3,}")
_SENTINEL = "\U0010fffd"  # a private character: no template writes it


class ChatTurns:
    """The turns of one tokenizer and chat template.

    Raises:
        InvalidInputError: There is no template, or it fails on a plain conversation.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        if template is None:
            raise InvalidInputError(
                "the target has no chat template, so it cannot write conversations; "
                "name one (chat_template)"
            )
        self.tokenizer = tokenizer
        self.template: str = template
        self.closing_text = self._closing_text()
        """What ends a user's turn as text ("[/INST]"); "" where a control token ends it."""
        self.prefix = self.user_start(())
        """Token ids in front of a first user's turn."""
        self.words = self._words()
        """Tokens that are a word of some letters with the space before it."""
        self._opened = lru_cache(maxsize=1024)(lambda text: self.user_start((), text))

    def user_start(self, messages: Sequence[Message], opening: str = "") -> list[int]:
        """Tokens up to where the next user's turn goes on from ``opening``.

        The last tokens of an opening that could still change with what follows are left out.
        """
        opening = opening.rstrip(" ")
        probes = _GOES_ON if opening and not opening[-1].isspace() else _BEGINS
        encoded = [
            self._encode([*messages, {"role": "user", "content": opening + probe}])
            for probe in probes
        ]
        return encoded[0][: min(common_prefix(encoded[0], other) for other in encoded[1:])]

    def opened(self, opening: str) -> list[int]:
        """``user_start`` of a first turn, remembered."""
        return list(self._opened(opening))

    def answer_start(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation up to where the model's answer begins."""
        return self._encode(messages)

    def is_control(self, token: int) -> bool:
        """Whether a token stands for no text."""
        return not self.tokenizer.token_bytes(token)

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        return encode_chat(self.tokenizer, self.template, messages)

    def _words(self) -> NDArray[np.int64]:
        pieces = (self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocabulary_size))
        return np.array([i for i, piece in enumerate(pieces) if _WORD.fullmatch(piece)], np.int64)

    def _closing_text(self) -> str:
        text = render_chat(
            self.template,
            [{"role": "user", "content": _SENTINEL}],
            bos=self.tokenizer.token_text(self.tokenizer.bos_id),
            eos=self.tokenizer.token_text(self.tokenizer.eos_id),
        )
        if _SENTINEL not in text:
            raise InvalidInputError("the target's chat template leaves out what the user says")
        after = text.rpartition(_SENTINEL)[2]
        control = re.search(self.tokenizer.control_pattern, after)
        return after[: control.start() if control else None].strip()


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
