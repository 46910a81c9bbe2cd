"""Text to token ids and back, for a model folder's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import tokenizers

from specdec import _core
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.model_folder import ModelFolder, TokenizerSection


class Tokenizer:
    """Encodes text and decodes tokens; safe to share between threads."""

    def __init__(
        self, backend: tokenizers.Tokenizer, section: TokenizerSection, *, vocab: int = 0
    ) -> None:
        """``vocab`` is the model's number of ids, where it has more than the tokenizer."""
        # Control tokens are found by this class alone, so that text never turns into one unasked.
        backend.encode_special_tokens = True
        self._backend = backend
        self._added = backend.get_added_tokens_decoder()
        # Filled token by token: a whole table would make the first text wait for 0.1 s.
        self._bytes: dict[int, bytes] = {}
        self._kind = section.kind
        self.leading_space = section.leading_space
        """Whether ``encode`` puts a space of its own in front of a text."""
        self.vocabulary_size = max(vocab, backend.get_vocab_size(with_added_tokens=True))
        self.vocabulary_sha256 = section.vocabulary_sha256
        self.bos_id = section.bos_id
        self.eos_id = section.eos_id
        self.stop_ids = frozenset(section.stop_ids)
        self.add_bos = section.add_bos
        """Whether a raw text should begin with ``bos_id``; ``encode`` leaves that to its caller."""

    @classmethod
    def load(cls, folder: ModelFolder) -> Tokenizer:
        """Read the tokenizer of an opened model folder.

        Raises:
            ModelFolderError: The file is not a tokenizer.
        """
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder.tokenizer_path))
        except Exception as error:  # the library raises no narrower type
            raise ModelFolderError(
                f"{folder.tokenizer_path}: not a tokenizer ({error}); pull or convert it again"
            ) from error
        # The parsed file was as large as the tables that were made from it.
        _core.give_back_free_memory()
        return cls(backend, folder.tokenizer, vocab=folder.config.vocab)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of ``text``; no BOS is added.

        Args:
            text: Any Unicode text.
            special: Whether the names of control tokens (``<|im_end|>``...) in it become those
                tokens. Never set this for text that somebody else wrote.

        Raises:
            InvalidInputError: The text holds a lone surrogate.
        """
        if not special:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece, control in self.split_control(text):
            if control is None:
                ids += self._encode_plain(piece)
            else:
                ids.append(control)
        return ids

    def split_control(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut ``text`` at the names of control tokens: ``(text, None)`` or ``(name, id)``."""
        end = 0
        for match in self.control_pattern.finditer(text):
            if match.start() > end:
                yield text[end : match.start()], None
            yield match[0], self._control_ids[match[0]]
            end = match.end()
        if end < len(text):
            yield text[end:], None

    def decode(self, ids: Sequence[int], *, begins_text: bool = True) -> str:
        """Text of ``ids``; control tokens give nothing, invalid UTF-8 gives U+FFFD.

        Some tokenizers put a space in front of every text. Where ``ids`` begin a text that space
        is taken off; set ``begins_text`` to False for ids from the middle of one.
        """
        raw = b"".join(map(self.token_bytes, ids))
        if begins_text and self.leading_space:
            raw = raw.removeprefix(b" ")
        return raw.decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The raw bytes of one token, which may be part of a character; b"" for a control token.

        Raises:
            InvalidInputError: There is no such token.
        """
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._compute_bytes(token)
        return known

    def token_text(self, token: int | None) -> str:
        """The name of a token as templates write it; "" for None."""
        return "" if token is None else str(self._backend.id_to_token(token))

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches the name of any control token, the longest where several begin."""
        names = sorted(self._control_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        # A name of one character could not be told from text, and would be no name.
        return {
            added.content: token
            for token, added in self._added.items()
            if added.special and len(added.content) > 1
        }

    def _compute_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.vocabulary_size:
            raise InvalidInputError(
                f"token {token} is outside of the vocabulary (0 to {self.vocabulary_size - 1})"
            )
        name = self._backend.id_to_token(token) or ""
        added = self._added.get(token)
        if added is not None and added.special:
            return b""
        if self._kind == "sentencepiece":
            return _sentencepiece_bytes(name)
        if added is not None:  # kept as plain text, not in the byte-level alphabet
            return name.encode()
        return b"".join(_BYTE_OF.get(character) or character.encode() for character in name)

    def _encode_plain(self, text: str) -> list[int]:
        try:
            text.encode()  # the library's own complaint does not say what is wrong
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"the text is not valid Unicode: lone surrogate at position {error.start}"
            ) from None
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


def _byte_level_alphabet() -> dict[str, bytes]:
    """The character that stands for each byte in a byte-level vocabulary.

    Bytes that are printable in Latin-1 stand for themselves, the others for U+0100 onwards.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    alphabet |= {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(moved)}
    return alphabet


_BYTE_OF = _byte_level_alphabet()
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _sentencepiece_bytes(name: str) -> bytes:
    if match := _BYTE_PIECE.fullmatch(name):
        return bytes.fromhex(match[1])
    return name.replace("\u2581", " ").encode()
