"""Writes a model folder's tokenizer files from the metadata of a GGUF checkpoint.

A GGUF names its pre-tokenizer (``tokenizer.ggml.pre``) instead of describing it, so each supported
name is declared in ``PRE_TOKENIZERS``; a further one is a line there, and a look at its vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from specdec.convert.sentencepiece_tokenizer import SentencePieces, build_tokenizer
from specdec.convert.tokenizer_files import (
    BYTE_LEVEL,
    SENTENCEPIECE,
    vocabulary_sha256,
    write_tokenizer_files,
)
from specdec.errors import CheckpointError

__all__ = ["PRE_TOKENIZERS", "vocabulary_sha256", "write_tokenizer"]

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type

_DIGIT = r"\p{N}"
_GPT2_WORD = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The contractions and what comes after the numbers are common to Llama 3 and Qwen 2.
_MODERN_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut into words before the merges run inside each word."""

    patterns: tuple[str, ...]
    """Regular expressions, one pass each over the pieces of the pass before."""
    whole_words: bool = False
    """A word that is a token is taken whole, even where the merges would not reach it."""
    compose: bool = False
    """Text is brought to Unicode's composed form (NFC) first."""
    add_bos: bool = False
    """Whether a text begins with BOS when the checkpoint does not say."""


_GPT2 = PreTokenizer((_GPT2_WORD,))
_SINGLE_DIGITS = PreTokenizer((_DIGIT, _GPT2_WORD))
_LLAMA3 = PreTokenizer((_MODERN_WORD % r"\p{N}{1,3}",), whole_words=True, add_bos=True)
_QWEN2 = PreTokenizer((_MODERN_WORD % r"\p{N}",), compose=True)
_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORD, r"\p{N}+", r"[0-9][0-9][0-9]"))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "mpt": _GPT2,
    "qwen2": _QWEN2,
    "refact": _SINGLE_DIGITS,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
}


def write_tokenizer(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write ``tokenizer.json`` and, where the checkpoint has one, ``chat_template.jinja``.

    Args:
        fields: GGUF metadata, key to Python value; arrays are lists.
        folder: Where the files go.

    Returns:
        The manifest's ``"tokenizer"`` section.

    Raises:
        CheckpointError: Metadata is missing or inconsistent, or of a kind that is not supported.
    """
    kind = _get(fields, "tokenizer.ggml.model", str)
    tokens = _strings(fields, "tokenizer.ggml.tokens")
    if kind == "llama":
        pieces = _sentence_pieces(fields, tokens)
        tokenizer = build_tokenizer(pieces, "tokenizer.ggml")
        leading_space, add_bos = pieces.leading_space, True
    elif kind == "gpt2":
        pre = _pre_tokenizer(fields)
        tokenizer = _build(fields, tokens, pre)
        leading_space, add_bos = False, pre.add_bos
    else:
        raise CheckpointError(
            f"tokenizer.ggml.model is {kind!r}; supported: 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE)"
        )
    return write_tokenizer_files(
        folder,
        tokenizer,
        kind=SENTENCEPIECE if kind == "llama" else BYTE_LEVEL,
        leading_space=leading_space,
        tokens=tokens,
        bos=_token_id(fields, "bos", tokens),
        eos=_token_id(fields, "eos", tokens),
        ends=[_token_id(fields, name, tokens) for name in ("eos", "eot", "eom")],
        add_bos=bool(fields.get("tokenizer.ggml.add_bos_token", add_bos)),
        chat_template=fields.get("tokenizer.chat_template"),
    )


def _sentence_pieces(fields: Mapping[str, Any], tokens: list[str]) -> SentencePieces:
    return SentencePieces(
        tokens,
        _get(fields, "tokenizer.ggml.scores", list),
        _get(fields, "tokenizer.ggml.token_type", list),
        leading_space=bool(fields.get("tokenizer.ggml.add_space_prefix", True)),
    )


def _pre_tokenizer(fields: Mapping[str, Any]) -> PreTokenizer:
    name = _get(fields, "tokenizer.ggml.pre", str)
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"tokenizer.ggml.pre is {name!r}; supported: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]


def _build(fields: Mapping[str, Any], tokens: list[str], pre: PreTokenizer) -> Tokenizer:
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise CheckpointError(f"tokenizer.ggml.tokens has {twice!r} twice")
    merges = []
    for merge in _strings(fields, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    try:
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=pre.whole_words)
    except Exception as error:  # the library raises no narrower type
        raise CheckpointError(f"tokenizer.ggml.merges does not fit the tokens: {error}") from error
    tokenizer = Tokenizer(model)
    if pre.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _get(fields, "tokenizer.ggml.token_type", list)
    if len(types) != len(tokens):
        raise CheckpointError(
            f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens"
        )
    added = []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            # Older converters filed control tokens under user-defined; their form tells them apart.
            control = kind != _USER_DEFINED or (token.startswith("<|") and token.endswith("|>"))
            added.append(AddedToken(token, special=control, normalized=False))
    tokenizer.add_tokens(added)  # at once: each call goes through all that were added before
    return tokenizer


def _token_id(fields: Mapping[str, Any], name: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if fields.get(key) is None:
        return None
    token = int(fields[key])
    if not 0 <= token < len(tokens):
        raise CheckpointError(f"{key} is {token}, but there are {len(tokens)} tokens")
    return token


def _strings(fields: Mapping[str, Any], key: str) -> list[str]:
    values = _get(fields, key, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise CheckpointError(f"{key} is not a list of strings")
    return values


def _get(fields: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = fields.get(key)
    if value is None:
        raise CheckpointError(f"no {key}: the checkpoint brings no tokenizer, convert a whole one")
    if not isinstance(value, kind):
        raise CheckpointError(f"{key} is not of type {kind.__name__}")
    return value
